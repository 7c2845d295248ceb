"""What others may ask of an engine while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.fakes import (
    DEADLINE_S,
    FakeModel,
    FakePorts,
    Gate,
    Held,
    Jobs,
    StartEngine,
    ids,
)


def test_the_stats_count_batches_jobs_and_padding(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    def fails_for_two(items: list[Any]) -> list[Any]:
        return [ValueError() if item == 2 else item for item in items]

    engine = start(FakeModel(predict=fails_for_two, length=lambda item: item, max_batch_size=3))
    engine.state.submit(jobs.many(1, 2, 3))
    ports.wait_for_outcomes(3)
    assert engine.drain(DEADLINE_S)
    assert engine.stats() == {
        "batches": 1,
        "jobs": 3,
        "failed": 1,
        "held": 0,
        "mean_batch_size": 3.0,
        "padding_share": 0.3333,
        "device_waited_share": 0.0,
    }
    figures = engine.task_stats("double")
    assert figures["closed_by"] == {"full": 1}
    assert figures["run_ms"] > 0


def test_a_running_batch_is_known_and_has_its_times(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    times = iter(range(1000))
    held = Held()
    engine = start(FakeModel(predict=held), clock=lambda: float(next(times)))
    assert engine.state.running == []
    ports.put(jobs(1))
    held.gate.wait_until_reached()
    assert ids(engine.state.running) == ["double-1"]
    held.gate.open()
    (outcome,) = ports.wait_for_outcomes(1)
    assert outcome.batch is not None
    assert 0 < outcome.batch.started_at < outcome.batch.finished_at
    assert engine.drain(DEADLINE_S)
    assert engine.state.running == []


def test_an_engine_counts_as_hung_while_a_batch_exceeds_its_time_limit(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    now = [1000.0]
    held = Held()
    engine = start(FakeModel(predict=held, batch_time_limit_s=30), clock=lambda: now[0])
    assert not engine.state.hung
    ports.put(jobs(1))
    held.gate.wait_until_reached()
    now[0] += 30
    assert not engine.state.hung
    now[0] += 0.1
    assert engine.state.hung
    held.gate.open()
    ports.wait_for_outcomes(1)
    assert engine.drain(DEADLINE_S)
    assert not engine.state.hung


@pytest.mark.parametrize("step", ["preprocess", "collate", "predict", "postprocess"])
def test_an_engine_counts_as_hung_while_any_step_of_user_code_exceeds_the_time_limit(
    step: str, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    now, gate = [1000.0], Gate()

    def hang(value: Any) -> Any:
        gate.pass_through()
        return value

    hooks: dict[str, Any] = {step: hang} if step != "collate" else {"batcher": Hanging(gate)}
    engine = start(FakeModel(batch_time_limit_s=30, **hooks), clock=lambda: now[0])
    ports.put(jobs(1))
    gate.wait_until_reached()
    now[0] += 30
    assert not engine.state.hung
    now[0] += 0.1
    assert engine.state.hung
    assert ids(engine.state.hung_jobs) == ["double-1"]
    gate.open()
    ports.wait_for_outcomes(1)
    assert engine.drain(DEADLINE_S)
    assert not engine.state.hung


class Hanging:
    """A batcher that waits at a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def batch(self, items: Sequence[Any]) -> tuple[Any, None]:
        self._gate.pass_through()
        return list(items), None

    def unbatch(self, outputs: Any, context: None) -> list[Any]:
        return list(outputs)
