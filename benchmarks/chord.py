"""Compares the time of a chord, header and callback, with Batchery and with stock Celery's best pool.

All messages of the header are published before a worker can claim any of them. The time runs from the moment when they
are ready until the callback's result is stored.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import redis
from celery import chord

from tests.support.servers import valkey
from tests.support.waiting import wait_until

from .apps import import_app
from .backlog import PREPARED, QUEUE, RESULT_PREFIX
from .contenders import BATCHERY, STOCK, Alive, Contender
from .report import Report, median, rounded

WARM_UP = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=int, default=10_000, help="parts for Batchery (default 10,000)")
    parser.add_argument("--slow-parts", type=int, default=1000, help="parts for stock Celery (default 1,000)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of all workers in turn; medians count (default 3)"
    )


def run(args: argparse.Namespace) -> Report:
    contenders = (*STOCK, BATCHERY)
    runs = [_measure(each, args, round_) for round_ in range(args.rounds) for each in contenders]
    rates = {
        each.name: median(run["tasks_per_s"] for run in runs if run["contender"] == each.name) for each in contenders
    }
    stock = max(rates[each.name] for each in STOCK)
    return Report(
        name="chord",
        figures={"stock": stock, "batchery": rates["batchery"], "vs_stock": rounded(rates["batchery"] / stock)},
        runs=runs,
        columns=("worker", "tasks/s", "x stock's best"),
        rows=[(name, rate, rate / stock) for name, rate in rates.items()],
        notes=[
            f"A chord of {args.parts:,} no-op tasks for Batchery, {args.slow_parts:,} for the others; medians of "
            f"{args.rounds} interleaved rounds.",
            "The time runs from the moment when the whole header is ready until the callback's result is stored.",
        ],
    )


def _measure(contender: Contender, args: argparse.Namespace, round_: int) -> dict[str, Any]:
    count = args.parts if contender is BATCHERY else args.slow_parts
    with (
        valkey() as url,
        import_app(contender.app.rpartition(".")[2], url) as module,
        redis.Redis.from_url(url) as client,
        contender.start(url) as alive,
    ):
        # Result objects live longer than their server, and would otherwise send it a message when they are deleted.
        module.app.backend.remove_pending_result = lambda result: result
        _call(module, client, WARM_UP, alive)
        seconds = _call(module, client, count, alive)
    return {"round": round_, "contender": contender.name, "parts": count, "tasks_per_s": rounded(count / seconds)}


def _call(module: Any, client: redis.Redis, count: int, alive: Alive) -> float:
    """Call a chord of `count` parts, and return the seconds from the ready header to the callback's result."""
    header = [module.small.s(index).set(queue=PREPARED) for index in range(count)]
    result = chord(header, app=module.app)(module.gather.s())
    key = RESULT_PREFIX + result.id
    start = time.perf_counter()
    client.rename(PREPARED, QUEUE)

    def called_back() -> bool:
        alive()
        return bool(client.exists(key))

    wait_until(called_back, "the callback's result", 300.0)
    seconds = time.perf_counter() - start
    if (counted := module.app.backend.get_result(result.id)) != count:
        raise RuntimeError(f"The callback got {counted!r} results instead of {count}.")
    return seconds
