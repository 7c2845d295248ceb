"""What can become of a job between call and result: expiry, ETA, retries, revokes, rate limits."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError

from tests.support.callers import held_back, unsettled
from tests.support.gates import Gate
from tests.support.models import BATCHES, SEEN
from tests.support.waiting import wait_until

WAIT = 15.0


def ran(client: redis.Redis) -> list[Any]:
    """All items that ran, in order."""
    return [value for batch in client.lrange(BATCHES, 0, -1) for value in json.loads(batch)]


def wait_until_claimed(client: redis.Redis, count: int) -> None:
    wait_until(lambda: sum(unsettled(client).values()) == count, f"{count} messages are claimed", WAIT)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=0.5)


def wait_until_past(moment: datetime) -> None:
    wait_until(lambda: datetime.now(UTC) > moment, "the moment is past")


# --- Expiry -----------------------------------------------------------------------------------------------------------


def test_a_job_that_expires_while_it_waits_in_the_worker_is_revoked(
    app: Celery, client: redis.Redis, gate: Gate
) -> None:
    running = app.tasks["gated"].delay(gate.path, 0)
    gate.wait_for_model()
    moment = soon()
    doomed = app.tasks["echo"].apply_async(("doomed",), expires=moment)
    others = [app.tasks["echo"].apply_async((value,), expires=3600) for value in "ab"]
    wait_until_claimed(client, 4)
    wait_until_past(moment)
    gate.open()
    with pytest.raises(TaskRevokedError, match="expired"):
        doomed.get(timeout=WAIT)
    assert doomed.state == "REVOKED"
    assert [result.get(timeout=WAIT) for result in (running, *others)] == [0, "a", "b"]
    assert "doomed" not in ran(client)


def test_a_job_that_expires_in_the_queue_is_revoked(app: Celery, client: redis.Redis) -> None:
    moment = soon()
    with held_back(app, client):
        doomed = app.tasks["echo"].apply_async(("doomed",), expires=moment)
        lasting = app.tasks["echo"].apply_async(("lasting",), expires=3600.0)
        wait_until_past(moment)
    with pytest.raises(TaskRevokedError, match="expired"):
        doomed.get(timeout=WAIT)
    assert lasting.get(timeout=WAIT) == "lasting"
    assert ran(client) == ["lasting"]


# --- ETA --------------------------------------------------------------------------------------------------------------


def test_a_countdown_is_waited_for_and_holds_up_nobody(app: Celery, client: redis.Redis) -> None:
    called_at = time.time()
    later = app.tasks["echo"].apply_async(("later",), countdown=1)
    at = app.tasks["echo"].apply_async(("at",), eta=datetime.now(UTC) + timedelta(seconds=1))
    assert app.tasks["echo"].delay("now").get(timeout=WAIT) == "now"
    assert [later.get(timeout=WAIT), at.get(timeout=WAIT)] == ["later", "at"]
    for result in (later, at):
        assert result.date_done.timestamp() >= called_at + 1
    assert ran(client)[0] == "now"


def test_a_job_can_be_revoked_while_its_eta_is_ahead(app: Celery, client: redis.Redis) -> None:
    doomed = app.tasks["echo"].apply_async(("doomed",), countdown=3)
    app.control.revoke(doomed.id, reply=True, limit=1)
    with pytest.raises(TaskRevokedError):
        doomed.get(timeout=WAIT)
    # As in Celery, its message is kept until then.
    wait_until(lambda: not unsettled(client) and not client.exists("celery"), "it is settled", WAIT)
    assert ran(client) == []


# --- Retries ----------------------------------------------------------------------------------------------------------


def test_autoretry_sends_each_failed_job_again_by_itself(app: Celery) -> None:
    values = ["flaky-a", "ok-b", "flaky-c", "ok-d"]
    results = list(app.tasks["flaky"].delay_many(values))
    assert [result.get(timeout=WAIT) for result in results] == [
        [value, 3 if value.startswith("flaky") else 1] for value in values
    ]


def test_retries_that_are_used_up_end_in_the_jobs_own_exception(app: Celery) -> None:
    results = list(app.tasks["hopeless"].delay_many(["a", "b"]))
    for result, name in zip(results, "ab", strict=True):
        with pytest.raises(Exception, match=name) as caught:
            result.get(timeout=WAIT)
        assert type(caught.value).__name__ == "Flaky"
        assert result.state == "FAILURE"


def test_a_retry_raised_in_preprocess_is_a_retry(app: Celery, client: redis.Redis) -> None:
    results = [app.tasks["prepared"].delay(value) for value in ("retry-a", "b", "retry-c", "bad")]
    assert [result.get(timeout=WAIT) for result in results[:3]] == ["retry-a", "b", "retry-c"]
    assert [client.get(f"test:runs:retry-{name}") for name in "ac"] == [b"3", b"3"]
    with pytest.raises(Exception, match="bad in preprocess"):
        results[3].get(timeout=WAIT)


# --- Results nobody wants ---------------------------------------------------------------------------------------------


def test_an_ignored_result_is_not_stored(app: Celery, client: redis.Redis) -> None:
    quiet = app.tasks["quiet"].delay("by the task")
    asked = app.tasks["echo"].apply_async(("by the call",), ignore_result=True)
    wanted = app.tasks["quiet"].apply_async(("after all",), ignore_result=False)
    assert wanted.get(timeout=WAIT) == "after all"
    wait_until(lambda: not unsettled(client) and not client.exists("celery"), "all are settled", WAIT)
    assert [client.exists(app.backend.get_key_for_task(result.id)) for result in (quiet, asked, wanted)] == [0, 0, 1]
    assert ran(client) == ["by the call"]
    assert {value for entry in client.lrange(SEEN, 0, -1) for value in json.loads(entry)[1]} == {
        "by the task",
        "after all",
    }


# --- Revokes ----------------------------------------------------------------------------------------------------------


def test_a_job_that_is_revoked_while_it_waits_in_the_worker_does_not_run(
    app: Celery, client: redis.Redis, gate: Gate
) -> None:
    running = app.tasks["gated"].delay(gate.path, 0)
    gate.wait_for_model()
    doomed, other = app.tasks["echo"].delay("doomed"), app.tasks["echo"].delay("other")
    wait_until_claimed(client, 3)
    app.control.revoke(doomed.id, reply=True, limit=1)
    gate.open()
    with pytest.raises(TaskRevokedError, match="revoked"):
        doomed.get(timeout=WAIT)
    assert [running.get(timeout=WAIT), other.get(timeout=WAIT)] == [0, "other"]
    assert "doomed" not in ran(client)


def test_a_job_that_is_revoked_in_the_queue_does_not_run(app: Celery, client: redis.Redis) -> None:
    with held_back(app, client):
        doomed, other = app.tasks["echo"].delay("doomed"), app.tasks["echo"].delay("other")
        app.control.revoke(doomed.id, reply=True, limit=1)
    with pytest.raises(TaskRevokedError, match="revoked"):
        doomed.get(timeout=WAIT)
    assert other.get(timeout=WAIT) == "other"
    assert ran(client) == ["other"]


def test_jobs_can_be_revoked_by_a_stamp_in_the_queue(app: Celery, client: redis.Redis) -> None:
    with held_back(app, client):
        doomed = app.tasks["echo"].apply_async(("doomed",), stamped_headers=["tenant"], tenant="b")
        app.control.revoke_by_stamped_headers({"tenant": "b"}, reply=True, limit=1)
    with pytest.raises(TaskRevokedError, match="revoked"):
        doomed.get(timeout=WAIT)
    assert ran(client) == []


def test_jobs_can_be_revoked_by_a_stamp_while_they_wait(app: Celery, client: redis.Redis, gate: Gate) -> None:
    running = app.tasks["gated"].delay(gate.path, 0)
    gate.wait_for_model()
    doomed = app.tasks["echo"].apply_async(("doomed",), stamped_headers=["tenant"], tenant="a")
    other = app.tasks["echo"].delay("other")
    wait_until_claimed(client, 3)
    app.control.revoke_by_stamped_headers({"tenant": "a"}, reply=True, limit=1)
    gate.open()
    assert [running.get(timeout=WAIT), other.get(timeout=WAIT)] == [0, "other"]
    with pytest.raises(TaskRevokedError, match="revoked"):
        doomed.get(timeout=WAIT)
    assert "doomed" not in ran(client)


# --- Rate limits ------------------------------------------------------------------------------------------------------


def test_a_rate_limited_task_runs_at_its_rate_and_holds_up_no_other(app: Celery) -> None:
    app.control.rate_limit("echo", "20/s", reply=True, limit=1)
    try:
        called_at = time.time()
        limited = [app.tasks["echo"].delay(index) for index in range(11)]
        others = app.tasks["add"].delay_many([(index, 1) for index in range(20)])
        assert others.get(timeout=WAIT) == list(range(1, 21))
        assert [result.get(timeout=WAIT) for result in limited] == list(range(11))
        # The first finds a token in the bucket, each of the others waits for one.
        assert max(result.date_done.timestamp() for result in limited) >= called_at + 0.4
    finally:
        app.control.rate_limit("echo", 0, reply=True, limit=1)
    assert app.tasks["echo"].delay_many(range(100)).get(timeout=WAIT) == list(range(100))
