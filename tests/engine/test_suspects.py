"""Jobs that may end a worker: when they run, beside what, and what is known of them if they do."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from batchery.batchers import WorkerDied
from batchery.worker import tuning
from batchery.worker.engine.suspects import why_given_up

from tests.support.fakes import FakeModel, FakePorts, Gate, Jobs, StartEngine


def suspect(jobs: Jobs, value: Any, **fields: Any) -> Any:
    return jobs(value, **{"redelivered": True, "lost": 1, "deaths": 1, **fields})


def test_a_suspect_goes_its_whole_way_alone(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    """From preprocess to postprocess, on the device thread, and its result is stored before the next one begins."""
    steps: list[tuple[str, Any, str]] = []

    def step(name: str) -> Any:
        def note(value: Any) -> Any:
            steps.append((name, value, threading.current_thread().name))
            return value

        return note

    start(FakeModel(preprocess=step("preprocess"), predict=step("predict"), postprocess=step("postprocess")))
    ports.put(suspect(jobs, 1), suspect(jobs, 2))
    ports.wait_for_outcomes(2)
    device = "batchery-device"
    assert steps == [
        (name, item, device)
        for value in (1, 2)
        for name, item in (("preprocess", value), ("predict", [value]), ("postprocess", value))
    ]
    assert ports.settlements == 2


@pytest.mark.parametrize("step", ["preprocess", "predict", "postprocess"])
def test_a_suspect_that_raises_an_error_fails_as_any_job_does(
    start: StartEngine, ports: FakePorts, jobs: Jobs, step: str
) -> None:
    def fail(_: Any) -> Any:
        raise KeyError(step)

    hooks: Any = {"preprocess": lambda value: value, step: fail}
    start(FakeModel(**hooks))
    ports.put(suspect(jobs, 1))
    [outcome] = ports.wait_for_outcomes(1)
    assert isinstance(outcome.error, KeyError)


def test_a_suspect_waits_while_another_worker_runs_one_and_everything_else_goes_on(
    start: StartEngine, ports: FakePorts, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SUSPECT_PAUSE_S", 0.01)
    ports.admitting = False
    start(FakeModel(max_age_ms=0))
    ports.put(suspect(jobs, 1, deaths=2))
    ports.wait_for(lambda: len(ports.asked) >= 2, "it has asked again")
    ports.put(*jobs.many(2, 3))
    ports.wait_for_outcomes(2)
    asked = len(ports.asked)
    ports.wait_for(lambda: len(ports.asked) > asked, "it asks on")
    assert ports.answers() == {"double-2": 4, "double-3": 6}
    ports.admitting = True
    ports.wait_for_outcomes(3)
    assert ports.batches[-1] == ["double-1"]


def test_after_one_death_a_suspect_waits_for_no_other_worker(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    """It is most likely an innocent neighbour, whose caller should not wait for the deaths of others."""
    ports.admitting = False
    start(FakeModel())
    ports.put(suspect(jobs, 1), suspect(jobs, 2))
    ports.wait_for_outcomes(2)
    assert ports.asked == []


def test_a_suspect_of_one_death_does_not_wait_with_those_of_several(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    ports.admitting = False
    start(FakeModel(max_age_ms=float("inf"), max_batch_size=1))
    ports.put(suspect(jobs, 1, deaths=2))
    ports.wait_for(lambda: ports.asked, "it has asked")
    ports.put(*jobs.many(*range(2, 20)), suspect(jobs, 20), *jobs.many(*range(21, 200)))
    ports.wait_for(lambda: ["double-20"] in ports.batches, "it has run")
    ports.wait_for_outcomes(198)
    assert "double-1" not in ports.answers()


def test_nothing_more_is_claimed_while_a_suspect_waits_for_the_other_jobs_to_leave(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    """Otherwise it would wait for `max_age_ms` wherever calls never end."""
    start(FakeModel(max_age_ms=float("inf"), max_batch_size=1))
    ports.put(*jobs.many(*range(4)), suspect(jobs, 4), *jobs.many(*range(5, 300)))
    ports.wait_for_outcomes(300)
    held = 8 + 3  # look-ahead, and what runs, is put together and is being settled
    assert ports.batches.index(["double-4"]) <= held
    assert len(ports.batches) == 300


def test_a_suspect_that_waits_for_its_turn_goes_back_if_the_engine_drains(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    ports.admitting = False
    engine = start(FakeModel())
    ports.put(suspect(jobs, 1, deaths=2))
    ports.wait_for(lambda: ports.asked, "it has asked")
    assert engine.drain(5)
    assert [job.id for job in ports.given_back] == ["double-1"]


def test_the_steps_of_redelivered_jobs_are_told_and_those_of_others_are_not(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    start(FakeModel(preprocess=lambda value: value))
    ports.put(jobs(1))
    ports.wait_for_outcomes(1)
    ports.put(jobs(2, redelivered=True))
    ports.wait_for_outcomes(2)
    ports.put(jobs(3))
    ports.wait_for_outcomes(3)
    preparing_running_settling = 3
    assert ports.worked_on == [(["double-2"], begins) for begins in (True, False)] * preparing_running_settling


def test_what_hangs_is_told_while_it_hangs(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    gate = Gate()

    def hang(value: Any) -> Any:
        gate.pass_through()
        return value

    start(FakeModel(postprocess=hang))
    ports.put(jobs(1, redelivered=True))
    gate.wait_until_reached()
    assert ports.worked_on[-1] == (["double-1"], True)
    gate.open()
    ports.wait_for_outcomes(1)
    ports.wait_for(lambda: ports.worked_on[-1] == (["double-1"], False), "it is told that this is over")


@pytest.mark.parametrize(
    ("lost", "deaths", "alone", "given_up"),
    [
        (0, 0, 0, False),
        (3, 3, 2, True),
        (3, 3, 3, True),
        # Three nodes were lost while it ran among others: that says nothing about this one job.
        (3, 3, 0, False),
        (9, 9, 1, False),
        # A worker died twice while it ran alone: one of these may be the loss of a node.
        (2, 2, 2, False),
        (19, 1, 0, False),
        (20, 1, 0, True),
        # It only waited, however often that was.
        (20, 0, 0, False),
    ],
)
def test_a_job_is_given_up_if_it_ran_alone_when_workers_died_or_was_delivered_too_often(
    jobs: Jobs, lost: int, deaths: int, alone: int, given_up: bool
) -> None:
    job = jobs(1, redelivered=True, lost=lost, deaths=deaths, lone_deaths=alone)
    assert (why_given_up(job, 20) is not None) == given_up


def test_max_deliveries_is_an_option_of_the_task(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    start(FakeModel(max_deliveries=2))
    ports.put(*[jobs(lost, redelivered=True, lost=lost, deaths=1) for lost in (1, 2)])
    ports.put(jobs(3, redelivered=True, lost=3))
    ports.wait_for_outcomes(3)
    answers = ports.answers()
    error = answers.pop("double-2")
    assert isinstance(error, WorkerDied)
    assert "This job was delivered 2 times" in str(error)
    assert answers == {"double-1": 2, "double-3": 6}, "one that only waited is innocent"
