"""Whatever numbers come from outside, with a job or as options, a job with such a number fails alone or is served."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batchery.batchers import Job
from batchery.configs import WorkerOptions
from batchery.worker.engine import Engine, EngineState
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchery import BatchTask
from tests.support.fakes import DEADLINE_S, FakePorts, Gate

NEIGHBOURS = 6


class Measured(BatchTask):
    """Items are numbers with the length that their caller says they have."""

    name = "measured"
    max_batch_size = 4

    def __init__(self) -> None:
        self.gate = Gate()

    def length(self, item: tuple[int, Any]) -> Any:
        return item[1]

    def predict(self, items: list[tuple[int, Any]]) -> list[int]:
        self.gate.pass_through()
        return [number * 2 for number, _ in items]


def job(number: int, length: Any = 3, **fields: Any) -> Job:
    return Job(str(number), "measured", ((number, length),), {}, None, 0.0, number, **fields)


def serve(task: BatchTask, ports: FakePorts) -> Engine:
    engine = Engine(EngineState({task.name: task}, WorkerOptions()), ports, ports)
    engine.load()
    engine.start()
    return engine


lengths = st.one_of(
    st.sampled_from(
        [2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -1, 1e30, math.inf, math.nan, True, None, "3"]
    ),
    st.sampled_from([np.int64(2**62), np.uint64(2**63), np.float64("nan"), np.float32("inf")]),
    st.integers(),
    st.floats(),
)
deadlines = st.one_of(st.none(), st.floats(), st.integers(-(10**300), 10**300))


@settings(max_examples=60, deadline=None)
@given(length=lengths, deadline=deadlines, priority=st.integers(), max_wait_ms=st.sampled_from([0.0, 1.0]))
@example(length=2**31 - 1, deadline=None, priority=0, max_wait_ms=0.0)
@example(length=2**63, deadline=None, priority=0, max_wait_ms=0.0)
@example(length=3, deadline=1e300, priority=0, max_wait_ms=1.0)
@example(length=3, deadline=-1e300, priority=0, max_wait_ms=1.0)
def test_a_job_with_a_hostile_number_fails_alone_or_is_served(
    length: Any, deadline: Any, priority: int, max_wait_ms: float
) -> None:
    task, ports = Measured(), FakePorts()
    task.max_wait_ms = max_wait_ms
    engine = serve(task, ports)
    try:
        ports.put(job(0, length, deadline=deadline, priority=priority))
        ports.wait_until_all_are_claimed()
        ports.put(*[job(number) for number in range(1, NEIGHBOURS)])
        ports.wait_until_all_are_claimed()
        task.gate.open()
        ports.wait_for_outcomes(NEIGHBOURS)
        answers = ports.answers()
        hostile = answers.pop("0")
        assert hostile == 0 or "length" in str(hostile)
        assert answers == {str(number): number * 2 for number in range(1, NEIGHBOURS)}
        assert ports.broken_by == []
        assert engine.drain(DEADLINE_S)
    finally:
        task.gate.open()
        engine.drain(DEADLINE_S)


def test_a_job_whose_run_is_predicted_to_last_for_ages_keeps_no_other_waiting() -> None:
    task, ports = Measured(), FakePorts()
    engine = serve(task, ports)
    engine.state.tasks["measured"].cost.observe(1, 1, 1e9)
    ports.put(job(0, 2**31 - 1))
    task.gate.wait_until_reached()
    ports.put(job(1))
    ports.wait_until_all_are_claimed()
    task.gate.open()
    ports.wait_for_outcomes(2)
    assert ports.answers() == {"0": 0, "1": 2}
    assert engine.drain(float("inf"))


@pytest.mark.parametrize("look_ahead", [1, 8, 10_000])
@pytest.mark.parametrize("max_batch_size", [1, 33, 8192, 65_536])
@pytest.mark.parametrize("max_batch_tokens", [None, 1, 10_000, 10**12])
def test_every_option_that_is_accepted_is_served(max_batch_size: int, max_batch_tokens: Any, look_ahead: int) -> None:
    task, ports = Measured(), FakePorts()
    task.gate.open()
    engine = serve(task, ports)
    engine.set_options(
        "measured",
        type(task.options)(
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            look_ahead=look_ahead,
            small_batch_threshold=max_batch_tokens,
        ),
    )
    ports.put(*[job(number, 1 + number % 7) for number in range(40)])
    ports.wait_for_outcomes(40)
    assert ports.answers() == {str(number): number * 2 for number in range(40)}
    assert engine.drain(DEADLINE_S)
