"""Retries: what Redis refuses is tried again until it succeeds, or until the worker stops."""

from __future__ import annotations

import threading
import time
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


def test_once_tries_once_and_pauses_after_a_failure() -> None:
    tried: list[int] = []
    retry = RedisRetry()
    assert retry.once("ask", lambda: "done") == "done"
    assert retry.once("ask", fails(9, tried)) is None
    assert len(tried) == 1


@pytest.mark.parametrize("again", [RedisRetry.until_stopped, RedisRetry.while_transient, RedisRetry.once])
def test_pauses_grow_to_the_longest_and_differ_between_workers(
    monkeypatch: pytest.MonkeyPatch, again: Callable[..., object]
) -> None:
    pauses: list[float] = []
    retry = RedisRetry()

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return False

    monkeypatch.setattr(retry._stopped, "wait", wait)
    action = fails(2000, [])  # more than half an hour
    if again is RedisRetry.once:
        while retry.once("ask", action) is None:
            pass
    else:
        again(retry, action)
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, *[2.0] * 1995]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(set(pauses[10:])) > 10


def test_the_log_says_once_that_redis_is_away_and_once_that_it_is_back(
    warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = RedisRetry()
    monkeypatch.setattr(retry._stopped, "wait", lambda _: False)
    monkeypatch.setattr(tuning, "OUTAGE_S", 0.0)
    threads = [threading.Thread(target=retry.until_stopped, args=(fails(50, []),)) for _ in range(5)]
    retry.outage.failed("leases", redis.ConnectionError("it is away"))
    retry.outage.failed("leases", redis.ConnectionError("it is away"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(warnings.messages) == 1
    assert warnings.messages[0].startswith("Redis cannot be used")
    assert retry.outage.seconds > 0
    retry.outage.succeeded("leases")
    assert retry.outage.seconds == 0
    assert [message.partition(",")[0] for message in warnings.messages[1:]] == ["Redis can be used again"]


def test_a_connection_that_is_soon_replaced_is_no_outage(warnings: pytest.LogCaptureFixture) -> None:
    retry = RedisRetry()
    assert retry.until_stopped(fails(1, [])) == "done"
    assert retry.outage.seconds == 0
    assert not warnings.messages


def test_a_long_outage_is_told_again(warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    retry, now = RedisRetry(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(300):
        retry.outage.failed("claim", redis.ConnectionError("it is away"))
        now[0] += 1.0
    assert len(warnings.messages) == 5


def test_an_error_that_is_not_redis_own_is_not_retried() -> None:
    def action() -> None:
        raise KeyError("a mistake")

    with pytest.raises(KeyError):
        RedisRetry().until_stopped(action)
    with pytest.raises(KeyError):
        RedisRetry().once("ask", action)


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
        (redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"), True),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), True),
        (redis.exceptions.ClusterDownError("the cluster is down"), True),
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


@pytest.mark.parametrize("answer", ["NOREPLICAS Not enough good replicas to write.", "BUSY Redis is busy"])
def test_a_passing_state_is_told_from_the_answer_to_a_command_of_a_pipeline(answer: str) -> None:
    error = redis.ResponseError(answer)
    pipeline = redis.Redis().pipeline()
    pipeline.annotate_exception(error, 1, ["SETEX", "key", "10", "ERR a caller's own text"])  # type: ignore[no-untyped-call]
    assert not str(error).startswith(answer)
    assert is_transient(error)
