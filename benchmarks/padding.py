"""Compares the padding costs of Batchery's planner with those of simpler methods and of the best possible batches.

The benchmark uses no broker and no model. Each method cuts a queue of known lengths into batches, and a batch costs a
launch and its padded tokens. Batchery's planner sees 8 full batches of the queue at a time, which are refilled as it
runs. The optimum sees the whole queue.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchery.batchers import CostFunction, CostModel, GreedyPlanner, Job
from batchery.batchers.planning.cut import Limits, cut, price
from batchery.configs import TaskOptions

from tests.support.planning import linear_cost

from .report import Report, median, rounded
from .texts import texts

SIZE, LONGEST = 32, 512
OPTIONS = TaskOptions(max_batch_size=SIZE)
#: Launch costs in tokens, of a small model on a CPU and of one on a GPU.
LAUNCHES = (1500, 15_000)
BUCKETS = (16, 32, 64, 128, 256, 512)
#: The error of a measured time, as the standard deviation of its logarithm.
NOISE = 0.05
DEVICE_MS_PER_TOKEN = 0.01

#: The lengths of a batch's jobs, and the length to which they are padded.
Padded = tuple[Sequence[int], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=int,
        default=8192,
        metavar="N",
        help="jobs in each queue (default 8,192, docstrings at most 3,700)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot to FILE (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> Report:
    decisions: list[float] = []
    runs = [
        _measure(name, lengths(args.jobs), launch, decisions)
        for name, lengths in DISTRIBUTIONS.items()
        for launch in LAUNCHES
    ]
    if args.plot:
        from .plots import plot_padding

        plot_padding(runs, args.plot)
    return _report(runs, decisions, args.jobs)


# -- Lengths -----------------------------------------------------------------------------------------------------------


def _lognormal(jobs: int) -> list[int]:
    """Return lengths of which half are at most 35, and nine in ten at most 408."""
    chance = random.Random(1)
    return [_clip(chance.lognormvariate(math.log(35), math.log(408 / 35) / 1.2816)) for _ in range(jobs)]


def _short(jobs: int) -> list[int]:
    """Return the lengths of search requests, with a few documents among them."""
    chance = random.Random(2)
    return [chance.randint(256, 512) if chance.random() < 0.02 else _clip(chance.gauss(12, 5)) for _ in range(jobs)]


def _uniform(jobs: int) -> list[int]:
    chance = random.Random(3)
    return [chance.randint(1, LONGEST) for _ in range(jobs)]


def _documents(jobs: int) -> list[int]:
    chance = random.Random(4)
    return [_clip(chance.gauss(220, 90)) for _ in range(jobs)]


def _docstrings(jobs: int) -> list[int]:
    """Return the numbers of words and signs in docstrings of the standard library, in a shuffled order."""
    return [_clip(len(re.findall(r"\w+|[^\w\s]", text))) for text in texts(min(jobs, 3700))]


def _clip(length: float) -> int:
    return min(LONGEST, max(1, round(length)))


DISTRIBUTIONS: dict[str, Callable[[int], list[int]]] = {
    "lognormal": _lognormal,
    "short": _short,
    "uniform": _uniform,
    "documents": _documents,
    "docstrings": _docstrings,
}


# -- Ways to make batches ----------------------------------------------------------------------------------------------


def first_come(lengths: Sequence[int]) -> list[Padded]:
    return [_padded(lengths[start : start + SIZE]) for start in range(0, len(lengths), SIZE)]


def fixed_buckets(lengths: Sequence[int]) -> list[Padded]:
    """Make batches from one queue for each bucket, padded to the edge of the bucket."""
    batches: list[Padded] = []
    for low, edge in zip((0, *BUCKETS), BUCKETS, strict=False):
        own = [length for length in lengths if low < length <= edge]
        batches += [(own[start : start + SIZE], edge) for start in range(0, len(own), SIZE)]
    return batches


def sorted_windows(lengths: Sequence[int]) -> list[Padded]:
    """Take as many jobs as Batchery looks ahead, sort them and run them all before the next ones are taken."""
    window = OPTIONS.max_waiting
    windows = (sorted(lengths[start : start + window]) for start in range(0, len(lengths), window))
    return [batch for window in windows for batch in first_come(window)]


def optimum(lengths: Sequence[int], cost: CostFunction) -> list[Padded]:
    line = sorted(lengths)
    ends = cut(price(line, cost, Limits(SIZE)))
    return [_padded(line[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def batchery(lengths: Sequence[int], cost: CostFunction, launch: int, decisions: list[float]) -> list[Padded]:
    """Return the planner's batches. A `CostModel` learns from each, and `decisions` gets the planner's seconds."""
    planner, chance, now = GreedyPlanner(OPTIONS, cost), random.Random(0), 0.0
    line = iter([Job(str(seq), "task", (), {}, None, 0.0, seq, length=length) for seq, length in enumerate(lengths)])
    waiting: list[Job] = []
    batches: list[Padded] = []
    while True:
        waiting += [job for _, job in zip(range(OPTIONS.max_waiting - len(waiting)), line, strict=False)]
        began = time.thread_time()
        batch = planner.choose(waiting, now)
        decisions.append(time.thread_time() - began)
        if batch is None:
            return batches
        chosen = set(map(id, batch.jobs))
        waiting = [job for job in waiting if id(job) not in chosen]
        batches.append(_padded([job.length or 0 for job in batch.jobs]))
        ms = DEVICE_MS_PER_TOKEN * _cost([batches[-1]], launch)
        now += ms / 1000
        if isinstance(cost, CostModel):
            cost.observe(len(batch.jobs), batches[-1][1], ms * chance.lognormvariate(0, NOISE))


def _padded(lengths: Sequence[int]) -> Padded:
    return lengths, max(lengths)


def _cost(batches: Sequence[Padded], launch: int) -> float:
    return sum(launch + len(lengths) * longest for lengths, longest in batches)


def _padding(batches: Sequence[Padded]) -> float:
    """Return the share of the computed tokens that were padding."""
    return 1 - sum(sum(lengths) for lengths, _ in batches) / sum(len(lengths) * longest for lengths, longest in batches)


# -- Measurement and report --------------------------------------------------------------------------------------------


def _measure(name: str, lengths: list[int], launch: int, decisions: list[float]) -> dict[str, Any]:
    true = linear_cost(launch)
    ways = {
        "first come": first_come(lengths),
        "buckets": fixed_buckets(lengths),
        "windows": sorted_windows(lengths),
        "batchery": batchery(lengths, true, launch, decisions),
        "learning": batchery(lengths, CostModel(SIZE), launch, decisions),
        "optimum": optimum(lengths, true),
    }
    best = _cost(ways["optimum"], launch)
    return {
        "lengths": name,
        "launch": launch,
        "jobs": len(lengths),
        "vs_optimum": {way: rounded(_cost(batches, launch) / best) for way, batches in ways.items()},
        "padding": {way: rounded(_padding(batches)) for way, batches in ways.items()},
    }


def _report(runs: list[dict[str, Any]], decisions: list[float], jobs: int) -> Report:
    figures: dict[str, float] = {}
    for way, suffix in (("batchery", ""), ("learning", "_learning"), ("first come", "_first_come")):
        figures[f"worst_vs_optimum{suffix}"] = max(run["vs_optimum"][way] for run in runs)
        figures[f"worst_padding{suffix}"] = max(run["padding"][way] for run in runs if run["launch"] == LAUNCHES[0])
    for run in runs:
        figures[f"{run['lengths']}_{run['launch']}_vs_optimum"] = run["vs_optimum"]["batchery"]
        figures[f"{run['lengths']}_{run['launch']}_padding"] = run["padding"]["batchery"]
    figures["decision_ms"] = median(1000 * seconds for seconds in decisions)
    ways = [way for way in runs[0]["vs_optimum"] if way != "optimum"]
    return Report(
        name="padding",
        figures=figures,
        runs=runs,
        columns=("lengths", "launch", *ways),
        rows=[
            (
                run["lengths"],
                run["launch"],
                *(f"{run['vs_optimum'][way]:.2f}/{run['padding'][way]:.0%}" for way in ways),
            )
            for run in runs
        ],
        notes=[
            "Each cell has the cost as a multiple of the optimum, and the share of padding in the computed tokens. A "
            f"batch costs launch + jobs x longest tokens. There are {jobs:,} jobs, and at most {SIZE} in a batch.",
            f"windows sorts {OPTIONS.look_ahead} full batches at a time, the part of the queue that Batchery sees. "
            "buckets has fixed lengths, and each bucket waits until it is full. The optimum sees the whole queue.",
            f"batchery knows the costs. learning starts without costs, and measures them with {NOISE:.0%} of noise. A "
            f"decision takes {figures['decision_ms']:.2g} ms of CPU time (median).",
        ],
    )
