"""Sends 500 real texts through a real model, first to a worker of Batchery and then to a worker of plain Celery.

Batchery runs the texts in batches, and plain Celery runs them one by one. `python -m benchmarks.demo` (or `make demo`)
prints a table and writes build/demo.json and build/demo.png.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.support.servers import valkey
from tests.support.waiting import ServiceError
from tests.support.workers import celery_worker

from .demo_plot import plot
from .report import Report, rounded
from .texts import texts
from .trial import Trial, answer_all

WARM_UP_TEXTS = 16
#: Padding changes the order in which floats are summed. Vectors that differ by more than this are not the same.
MAX_DIFFERENCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--texts", type=int, default=500, metavar="N", help="the number of texts (default 500)")
    parser.add_argument("--out", type=Path, default=Path("build"), metavar="DIR", help="output folder (default build)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops worker and server
    try:
        report = run(args.texts, args.out)
    except (ServiceError, TimeoutError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    report.print()
    report.write(args.out / "demo.json")
    print(f"{args.out / 'demo.json'}   {args.out / 'demo.png'}")
    return 0


def run(count: int, out: Path) -> Report:
    """Run both trials on one server, and draw the plot.

    Raise a `ServiceError` if an answer is missing, or if the two workers gave different vectors.
    """
    sample = texts(count + WARM_UP_TEXTS)
    with valkey() as url:
        os.environ["REDIS_URL"] = url  # the examples read it when they are imported
        example, stock_example = (import_module(f"examples.{name}") for name in ("embedding", "embedding_stock"))
        batchery, stats = _trial("Batchery", url, example, sample, count, args=(), env={})
        args, env = stock_options()
        stock, _ = _trial("Celery, one by one", url, stock_example, sample, count, args=args, env=env)
    report = _report(batchery, stock, stats, " ".join([*(f"{k}={v}" for k, v in env.items()), *args]))
    if report.figures["max_difference"] > MAX_DIFFERENCE:  # type: ignore[operator]
        raise ServiceError(f"The two workers gave different vectors, by up to {report.figures['max_difference']}.")
    plot(batchery, stock, out / "demo.png")
    return report


def stock_options() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return options and environment for one forward pass at a time, with torch's default threads, as for Batchery.

    On a CPU stock Celery is faster with a process for each core and one torch thread in each process (53 to 61 texts/s
    with two passes at a time on 2 cores). On a GPU each process would load its own copy of the model.
    """
    return ("-P", "solo"), {}


def _trial(
    name: str, url: str, example: Any, sample: list[str], count: int, *, args: tuple[str, ...], env: dict[str, str]
) -> tuple[Trial, dict[str, Any]]:
    """Return one worker's answers to the first `count` texts of the sample, and its own counts of batches and jobs.

    The rest of the sample warms the worker up.
    """
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    module = example.__name__
    with Progress(*columns) as progress:
        bar = progress.add_task(f"{name}: starting", total=count)
        with celery_worker(module, url, args=("-l", "WARNING", *args), env=env) as worker:
            for text in sample[count:]:
                example.embed.delay(text).get(timeout=120)
            for result in [example.embed.delay(text) for text in sample[count:]]:
                result.get(timeout=120)
            before = _stats(example.app, worker.name)
            progress.update(bar, description=name)
            trial = answer_all(url, worker, example.embed, sample[:count], lambda n: progress.update(bar, completed=n))
            after = _stats(example.app, worker.name)
    return trial, {key: after[key] - before[key] for key in ("batches", "jobs") if key in after} | {
        "padding_share": after.get("padding_share", 0.0)
    }


def _stats(app: Any, worker_name: str) -> dict[str, Any]:
    answers = app.control.inspect(destination=[worker_name], timeout=5, limit=1).stats() or {}
    found: dict[str, Any] = answers.get(worker_name, {}).get("batchery", {})
    return found


def _report(batchery: Trial, stock: Trial, stats: dict[str, Any], stock_note: str) -> Report:
    figures: dict[str, Any] = {
        "tasks": len(batchery.sent),
        "answered": len(batchery.answered),
        "tasks_per_s": batchery.tasks_per_s,
        "stock_tasks_per_s": stock.tasks_per_s,
        "vs_stock": rounded(batchery.tasks_per_s / stock.tasks_per_s),
        "batches": stats["batches"],
        "mean_batch_size": rounded(stats["jobs"] / stats["batches"]),
        "padding_share": rounded(stats["padding_share"]),
        "p50_ms": batchery.latency_ms(50),
        "p95_ms": batchery.latency_ms(95),
        "max_difference": rounded(float(np.abs(batchery.vectors - stock.vectors).max())),
    }
    tasks, share = figures["tasks"], figures["padding_share"]
    return Report(
        name="demo",
        figures=figures,
        runs=[
            {"worker": name, "sent_s": t.sent, "answered_s": t.answered}
            for name, t in (("batchery", batchery), ("stock", stock))
        ],
        columns=("", "Batchery", "Celery, one by one"),
        rows=[
            ("texts per second", batchery.tasks_per_s, stock.tasks_per_s),
            ("forward passes", figures["batches"], tasks),
            ("texts in a pass, mean", figures["mean_batch_size"], 1),
            ("padding computed", f"{share:.1%}", "0.0%"),
            ("latency p50, ms", figures["p50_ms"], stock.latency_ms(50)),
            ("latency p95, ms", figures["p95_ms"], stock.latency_ms(95)),
        ],
        notes=[
            f"Both give the same vectors: no number differs by more than {figures['max_difference']:.1g}.",
            "Texts per second are counted from the first text sent to the last result. The latency of a text runs from "
            "its sending to the arrival of its result at the sender. Most of it is waiting, because all texts are sent "
            "at once.",
            f"Only the padding includes the {2 * WARM_UP_TEXTS} texts of the warm-up.",
            f"Stock Celery runs one forward pass at a time ({stock_note}). Both use torch's default threads.",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
