"""A message on which nobody works any more goes back, and a worker of which a thread has died ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from batchery.batchers import Job
from batchery.worker.broker import Claim, Queue
from batchery.worker.consumer.compat import ownership
from batchery.worker.consumer.compat.ownership import Ownership, forgetting_failures
from celery.worker import state


class Worker:
    """Stands for a worker that holds one message."""

    def __init__(self) -> None:
        self.claim = Claim("tag", Queue("q"), b"", 0)
        self.jobs: set[Job] = set()
        self.owned: set[str] = set()
        self.buffered: set[str] = set()
        self.given_back: list[Claim] = []
        self.dead_thread: str | None = None
        context: Any = SimpleNamespace(leases=self, intake=SimpleNamespace(scheduler=self), hub=None)
        bridge: Any = self
        self.check = Ownership(context, bridge, lambda: self.dead_thread).check

    def held(self) -> list[Claim]:
        return [self.claim]

    def give_back_soon(self, claim: Claim) -> None:
        self.given_back.append(claim)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_message_that_has_no_owner_twice_goes_back(worker: Worker) -> None:
    worker.check()
    assert worker.given_back == []
    worker.check()
    assert worker.given_back == [worker.claim]


@pytest.mark.parametrize("owner", ["engine", "celery", "buffer"])
def test_a_message_that_has_an_owner_stays(worker: Worker, owner: str) -> None:
    worker.check()
    if owner == "engine":
        worker.jobs.add(Job("id", "task", (), {}, reply=SimpleNamespace(claim=worker.claim), enqueued_at=0.0))
    worker.owned = {"tag"} if owner == "celery" else set()
    worker.buffered = {"tag"} if owner == "buffer" else set()
    for _ in range(3):
        worker.check()
    assert worker.given_back == []


def test_a_thread_that_has_died_ends_the_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(ownership, "end_worker", ended.append)
    worker.check()
    assert not ended
    worker.dead_thread = "batchery-lease"
    worker.check()
    assert len(ended) == 1
    assert "batchery-lease has died" in caplog.text


def test_celery_forgets_a_request_that_could_not_be_taken() -> None:
    class Request:
        id = "never-taken"

    request: Any = Request()
    state.requests[request.id] = request

    def take(request: Any) -> None:
        raise KeyError(request.id)

    with pytest.raises(KeyError):
        forgetting_failures(take)(request)
    assert request.id not in state.requests
