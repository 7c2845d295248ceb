"""Running: failures, memory that runs out, and a device that is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batchery.batchers import OutputMismatch
from batchery.worker.engine.runner import check_device

from tests.support.fakes import (
    DEADLINE_S,
    FakeModel,
    FakePorts,
    Jobs,
    StartEngine,
    fails_for,
)

ERRORS = [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), StopIteration()]


@pytest.mark.parametrize("error", [*ERRORS, MemoryError()], ids=repr)
def test_what_the_model_raises_for_one_item_fails_that_job_alone(
    error: BaseException, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    check = fails_for(3, error)
    start(FakeModel(predict=lambda items: [check(item) for item in items]))
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_for_outcomes(5)
    assert ports.answers() == {"double-1": 1, "double-2": 2, "double-3": error, "double-4": 4, "double-5": 5}


def test_too_few_outputs_are_an_error_for_those_that_lack_one_and_never_a_shift(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    start(FakeModel(predict=lambda items: [item for item in items if item != 3]))
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_for_outcomes(5)
    answers = ports.answers()
    assert isinstance(answers.pop("double-3"), OutputMismatch)
    assert answers == {"double-1": 1, "double-2": 2, "double-4": 4, "double-5": 5}


def test_a_batch_that_does_not_fit_into_memory_runs_in_parts_and_only_once(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    sizes: list[int] = []

    def predict(items: list[Any]) -> list[Any]:
        sizes.append(len(items))
        if len(items) > 4:
            raise MemoryError("no room for that")
        return items

    engine = start(FakeModel(predict=predict, max_batch_size=8))
    ports.put(*jobs.many(*range(8)))
    ports.wait_for_outcomes(8)
    ports.put(*jobs.many(*range(8, 40)))
    ports.wait_for_outcomes(40)
    assert all(outcome.error is None for outcome in ports.outcomes)
    assert engine.task_stats("double")["out_of_memory"] == sum(size > 4 for size in sizes)
    assert engine.task_stats("double")["token_ceiling"] is not None


def test_a_single_job_is_tried_again_once_memory_is_freed(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    tries: list[Any] = []

    def predict(items: list[Any]) -> list[Any]:
        tries.append(items)
        if len(tries) == 1:
            raise MemoryError("no room before others have left")
        return items

    start(FakeModel(predict=predict))
    ports.put(jobs(1))
    ports.wait_for_outcomes(1)
    assert ports.answers() == {"double-1": 1}


#: torch's device without data, on which nothing can be read: to ask it fails as if it were lost.
LOST = "meta"
#: Not quite the CPU's usual name, so that it is asked, and works.
SOUND = "cpu:0"


@pytest.mark.parametrize("text", ["CUDA error: an illegal memory access was encountered", "no such word"])
def test_a_lost_device_is_no_failure_of_the_jobs_whatever_the_model_says(
    text: str, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    def predict(items: list[Any]) -> list[Any]:
        raise KeyError(text)

    engine = start(FakeModel(predict=predict, device=LOST))
    ports.put(jobs(1))
    ports.wait_for(lambda: ports.broken_by, "the ports learns that nothing will be served any more")
    assert not engine.drain(DEADLINE_S)
    assert ports.outcomes == []
    assert "meta" in str(ports.broken_by[0]), "the error is the device's own"


@pytest.mark.parametrize("device", ["cpu", SOUND])
@pytest.mark.parametrize(
    "error",
    [
        KeyError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("no such word: illegal instruction"),
    ],
    ids=repr,
)
def test_an_error_that_only_says_that_the_device_is_lost_fails_its_job_alone(
    error: Exception, device: str, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    check = fails_for(3, error)
    engine = start(FakeModel(predict=lambda items: [check(item) for item in items], device=device))
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_for_outcomes(5)
    assert ports.answers() == {"double-1": 1, "double-2": 2, "double-3": error, "double-4": 4, "double-5": 5}
    assert ports.broken_by == []
    assert engine.task_stats("double")["token_ceiling"] is None


def test_a_device_whose_memory_is_full_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "zeros", full)
    check_device(SOUND)
    with pytest.raises(RuntimeError):
        monkeypatch.undo()
        check_device(LOST)
