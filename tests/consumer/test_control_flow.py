"""What a task raises to tell Celery something: Retry, Ignore, Reject. In whatever hook, no caller waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import Celery, chord

from tests.support.callers import held_back
from tests.support.control_flow import TRIES

WAIT = 20.0

PLACES = ["preprocess", "predict", "slot", "postprocess"]


def ask(app: Celery, client: redis.Redis, *calls: tuple[Any, ...]) -> list[Any]:
    """What becomes of calls of `asks` that are claimed together with calls that ask for nothing."""
    asks = app.tasks["asks"]
    with held_back(app, client):
        others = [asks.delay(number) for number in range(4)]
        results = [asks.delay(*call) for call in calls]
        others += [asks.delay(number) for number in range(4, 8)]
    assert [result.get(timeout=WAIT) for result in others] == [[number, 0] for number in range(8)]
    return [result.get(timeout=WAIT, propagate=False) for result in results]


@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_asks_for_another_try_gets_it_wherever_it_asks(
    app: Celery, client: redis.Redis, place: str
) -> None:
    retried, by_hand, args, kwargs = ask(
        app, client, ("a", place, "retry"), ("b", place, "by hand"), ("c", place, "args"), ("d", place, "kwargs")
    )
    assert [retried, by_hand] == [["a", TRIES], ["b", TRIES]]
    assert [args, kwargs] == [["other args", 1], ["other kwargs", 1]]


@pytest.mark.parametrize("place", PLACES)
def test_a_call_whose_tries_are_used_up_ends_with_the_error_that_was_asked_for(
    app: Celery, client: redis.Redis, place: str
) -> None:
    given, none = ask(app, client, ("a", place, "exc"), ("b", place, "for ever"))
    assert (type(given).__name__, str(given)) == ("OddInput", "used up")
    assert type(none).__name__ == "MaxRetriesExceededError"


@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_is_ignored_or_rejected_is_answered(app: Celery, client: redis.Redis, place: str) -> None:
    ignored, rejected, requeued = ask(
        app, client, ("a", place, "ignore"), ("b", place, "reject"), ("c", place, "requeue")
    )
    assert type(ignored).__name__ == "JobRejected"
    assert "Ignore" in str(ignored)
    assert type(rejected).__name__ == "Reject"
    assert requeued == ["c", 1]


def test_a_chord_with_a_part_that_is_ignored_fails(app: Celery) -> None:
    result = chord([app.tasks["asks"].s("a"), app.tasks["asks"].s("b", "slot", "ignore")])(app.tasks["plain"].s())
    with pytest.raises(Exception, match="raised Ignore"):
        result.get(timeout=WAIT)


def test_a_plain_task_that_rejects_its_message_sees_that_it_is_delivered_again(app: Celery) -> None:
    results = [app.tasks["rejecting"].delay(number) for number in range(3)]
    assert [result.get(timeout=WAIT) for result in results] == [0, 1, 2]
