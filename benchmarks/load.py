"""Compares the latency of the greedy planner with that of timers at several loads, on a simulated device.

A batch of n jobs takes 5 ms + 0.5 ms x n of virtual time. A window from enqueue is the planner's own `max_wait_ms`. A
window from dequeue starts when an idle worker takes the first job, as in TorchServe.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from batchery.batchers import CostFunction, GreedyPlanner, Job
from batchery.configs import TaskOptions
from numpy.typing import NDArray

from .report import Report, percentile, rounded

SIZE, LAUNCH_MS, JOB_MS, WINDOW_MS = 64, 5.0, 0.5, 20.0
CAPACITY = 1000 * SIZE / (LAUNCH_MS + JOB_MS * SIZE)
LOADS = (0.20, 0.50, 0.80, 0.95)
#: The average number of jobs in a burst. Bursts arrive at random.
BURST = 16

#: For each job the times of its arrival and of its answer, in seconds, and the seconds that the device was busy.
Outcome = tuple[list[tuple[float, float]], float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=20_000, metavar="N", help="jobs at each load (default 20,000)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot to FILE (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> Report:
    runs = [_measure(kind, load, policy, args.jobs) for kind in ARRIVALS for load in LOADS for policy in POLICIES]
    if args.plot:
        from .plots import plot_load

        plot_load(runs, args.plot)
    return _report(runs, args.jobs)


# -- Arrivals ----------------------------------------------------------------------------------------------------------


def _poisson(rate: float, jobs: int) -> Iterator[float]:
    chance, now = random.Random(1), 0.0
    for _ in range(jobs):
        now += chance.expovariate(rate)
        yield now


def _bursts(rate: float, jobs: int) -> Iterator[float]:
    chance, now, left = random.Random(2), 0.0, 0
    for _ in range(jobs):
        if not left:
            now += chance.expovariate(rate / BURST)
            left = chance.randint(1, 2 * BURST - 1)
        left -= 1
        yield now


ARRIVALS: dict[str, Callable[[float, int], Iterator[float]]] = {"poisson": _poisson, "bursts": _bursts}


# -- Policies ----------------------------------------------------------------------------------------------------------


def _batchery(max_wait_ms: float) -> Callable[[list[float]], Outcome]:
    """Return a simulation of the real planner, which is asked whenever the device is free."""
    # All jobs are equal, so no job overtakes another and the age bound has no effect.
    options = TaskOptions(max_batch_size=SIZE, max_wait_ms=max_wait_ms, max_age_ms=float("inf"))

    def simulate(arrivals: list[float]) -> Outcome:
        planner = GreedyPlanner(options, _device_ms)
        coming = deque(Job(str(seq), "task", (), {}, None, arrived, seq) for seq, arrived in enumerate(arrivals))
        waiting: list[Job] = []
        answered, busy, now = [], 0.0, 0.0
        while coming or waiting:
            while coming and coming[0].enqueued_at <= now and len(waiting) < options.max_waiting:
                waiting.append(coming.popleft())
            batch = planner.choose(waiting, now)
            if batch is None:
                now = min(planner.due_at(waiting), coming[0].enqueued_at if coming else float("inf"))
                continue
            del waiting[: len(batch.jobs)]
            takes = _takes_s(len(batch.jobs))
            busy, now = busy + takes, now + takes
            answered += [(job.enqueued_at, now) for job in batch.jobs]
        return answered, busy

    return simulate


def _window_from_dequeue(arrivals: list[float]) -> Outcome:
    """Simulate a worker that, when idle, takes jobs until the batch is full or the window ends, and runs them."""
    answered, busy, now, first = [], 0.0, 0.0, 0
    while first < len(arrivals):
        now = max(now, arrivals[first])
        closes = now + WINDOW_MS / 1000
        end = first + 1
        while end < len(arrivals) and end - first < SIZE and arrivals[end] <= closes:
            end += 1
        now = max(now, arrivals[end - 1]) if end - first == SIZE else closes
        takes = _takes_s(end - first)
        busy, now = busy + takes, now + takes
        answered += [(arrived, now) for arrived in arrivals[first:end]]
        first = end
    return answered, busy


def _takes_s(jobs: int) -> float:
    return (LAUNCH_MS + JOB_MS * jobs) / 1000


def _device(sizes: NDArray[np.int64], longest: NDArray[np.int64], /) -> NDArray[np.float64]:
    return np.asarray(LAUNCH_MS + JOB_MS * sizes + 0 * longest, dtype=np.float64)


_device_ms: CostFunction = _device

GREEDY = "Batchery, greedy"
POLICIES: dict[str, Callable[[list[float]], Outcome]] = {
    GREEDY: _batchery(0.0),
    f"{WINDOW_MS:.0f} ms from enqueue": _batchery(WINDOW_MS),
    f"{WINDOW_MS:.0f} ms from dequeue": _window_from_dequeue,
}


# -- Measurement and report --------------------------------------------------------------------------------------------


def _measure(kind: str, load: float, policy: str, jobs: int) -> dict[str, Any]:
    arrivals = list(ARRIVALS[kind](load * CAPACITY, jobs))
    answered, busy = POLICIES[policy](arrivals)
    latencies = [1000 * (done - arrived) for arrived, done in answered]
    return {
        "arrivals": kind,
        "load": load,
        "policy": policy,
        "p50_ms": percentile(latencies, 50),
        "p95_ms": percentile(latencies, 95),
        "p99_ms": percentile(latencies, 99),
        "busy": rounded(busy / max(done for _, done in answered)),
    }


def _report(runs: list[dict[str, Any]], jobs: int) -> Report:
    p95 = {(run["arrivals"], run["load"], run["policy"]): run["p95_ms"] for run in runs}
    ratios = [
        p95[kind, load, GREEDY] / min(p95[kind, load, policy] for policy in POLICIES if policy != GREEDY)
        for kind in ARRIVALS
        for load in LOADS
    ]
    figures = {"worst_greedy_vs_window_p95": rounded(max(ratios)), "best_greedy_vs_window_p95": rounded(min(ratios))}
    figures |= {
        f"{kind}_{load:.0%}_p95_ms".replace("%", ""): p95[kind, load, GREEDY] for kind in ARRIVALS for load in LOADS
    }
    return Report(
        name="load",
        figures=figures,
        runs=runs,
        columns=("arrivals, load", "policy", "p50 ms", "p95 ms", "p99 ms", "device busy"),
        rows=[
            (
                f"{run['arrivals']}, {run['load']:.0%}",
                run["policy"],
                run["p50_ms"],
                run["p95_ms"],
                run["p99_ms"],
                f"{run['busy']:.0%}",
            )
            for run in runs
        ],
        notes=[
            f"Each row has {jobs:,} jobs, in virtual time. A batch of n jobs takes {LAUNCH_MS:g} + {JOB_MS:g} n ms and "
            f"has at most {SIZE} jobs, so the capacity is {CAPACITY:,.0f} jobs/s. A burst has {BURST} jobs on average.",
        ],
    )
