"""A running engine's options may change: from the next batch, and the next claim, the new ones hold."""

from __future__ import annotations

from typing import Any

import pytest
from batchery.batchers import GreedyPlanner
from batchery.configs import TaskOptions
from batchery.configs.configuration import option_value
from batchery.worker.consumer.settings import RUNTIME_OPTIONS

from tests.support.fakes import FakeModel, FakePorts, Held, Jobs, StartEngine


def test_the_next_batch_has_the_new_size(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_until_all_are_claimed()
    engine.set_options("double", TaskOptions(max_batch_size=4))
    held.gate.open()
    ports.wait_for_outcomes(6)
    assert held.batches == [[0], [1, 2, 3, 4], [5]]


def test_a_batch_that_waits_for_more_jobs_runs_once_its_wait_is_removed(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    engine = start(FakeModel(max_wait_ms=1e9))
    ports.put(*jobs.many(1, 2))
    ports.wait_until_all_are_claimed()
    assert ports.answers() == {}
    engine.set_options("double", TaskOptions())
    ports.wait_for_outcomes(2)


def test_more_jobs_are_claimed_where_batches_become_larger(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=1, look_ahead=1))
    ports.put(*jobs.many(*range(30)))
    held.gate.wait_until_reached()
    ports.wait_for(lambda: len(ports.claimed) == 4, "as many are claimed as may be held")
    engine.set_options("double", TaskOptions(max_batch_size=29))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(30)
    assert held.batches == [[0], [*range(1, 30)]]


def test_a_batch_that_runs_hangs_by_the_new_time_limit(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    assert not engine.state.hung
    engine.set_options("double", TaskOptions(batch_time_limit_s=1e-9))
    assert engine.state.hung
    held.gate.open()


def test_small_requests_go_first_once_a_threshold_is_set(jobs: Jobs) -> None:
    planner = GreedyPlanner(TaskOptions(max_batch_size=1))
    waiting = jobs.many("long", length=90) + jobs.many("short", length=3)
    first = planner.choose(waiting, now=0.0)
    assert first is not None
    assert first.jobs == waiting[:1]
    planner.set_options(TaskOptions(max_batch_size=1, small_batch_threshold=5))
    first = planner.choose(waiting, now=0.0)
    assert first is not None
    assert first.jobs == waiting[1:]


#: What a typo, or a program that computes a value, may send by remote control.
ODD: list[Any] = [
    float("inf"),
    float("-inf"),
    float("nan"),
    -1,
    -0.5,
    0,
    1,
    10**11,
    10**30,
    1e300,
    True,
    None,
    "none",
    "",
    [],
    {},
]


@pytest.mark.parametrize("option", RUNTIME_OPTIONS)
def test_no_value_of_an_option_stops_a_running_engine(
    start: StartEngine, ports: FakePorts, jobs: Jobs, option: str
) -> None:
    """A value is refused with what is allowed, or the engine works with it."""
    engine = start(FakeModel())
    answered = 0
    for value in ODD:
        try:
            options = TaskOptions(**{option: option_value(TaskOptions, option, value)})
        except ValueError:
            continue
        engine.set_options("double", options)
        if option not in ("max_wait_ms", "batch_time_limit_s"):  # which are to make a batch wait, or hang
            ports.put(*jobs.many(*range(answered, answered + 3)))
            answered += 3
            ports.wait_for_outcomes(answered)
    engine.set_options("double", TaskOptions())
    ports.put(jobs(answered))
    ports.wait_for_outcomes(answered + 1)


@pytest.mark.parametrize("option", RUNTIME_OPTIONS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1, 10**30, "many", [1, "a"], {}, True], ids=repr)
def test_a_value_that_can_only_be_a_mistake_is_refused(option: str, value: Any) -> None:
    if option == "max_age_ms" and value == 10**30:  # as good as never
        return
    with pytest.raises(ValueError, match="it must be"):
        option_value(TaskOptions, option, value)
