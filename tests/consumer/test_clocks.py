"""Clocks that are off: a caller's, the server's and the worker's need not agree."""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import Any

import pytest
from batchery.batchers import Job
from batchery.worker.broker import Claim, Queue
from batchery.worker.consumer.fast.sort import to_job
from batchery.worker.consumer.wire.decode import decode

from tests.support.envelopes import message
from tests.support.messages import ACCEPT

HOUR = 3600.0
#: The server's clock, and the engine's.
SERVER_TIME, NOW = 1_800_000_000.0, 50.0


def job(**headers: Any) -> Job:
    raw = message(json.dumps([[1], {}, {}]).encode(), **headers)
    call = decode(raw, ACCEPT)
    assert call is not None
    request: Any = None
    return to_job(Claim("tag", Queue("celery"), raw, 7), call, request, NOW, SERVER_TIME)


@pytest.fixture(autouse=True, params=[HOUR, -HOUR], ids=["worker ahead", "worker behind"])
def _a_worker_whose_clock_is_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: SERVER_TIME + request.param)


def test_a_job_has_waited_as_long_as_its_caller_and_the_server_agree() -> None:
    assert job(batchery_enqueued_at=SERVER_TIME - 3).enqueued_at == NOW - 3


def test_a_caller_ahead_of_the_server_has_just_sent_its_job() -> None:
    assert job(batchery_enqueued_at=SERVER_TIME + HOUR).enqueued_at == NOW


def test_a_caller_behind_the_server_cannot_be_told_from_one_whose_job_waited() -> None:
    assert job(batchery_enqueued_at=SERVER_TIME - HOUR).enqueued_at == NOW - HOUR


def test_a_caller_that_does_not_say_has_sent_its_job_when_it_was_claimed() -> None:
    assert job().enqueued_at == NOW


def test_a_job_expires_by_the_servers_clock() -> None:
    expires = dt.datetime.fromtimestamp(SERVER_TIME + 60, dt.UTC)
    assert job(expires=expires.isoformat()).deadline == NOW + 60
