"""Copies through pinned buffers, on a machine without a GPU: a stand-in for torch.cuda notes what is waited for."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from batchery.batchers.forward import Collated
from batchery.worker.engine.staging import Staging


class FakeEvent:
    """An event of the copying stream; its number tells which batch it belongs to."""

    made = 0

    def __init__(self, synchronized: list[int]) -> None:
        FakeEvent.made += 1
        self.number = FakeEvent.made
        self._synchronized = synchronized

    def record(self, stream: object) -> None:
        """Do nothing, because a CPU copies at once."""

    def synchronize(self) -> None:
        self._synchronized.append(self.number)


@pytest.fixture
def synchronized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the batches whose arrival somebody waited for."""
    numbers: list[int] = []
    FakeEvent.made = 0

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, pin_memory=False: empty(size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda: FakeEvent(numbers))
    return numbers


def batch_of(*tensors: Any) -> Collated:
    return Collated(tuple(tensors), None, 1, 1)


def test_inputs_arrive_as_they_were(synchronized: list[int]) -> None:
    staging = Staging("cpu")
    first, second = torch.arange(6).reshape(2, 3), torch.tensor([[0.5], [1.5]])
    sent = staging.send(batch_of(first, second))
    assert torch.equal(sent.batch.inputs[0], first)
    assert torch.equal(sent.batch.inputs[1], second)
    assert sent.batch.inputs[0].dtype == first.dtype


def test_a_buffer_is_written_again_only_after_its_last_batch_has_arrived(synchronized: list[int]) -> None:
    staging = Staging("cpu")
    waited = []
    for number in range(4):
        staging.send(batch_of(torch.full((3,), number)))
        waited.append(list(synchronized))
    assert waited == [[], [], [1], [1, 2]]
