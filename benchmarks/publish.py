"""Compares the rates at which a loop of `delay` and one `delay_many` send tasks.

No worker runs, because only the sending is timed. Results are on, so that a caller could read them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import redis

from tests.support.servers import valkey

from .apps import import_app
from .backlog import QUEUE
from .report import Report, median, rounded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=int, default=5000, help="messages in a round (default 5,000)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of all senders in turn; medians count (default 5)"
    )


def run(args: argparse.Namespace) -> Report:
    runs = [_measure(name, args.messages, round_) for round_ in range(args.rounds) for name in SENDERS]
    rates = {name: median(run["tasks_per_s"] for run in runs if run["sender"] == name) for name in SENDERS}
    vs_delay = rounded(rates["delay_many"] / rates["stock delay"])
    return Report(
        name="publish",
        figures={
            "delay": rates["delay"],
            "stock_delay": rates["stock delay"],
            "delay_many": rates["delay_many"],
            "vs_delay": vs_delay,
        },
        runs=runs,
        columns=("sender", "tasks/s", "x stock's delay"),
        rows=[(name, rate, rate / rates["stock delay"]) for name, rate in rates.items()],
        notes=[f"{args.messages:,} tasks with an integer as argument; medians of {args.rounds} interleaved rounds."],
    )


def _delay_each(task: Any, values: range) -> None:
    for value in values:
        task.delay(value)


def _delay_many(task: Any, values: range) -> None:
    task.delay_many(values)


#: The app and the function that sends, for each sender.
SENDERS: dict[str, tuple[str, Callable[[Any, range], None]]] = {
    "stock delay": ("stock_app", _delay_each),
    "delay": ("batchery_app", _delay_each),
    "delay_many": ("batchery_app", _delay_many),
}


def _measure(name: str, count: int, round_: int) -> dict[str, Any]:
    app, send = SENDERS[name]
    with valkey() as url, import_app(app, url) as module, redis.Redis.from_url(url) as client:
        send(module.small, range(100))
        client.delete(QUEUE)
        start = time.perf_counter()
        send(module.small, range(count))
        seconds = time.perf_counter() - start
        if (waiting := client.llen(QUEUE)) != count:
            raise RuntimeError(f"{name} sent {waiting} tasks instead of {count}.")
    return {"round": round_, "sender": name, "messages": count, "tasks_per_s": rounded(count / seconds)}
