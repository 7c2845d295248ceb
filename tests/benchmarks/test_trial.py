"""How the demo times one worker's answers, and what it says when some never come."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from benchmarks.trial import Trial, answer_all, arrivals
from tests.support.waiting import ServiceError, wait_until


def test_arrivals_are_noted_when_results_are_published(redis_url: str, redis_client: redis.Redis) -> None:
    with arrivals(redis_url) as arrived:
        before = time.perf_counter()
        redis_client.publish("celery-task-meta-a", "{}")
        wait_until(lambda: "a" in arrived.times, "the arrival", timeout=10)
        assert before < arrived.times["a"] < time.perf_counter()


def test_a_trial_counts_from_the_first_text_sent_to_the_last_result() -> None:
    trial = Trial(sent=[0.0, 1.0], answered=[4.0, 2.0], vectors=None)  # type: ignore[arg-type]
    assert trial.tasks_per_s == 0.5
    assert [trial.latency_ms(percent) for percent in (50, 100)] == [1000, 4000]


class Answering:
    """A task whose calls are answered at once, except those that are to be lost."""

    def __init__(self, url: str, lost: frozenset[str] = frozenset()) -> None:
        self.client: redis.Redis = redis.Redis.from_url(url)
        self.lost = lost

    def delay(self, text: str) -> Any:
        if text not in self.lost:
            threading.Thread(target=self.client.publish, args=(f"celery-task-meta-{text}", "{}")).start()
        return SimpleNamespace(id=text, get=lambda timeout: [float(len(text)), 0.0])


def worker(alive: bool) -> Any:
    return SimpleNamespace(alive=lambda: alive, log="the last words")


def test_every_answer_stands_at_its_text(redis_url: str) -> None:
    counted: list[int] = []
    trial = answer_all(redis_url, worker(alive=True), Answering(redis_url), ["a", "bb", "ccc"], counted.append)
    assert trial.vectors[:, 0].tolist() == [1, 2, 3]
    assert all(sent < answered for sent, answered in zip(trial.sent, trial.answered, strict=True))
    assert counted[-1] == 3


@pytest.mark.parametrize(("alive", "what"), [(False, "died"), (True, "is stuck")])
def test_a_missing_answer_is_an_error_that_says_how_many(redis_url: str, alive: bool, what: str) -> None:
    task = Answering(redis_url, lost=frozenset({"b"}))
    with pytest.raises(ServiceError, match=rf"1 of 2 .* {what}:\nthe last words"):
        answer_all(redis_url, worker(alive), task, ["a", "b"], stalled_after_s=0.5)
