"""Retries: what Redis refuses is tried again until it succeeds, or until the worker stops."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import redis
from batchery.worker import tuning
from batchery.worker.broker.retry import RedisRetry, is_transient


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    return caplog


def fails(times: int, tried: list[int], then: Callable[[], None] = lambda: None) -> Callable[[], str]:
    """An action that Redis refuses so often."""

    def action() -> str:
        tried.append(1)
        if len(tried) <= times:
            then()
            raise redis.ConnectionError("it is away")
        return "done"

    return action


@pytest.mark.parametrize("times", [0, 1, 2])
def test_an_action_is_repeated_until_it_succeeds(times: int) -> None:
    tried: list[int] = []
    assert RedisRetry().until_stopped(fails(times, tried)) == "done"
    assert len(tried) == times + 1


def test_stop_ends_a_pause_at_once_and_gives_the_action_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchery.worker.broker.retry._BACKOFF.compute", lambda failures: 60.0)
    retry, tried, failed = RedisRetry(), list[int](), threading.Event()
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(retry.until_stopped(fails(9, tried, failed.set))))
    thread.start()
    assert failed.wait(10)
    retry.stop()
    thread.join(10)
    assert answers == [None]
    assert len(tried) == 1


def test_after_stop_an_action_is_tried_once() -> None:
    retry = RedisRetry()
    retry.stop()
    assert retry.until_stopped(lambda: "done") == "done"
    tried: list[int] = []
    assert retry.until_stopped(fails(9, tried)) is None
    assert len(tried) == 1


def test_once_tries_once_and_pauses_after_a_failure(warnings: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []
    retry = RedisRetry()
    assert retry.once(lambda: "done") == "done"
    assert retry.once(fails(9, tried)) is None
    assert len(tried) == 1
    assert warnings.messages == ["Redis: it is away. Trying again until it answers, every 2 s at most."]


def test_the_log_has_one_line_when_redis_fails_and_one_when_it_answers_again(
    warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchery.worker.broker.retry._BACKOFF.compute", lambda failures: 0.0)
    retry = RedisRetry()
    for _ in range(5):  # it comes and goes
        retry.until_stopped(fails(9, []))
        retry.once(fails(9, []))
        retry.once(lambda: "done")
    lines = [record.message for record in warnings.records if record.levelname == "WARNING"]
    assert [line.partition(":")[0] for line in lines] == ["Redis", "Redis answers again."]
    monkeypatch.setattr(tuning, "RETRY_LINE_S", 0.0)
    retry.until_stopped(fails(9, []))
    assert len([record for record in warnings.records if record.levelname == "WARNING"]) == 4


def test_pauses_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    retry = RedisRetry()

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return False

    monkeypatch.setattr(retry._stopped, "wait", wait)
    retry.until_stopped(fails(7, []))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_an_error_that_is_not_redis_own_is_not_retried() -> None:
    def action() -> None:
        raise KeyError("a mistake")

    for try_action in (RedisRetry().until_stopped, RedisRetry().once):
        with pytest.raises(KeyError):
            try_action(action)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (redis.ConnectionError("gone"), True),
        (redis.TimeoutError(), True),
        (redis.exceptions.OutOfMemoryError("command not allowed"), True),
        (redis.ReadOnlyError("a replica"), True),
        (redis.BusyLoadingError("loading"), True),
        (redis.ResponseError("BUSY Redis is busy running a script"), True),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write. script: on @user_script:1."), True),
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), True),
        (redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), False),
        (redis.ResponseError("ACL failure in script: User u has no permissions"), False),
        (redis.exceptions.NoPermissionError("no permissions"), False),
        (redis.ResponseError("ERR value is not a valid float. The caller wrote: LOADING"), False),
    ],
    ids=repr,
)
def test_a_refusal_is_told_from_a_passing_state(error: redis.RedisError, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_refusal_is_raised_at_once() -> None:
    tries = []

    def refused() -> None:
        tries.append(1)
        raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        RedisRetry().while_transient(refused)
    assert len(tries) == 1
