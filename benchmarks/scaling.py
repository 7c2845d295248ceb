"""Compares the rates of 1, 2, 4 and 8 workers on one queue, each with its own device.

The devices are simulated and take 200 ms for a batch of 32, so that they do not share the cores of this machine. The
benchmark shows whether workers disturb each other at the queue. The number of messages for each worker is the same.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

from tests.support.servers import valkey

from .apps.payloads import PAYLOADS
from .backlog import load
from .contenders import BATCHERY
from .report import Report, median, rounded

BATCH_SIZE, BATCH_MS = 32, 200
WORKERS = (1, 2, 4, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=25, help="full batches for each worker (default 25)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of all numbers of workers; medians count (default 3)"
    )


def run(args: argparse.Namespace) -> Report:
    runs = [_measure(workers, args.batches, round_) for round_ in range(args.rounds) for workers in WORKERS]
    rates = {n: median(run["tasks_per_s"] for run in runs if run["workers"] == n) for n in WORKERS}
    device = 1000 * BATCH_SIZE / BATCH_MS
    return Report(
        name="scaling",
        figures={f"tasks_per_s_{n}": rate for n, rate in rates.items()} | {"speedup_8": rounded(rates[8] / rates[1])},
        runs=runs,
        columns=("workers", "tasks/s", "speed-up", "of the devices' rate"),
        rows=[(str(n), rate, rate / rates[1], rate / (n * device)) for n, rate in rates.items()],
        notes=[
            f"A batch of {BATCH_SIZE} takes {BATCH_MS} ms, so one device can do {device:.0f} tasks/s. There are "
            f"{args.batches * BATCH_SIZE} messages for each worker. Rates are medians of {args.rounds} rounds in turn."
        ],
    )


def _measure(workers: int, batches: int, round_: int) -> dict[str, Any]:
    count = workers * batches * BATCH_SIZE
    env = {"MAX_BATCH_SIZE": str(BATCH_SIZE), "BATCH_MS": str(BATCH_MS)}
    with valkey() as url, load(url, "small", PAYLOADS["small"]) as messages, ExitStack() as stack:
        alive = [stack.enter_context(BATCHERY.start(url, env=env)) for _ in range(workers)]

        def all_alive() -> None:
            for check in alive:
                check()

        messages.release(messages.prepare(workers * 2 * BATCH_SIZE), all_alive)
        ids = messages.prepare(count)
        seconds = messages.release(ids, all_alive)
        messages.check(ids)
    return {"round": round_, "workers": workers, "messages": count, "tasks_per_s": rounded(count / seconds)}
