"""Calls from other threads run on the hub's thread: in order, and as seldom as that may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from batchery.worker.consumer.compat.hub import HubCalls
from celery.exceptions import WorkerShutdown


class FakeHub:
    """Keeps callbacks until a test runs them."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], Any]] = []
        self.later: list[Callable[[], Any]] = []

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], Any]) -> None:
        assert delay > 0
        self.later.append(callback)

    def turn(self) -> None:
        """One turn of the hub: all callbacks, and those whose time has come."""
        callbacks = [*self.soon, *self.later]
        self.soon, self.later = [], []
        for callback in callbacks:
            callback()


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture
def calls(hub: FakeHub) -> HubCalls:
    return HubCalls(hub)


def test_calls_run_in_order_in_one_callback_of_the_hub(hub: FakeHub, calls: HubCalls) -> None:
    ran: list[int] = []
    for number in range(5):
        calls.call(ran.append, number)
    assert (len(hub.soon), ran) == (1, [])
    hub.turn()
    assert ran == [*range(5)]


def test_under_load_the_next_calls_wait_for_the_pause(hub: FakeHub, calls: HubCalls) -> None:
    ran: list[str] = []
    calls.call(ran.append, "first")
    hub.turn()
    calls.call(ran.append, "second")
    assert (len(hub.soon), len(hub.later)) == (0, 1)
    hub.turn()
    assert ran == ["first", "second"]
    hub.turn()
    assert not hub.later, "the hub sleeps once there are no calls"


def test_an_urgent_call_does_not_wait_for_the_pause(hub: FakeHub, calls: HubCalls) -> None:
    ran: list[str] = []
    calls.call(ran.append, "first")
    hub.turn()
    calls.call(ran.append, "second")
    calls.call(ran.append, "urgent", soon=True)
    assert len(hub.soon) == 1
    hub.soon[0]()
    assert ran == ["first", "second", "urgent"]


def test_a_paused_hub_sleeps_until_it_is_resumed_or_a_call_is_urgent(hub: FakeHub, calls: HubCalls) -> None:
    ran: list[str] = []
    calls.pause()
    calls.call(ran.append, "waits")
    assert not hub.soon
    calls.resume()
    hub.turn()
    assert ran == ["waits"]
    hub.turn()
    calls.pause()
    calls.call(ran.append, "waits too")
    calls.call(ran.append, "urgent", soon=True)
    hub.turn()
    assert ran == ["waits", "waits too", "urgent"]


def test_a_call_that_fails_keeps_no_other_from_running(
    hub: FakeHub, calls: HubCalls, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    calls.call(int, "no number")
    calls.call(ran.append, "next")
    hub.turn()
    assert ran == ["next"]
    assert "A call on the hub failed" in caplog.text


def test_calls_go_on_after_the_hub_has_forgotten_its_callbacks(hub: FakeHub, calls: HubCalls) -> None:
    ran: list[str] = []
    calls.call(ran.append, "first")
    hub.soon.clear()
    calls.tick()
    assert ran == ["first"]
    calls.call(ran.append, "second")
    hub.turn()
    assert ran == ["first", "second"]


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), MemoryError("m")], ids=repr)
def test_a_call_that_would_end_the_thread_keeps_no_other_from_running(
    hub: FakeHub, calls: HubCalls, error: BaseException
) -> None:
    def fails() -> None:
        raise error

    ran: list[str] = []
    calls.call(fails)
    calls.call(ran.append, "behind")
    assert calls.run()
    assert ran == ["behind"]


def test_calls_behind_one_that_shuts_the_worker_down_run_when_it_stops(hub: FakeHub, calls: HubCalls) -> None:
    def fails() -> None:
        raise WorkerShutdown

    ran: list[str] = []
    calls.call(fails)
    calls.call(ran.append, "first")
    calls.call(ran.append, "second")
    with pytest.raises(WorkerShutdown):
        calls.run()
    calls.run()
    assert ran == ["first", "second"]
