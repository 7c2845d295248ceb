"""Sends calls while workers, server and network fail, and checks that each call gets its own answer.

The answer of each call is known beforehand. Workers write down each execution. The checker compares both after the end.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes in which calls and faults come (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="the seed of calls and faults (default 1)")
    parser.add_argument(
        "--system",
        choices=["batchery", "stock", "celery-batches", "all"],
        default="batchery",
        help="the workers (default batchery)",
    )
    parser.add_argument("--workers", type=int, default=3, help="the number of workers (default 3)")
    parser.add_argument("--rate", type=float, default=30.0, help="calls per second (default 30)")
    parser.add_argument("--settle-s", type=float, default=120.0, help="seconds to wait for the last answers")
    parser.add_argument("--faults", default="", help="only these faults, with commas between (chaos/faults.py)")
    parser.add_argument("--gap-s", type=float, default=3.5, help="seconds between two faults on average (default 3.5)")
    parser.add_argument("--sentinel", action="store_true", help="workers and producers ask Sentinel for the server")
    parser.add_argument("--no-poisons", action="store_true", help="no inputs that kill or hang a worker")


def run(args: argparse.Namespace) -> Report:
    from .command import run as run_command  # here, because workers and producers import this package, too

    return run_command(args)
