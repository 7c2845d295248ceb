"""Sorting claims: what becomes a job of this claim, what goes back, and when no more is claimed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from batchery.configs import WorkerOptions
from batchery.worker import tuning
from batchery.worker.broker import Claim, Queue
from batchery.worker.consumer.compat.context import WorkerContext
from batchery.worker.consumer.fast.sort import ClaimSorter

from tests.support.envelopes import message
from tests.support.messages import ACCEPT

QUEUE = Queue("celery")


class Bench:
    """A sorter, and what it is connected to. Calls on the hub wait until `turn`."""

    def __init__(self, **options: Any) -> None:
        self.given_back: list[Claim] = []
        self.bridged: list[Claim] = []
        self._calls: list[Callable[[], object]] = []
        leases = SimpleNamespace(server_time=0.0, give_back_soon=self.given_back.append)
        bridge = SimpleNamespace(hand_over=self._hand_over, build_request=None)
        context = WorkerContext(
            consumer=SimpleNamespace(accept=ACCEPT, disable_rate_limits=True),
            tasks={"echo": SimpleNamespace()},  # type: ignore[dict-item]
            options=WorkerOptions(**options),
            leases=leases,  # type: ignore[arg-type]
            hub=SimpleNamespace(call=self._call),  # type: ignore[arg-type]
            retry=None,  # type: ignore[arg-type]
            intake=None,  # type: ignore[arg-type]
        )
        events = SimpleNamespace(received=lambda requests: None)
        self.sorter = ClaimSorter(context, bridge, events)  # type: ignore[arg-type]

    def sort(self, *messages: bytes, max_bytes: int = 10**6) -> list[int]:
        """The numbers of the messages that become jobs."""
        claims = [Claim(f"{number}", QUEUE, raw, number, size=len(raw)) for number, raw in enumerate(messages)]
        jobs, _ = self.sorter.sort(claims, max_bytes)
        return [job.seq for job in jobs]

    def turn(self) -> None:
        for call in self._calls:
            call()
        self._calls.clear()

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        self._calls.append(lambda: function(*args))

    def _hand_over(self, claims: list[Claim]) -> set[tuple[str, str]]:
        self.bridged += claims
        return {("celery", "")}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def compressed(size: int) -> bytes:
    body = zlib.compress(b'[["' + b"x" * size + b'"], {}, {}]')
    return message(body, compression="application/x-gzip")


def test_the_decompressed_bytes_of_a_claim_are_bounded_together_and_the_rest_goes_back_in_order(bench: Bench) -> None:
    assert bench.sort(*[compressed(400_000)] * 4) == [0, 1]
    assert [claim.seq for claim in bench.given_back] == [2, 3]


def test_what_comes_behind_a_message_that_does_not_fit_goes_back_too(bench: Bench) -> None:
    """Otherwise the large one would be overtaken for ever."""
    assert bench.sort(compressed(400_000), compressed(700_000), message()) == [0]
    assert [claim.seq for claim in bench.given_back] == [1, 2]


def test_one_message_alone_fits_whatever_its_size(bench: Bench) -> None:
    assert bench.sort(compressed(5_000_000), compressed(10)) == [0]
    assert bench.sort(compressed(tuning.MAX_BODY_BYTES + 1)) == []
    assert len(bench.bridged) == 1, "beyond its own limit it is left to the bridge, which refuses it"


def test_messages_that_are_not_compressed_are_bounded_by_the_claim_itself(bench: Bench) -> None:
    assert bench.sort(*[message()] * 5, max_bytes=1) == [0, 1, 2, 3, 4]


def test_the_event_loop_is_behind_until_it_has_seen_the_jobs_that_were_announced() -> None:
    bench = Bench(held_max_bytes=8 * 10 * (tuning.HUB_JOB_BYTES + len(message())))
    for _ in range(11):
        assert not bench.sorter.hub_is_behind
        bench.sort(message())
    assert bench.sorter.hub_is_behind
    bench.turn()
    assert not bench.sorter.hub_is_behind
