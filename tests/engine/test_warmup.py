"""Warm-up: examples are run and measured before work is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchery.batchers import BatchFailed, CostModel, PadBatcher
from batchery.configs import WorkerOptions

from tests.support.fakes import (
    FakeModel,
    FakePorts,
    Jobs,
    StartEngine,
    engine_of,
)


def with_examples(model: FakeModel, *examples: Any) -> FakeModel:
    model.examples = [*examples]
    return model


def test_examples_are_measured_before_work_is_taken(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    batches: list[list[Any]] = []

    def predict(items: list[Any]) -> list[Any]:
        assert not ports.claimed
        batches.append(items)
        return items

    engine = start(with_examples(FakeModel(predict=predict, length=len, max_batch_size=16), "a" * 8, "b" * 32))
    assert [batches[0], batches[5]] == [["a" * 8], ["b" * 32] * 16]
    assert {(len(items), len(items[0])) for items in batches} == {(n, length) for n in (1, 4, 16) for length in (8, 32)}
    cost = engine.state.tasks["double"].cost
    assert cost(1, 8) != CostModel(16)(1, 8), "the costs are learned"


def test_one_long_example_is_cropped_where_the_batcher_can(start: StartEngine, ports: FakePorts) -> None:
    shapes: set[tuple[int, ...]] = set()

    def predict(batch: Any) -> Any:
        shapes.add(batch.shape)
        return batch

    start(with_examples(FakeModel(predict=predict, batcher=PadBatcher(), max_batch_size=4), np.zeros(64)))
    assert shapes >= {(4, 64), (1, 8), (1, 64), (4, 8)}


def test_warming_up_takes_the_time_it_may_and_no_more(start: StartEngine, ports: FakePorts) -> None:
    times = iter(range(0, 100_000, 4))
    runs: list[Any] = []

    def predict(items: list[Any]) -> list[Any]:
        runs.append(items)
        return items

    model = with_examples(FakeModel(predict=predict, max_batch_size=64), 1)
    start(model, options=WorkerOptions(warm_up_s=30.0), clock=lambda: float(next(times)))
    assert 0 < len(runs) < 4
    start(model, options=WorkerOptions(warm_up_s=0.0))
    assert len(runs) < 4


def test_an_example_too_large_for_the_memory_lowers_the_ceiling(start: StartEngine, ports: FakePorts) -> None:
    def predict(items: list[Any]) -> list[Any]:
        if len(items) > 4:
            raise MemoryError
        return items

    engine = start(with_examples(FakeModel(predict=predict, max_batch_size=16), 1))
    ceiling = engine.task_stats("double")["token_ceiling"]
    assert 1 <= ceiling < 16


def answer_with_an_error(_: Any) -> Any:
    return ValueError("the text is too long")


def fail(_: Any) -> Any:
    raise ValueError("the text is too long")


@pytest.mark.parametrize("model", [FakeModel(preprocess=answer_with_an_error), FakeModel(predict=fail)])
def test_an_engine_whose_examples_cannot_be_run_does_not_start(model: FakeModel, ports: FakePorts) -> None:
    engine = engine_of(with_examples(model, 1), ports)
    with pytest.raises(BatchFailed, match=r"Task double: .*example.*the text is too long"):
        engine.load()
