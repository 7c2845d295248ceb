"""Compares the latency of a single `delay(…).get()` on an idle system with Batchery and with stock Celery.

All workers run at the same time, each on its own queue, and are called in turn, so that a disturbance of the machine
affects all of them. The better of Celery's pools solo and threads counts.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import Any

from tests.support.servers import valkey

from .apps import import_app
from .contenders import BATCHERY, STOCK, Alive
from .report import Report, percentile, rounded

CONTENDERS = {"stock, solo": STOCK[0], "stock, threads": STOCK[1], "batchery": BATCHERY}
WARM_UP = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=300, help="calls of each worker in a round (default 300)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds with new workers; figures cover all rounds (default 3)"
    )


def run(args: argparse.Namespace) -> Report:
    runs = [run for round_ in range(args.rounds) for run in _round(args.calls, round_)]
    times = {
        name: [ms for run in runs if run["contender"] == name for ms in run["latencies_ms"]] for name in CONTENDERS
    }
    stock = min(percentile(times[name], 50) for name in CONTENDERS if name != "batchery")
    ours = times["batchery"]
    return Report(
        name="latency",
        figures={
            "p50_ms": percentile(ours, 50),
            "p99_ms": percentile(ours, 99),
            "stock_p50_ms": stock,
            "of_stock": rounded(percentile(ours, 50) / stock),
        },
        runs=runs,
        columns=("worker", "p50 ms", "p99 ms", "p50 of stock's best"),
        rows=[
            (name, percentile(each, 50), percentile(each, 99), percentile(each, 50) / stock)
            for name, each in times.items()
        ],
        notes=[f"Single calls of a no-op task with an integer; {args.calls} calls in each of {args.rounds} rounds."],
    )


def _round(calls: int, round_: int) -> list[dict[str, Any]]:
    with valkey() as url, ExitStack() as stack:
        tasks: dict[str, Any] = {}
        alive: list[Alive] = []
        for name, contender in CONTENDERS.items():
            queue = name.replace(", ", "-")
            alive.append(stack.enter_context(contender.start(url, env={"QUEUE": queue})))
            module = stack.enter_context(import_app(contender.app.rpartition(".")[2], url, queue))
            tasks[name] = module.small
        times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for call in range(WARM_UP + calls):
            for name, task in tasks.items():
                start = time.perf_counter()
                answer = task.delay(call).get(timeout=30)
                times[name].append(1000 * (time.perf_counter() - start))
                if answer != call:
                    raise RuntimeError(f"{name} answered {answer!r} instead of {call}.")
        for check in alive:
            check()
    return [
        {"round": round_, "contender": name, "latencies_ms": [rounded(ms) for ms in each[WARM_UP:]]}
        for name, each in times.items()
    ]
