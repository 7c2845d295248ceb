"""One item's failure is that item's alone, and whatever comes in, the worker goes on."""

from __future__ import annotations

import json

import pytest
import redis
from celery import Celery, uuid
from celery.exceptions import NotRegistered

from tests.support.callers import unsettled
from tests.support.models import BATCHES
from tests.support.waiting import wait_until
from tests.support.workers import Worker

FULL = 16  # every task's max_batch_size: that many calls of `picky` are one batch

WAIT = 15.0


def test_a_bad_item_fails_alone_with_its_own_exception(app: Celery, client: redis.Redis) -> None:
    results = list(app.tasks["picky"].delay_many([*range(FULL - 2), "bad", "slot"]))
    assert [result.get(timeout=WAIT) for result in results[:-2]] == list(range(FULL - 2))
    for result, message in zip(results[-2:], ("bad", "slot"), strict=True):
        with pytest.raises(Exception, match=message) as caught:
            result.get(timeout=WAIT)
        assert type(caught.value).__name__ == "OddInput"
        assert "OddInput" in result.traceback
    assert json.loads(client.lrange(BATCHES, 0, 0)[0]) == [*range(FULL - 2), "bad", "slot"]


QUOTED = ["illegal instruction", "out of memory", "device-side assert", "CUDA error: an illegal memory access"]


def test_a_callers_text_that_a_model_quotes_in_its_error_fails_that_call_and_nothing_else(app: Celery) -> None:
    words = [f"word {number}" for number in range(200)]
    for place, quoted in zip(range(25, 200, 50), QUOTED, strict=True):
        words[place] = quoted
    for word, result in zip(words, app.tasks["quotes"].delay_many(words), strict=True):
        if word in QUOTED:
            with pytest.raises(KeyError, match=word):
                result.get(timeout=WAIT)
        else:
            assert result.get(timeout=WAIT) == int(word.split()[1])
    (figures,) = app.control.broadcast("batching", reply=True, limit=1, timeout=WAIT)
    (told,) = figures.values()
    assert told["tasks"]["quotes"]["figures"]["token_ceiling"] is None


def test_too_few_outputs_fail_every_job_and_none_waits_for_ever(app: Celery) -> None:
    for result in app.tasks["short"].delay_many(range(3)):
        with pytest.raises(Exception, match="0 outputs for 1 items") as caught:
            result.get(timeout=WAIT)
        assert type(caught.value).__name__ == "OutputMismatch"


def test_arguments_that_do_not_fit_fail_alone(app: Celery) -> None:
    good = [app.send_task("texts", [f"text {index}"]) for index in range(4)]
    bad = [
        app.send_task("texts", []),
        app.send_task("texts", ["a", "b", "c"]),
        app.send_task("texts", ["a"], {"nonsense": 1}),
        app.send_task("texts", [7]),
        app.send_task("add", [1]),
    ]
    assert [result.get(timeout=WAIT) for result in good] == [f"TEXT {index}!" for index in range(4)]
    for result in bad:
        with pytest.raises((TypeError, AttributeError)):
            result.get(timeout=WAIT)


def test_preprocess_fails_alone(app: Celery) -> None:
    results = list(app.tasks["prepared"].delay_many([1, "bad", 2]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == [1, 2]
    with pytest.raises(Exception, match="bad in preprocess"):
        results[1].get(timeout=WAIT)


def test_a_model_that_raises_system_exit_fails_its_job_and_not_the_worker(app: Celery) -> None:
    results = list(app.tasks["leaver"].delay_many(["a", "leave", "b"]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == ["a", "b"]
    with pytest.raises(Exception, match="SystemExit"):
        results[1].get(timeout=WAIT)


def test_a_result_that_json_cannot_carry_fails_alone(app: Celery) -> None:
    results = list(app.tasks["unserializable"].delay_many(["a", "bad", "b"]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == ["a", "b"]
    with pytest.raises(Exception, match="not JSON serializable"):
        results[1].get(timeout=WAIT)


def test_an_unknown_task_fails_and_the_worker_goes_on(app: Celery) -> None:
    unknown = app.send_task("nobody_knows_me", [1])
    assert app.tasks["echo"].delay(1).get(timeout=WAIT) == 1
    with pytest.raises(NotRegistered):
        unknown.get(timeout=WAIT)


def test_a_priority_that_is_a_string_is_served_like_any_other(app: Celery, worker: Worker) -> None:
    """kombu takes such a priority, and so do stock workers."""
    picky = app.tasks["picky"]  # waits until all are in
    results = [picky.apply_async((index,), priority=("3", 3)[index % 2]) for index in range(FULL)]
    wait_until(lambda: not worker.alive() or results[0].ready(), "it has run, or broken down")
    assert worker.alive(), worker.log[-2000:]
    assert [result.get(timeout=WAIT) for result in results] == list(range(FULL))


@pytest.mark.parametrize("value", ["leave", "leave late"], ids=["preprocess", "postprocess"])
def test_a_hook_that_raises_system_exit_fails_its_job_and_not_the_worker(app: Celery, value: str) -> None:
    results = list(app.tasks["texts"].delay_many(["a", value, "b"]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == ["A!", "B!"]
    with pytest.raises(Exception, match="SystemExit"):
        results[1].get(timeout=WAIT)


def test_a_model_that_runs_out_of_memory_fails_its_job_which_is_acknowledged(app: Celery, client: redis.Redis) -> None:
    results = list(app.tasks["greedy"].delay_many(["a", "too much", "b"]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == ["a", "b"]
    with pytest.raises(MemoryError):
        results[1].get(timeout=WAIT)
    wait_until(lambda: unsettled(client) == {}, "no message is held any more")


def test_a_chord_whose_keys_are_of_another_type_keeps_nobody_else_waiting(app: Celery, client: redis.Redis) -> None:
    """As in a rolling deploy that changes `result_chord_ordered` while a chord is under way."""
    echo = app.tasks["echo"]
    group = uuid()
    client.set(f"celery-taskset-meta-{group}.j", "no set", ex=600)
    parts = [
        echo.apply_async((index,), group_id=group, group_index=index, chord=echo.si("callback")) for index in range(3)
    ]
    others = echo.delay_many(range(100))
    assert others.get(timeout=WAIT) == [*range(100)]
    for part in parts:
        with pytest.raises(Exception, match="WRONGTYPE"):
            part.get(timeout=WAIT)
    wait_until(lambda: unsettled(client) == {}, "no message is held any more")
    client.delete(f"celery-taskset-meta-{group}.j")
