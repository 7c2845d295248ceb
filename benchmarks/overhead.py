"""Compares the rates of no-op tasks with stock Celery, celery-batches, Batchery, and the floor that bounds them all.

For each worker thousands of messages become ready at one moment, and the time runs until the last result is stored.
Messages are acknowledged late, and results are stored. The best of stock Celery's pools counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tests.support.servers import valkey

from .apps.payloads import PAYLOADS
from .backlog import load
from .contenders import BATCHERY, CELERY_BATCHES, STOCK, Alive, Contender, floor
from .proxy import delayed
from .report import Report, median, rounded

WARM_UP = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="network round trip to add, in milliseconds")
    parser.add_argument("--events", action="store_true", help="workers send task events (-E)")
    parser.add_argument(
        "--payload", choices=sorted(PAYLOADS), default="small", help="an integer, 384 floats out, or 100 kB in"
    )
    parser.add_argument(
        "--messages", type=int, help="messages for Batchery and the floor (default 10,000, large 2,000)"
    )
    parser.add_argument(
        "--slow-messages", type=int, help="messages for the others (default 1,500, large or delayed 500)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of all contenders in turn; medians count (default 5)"
    )


def run(args: argparse.Namespace) -> Report:
    runs = [_measure(name, args, round_) for round_ in range(args.rounds) for name in _names()]
    return _report(runs, args)


def _names() -> list[str]:
    return [*(contender.name for contender in STOCK), CELERY_BATCHES.name, BATCHERY.name, "floor"]


def _measure(name: str, args: argparse.Namespace, round_: int) -> dict[str, Any]:
    """Measure one contender on a new server, after a warm-up on the same queue."""
    fast = name in (BATCHERY.name, "floor")
    large = args.payload == "large"
    if fast:
        count = args.messages or (2000 if large else 10_000)
    else:
        count = args.slow_messages or (500 if large or args.rtt_ms else 1500)
    with (
        valkey() as url,
        load(url, args.payload, PAYLOADS[args.payload]) as messages,
        delayed(url, args.rtt_ms) as worker_url,
        _start(name, args, WARM_UP + count)(worker_url) as alive,
    ):
        messages.release(messages.prepare(WARM_UP), alive)
        ids = messages.prepare(count)
        seconds = messages.release(ids, alive)
        messages.check(ids)
    return {"round": round_, "contender": name, "messages": count, "tasks_per_s": rounded(count / seconds)}


def _start(name: str, args: argparse.Namespace, count: int) -> Callable[[str], AbstractContextManager[Alive]]:
    if name == "floor":
        return lambda url: floor(url, count, args.payload)
    contender: Contender = next(each for each in (*STOCK, CELERY_BATCHES, BATCHERY) if each.name == name)
    return lambda url: contender.start(url, extra=("-E",) if args.events else ())


def _report(runs: list[dict[str, Any]], args: argparse.Namespace) -> Report:
    rates = {name: median(run["tasks_per_s"] for run in runs if run["contender"] == name) for name in _names()}
    stock = max(rates[contender.name] for contender in STOCK)
    batches, batchery, bare = rates[CELERY_BATCHES.name], rates[BATCHERY.name], rates["floor"]
    return Report(
        name="overhead",
        figures={
            "stock": stock,
            "celery_batches": batches,
            "batchery": batchery,
            "floor": bare,
            "vs_stock": rounded(batchery / stock),
            "vs_celery_batches": rounded(batchery / batches),
            "of_floor": rounded(batchery / bare),
            "payload": args.payload,
            "rtt_ms": args.rtt_ms,
            "events": int(args.events),
        },
        runs=runs,
        columns=("worker", "tasks/s", "x stock's best"),
        rows=[(name, rate, rate / stock) for name, rate in rates.items()],
        notes=[
            f"No-op tasks, payload {args.payload}, {args.rtt_ms:g} ms of network added, events "
            f"{'on' if args.events else 'off'}; medians of {args.rounds} interleaved rounds.",
            "The time runs from the moment when the messages are ready until every result is stored. Each run has "
            "a new server.",
        ],
    )
