"""Compares the rates of real texts with stock Celery, first-come batches, Batchery, and a loop over sorted batches.

All texts go through a real model and are ready at one moment. The time runs until the last result is stored. A second
run uses the outlier mix, which has short texts and one text in 64 that is a hundred times longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

from tests.support.paths import ROOT
from tests.support.servers import valkey
from tests.support.waiting import ServiceError

from .backlog import QUEUE, load
from .contenders import Contender
from .report import Report, median, rounded
from .texts import texts

WARM_UP = 64
ON_QUEUE = ("-Q", QUEUE)
STOCK = Contender("stock Celery, one by one", "examples.embedding_stock", ("-P", "solo", *ON_QUEUE))
FIRST_COME = Contender("first-come batches of 32", "benchmarks.apps.embed_batches_app", ("-P", "solo", *ON_QUEUE))
BATCHERY = Contender("Batchery", "examples.embedding", ON_QUEUE)
CEILING = "sorted batches, no queue"

#: The outlier mix has short texts, and one in `OUTLIER_EVERY` texts is `OUTLIER_TIMES` times longer.
SHORT, OUTLIER_EVERY, OUTLIER_TIMES = "a short text", 64, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the model (default cpu)")
    parser.add_argument("--texts", type=int, help="real texts (default 400, on cuda 3,600)")
    parser.add_argument("--outlier-texts", type=int, help="texts of the outlier mix (default 384, on cuda 6,400)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of all contenders in turn; medians count (default 3)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot of the texts per second to FILE")


def run(args: argparse.Namespace) -> Report:
    cuda = args.device == "cuda"
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["EMBEDDING_MAX_LENGTH"] = "512"  # long enough for an outlier
    sample = texts(args.texts or (3600 if cuda else 400))
    outliers = _outlier_mix(args.outlier_texts or (6400 if cuda else 384))
    runs: list[dict[str, Any]] = []
    for round_ in range(args.rounds):
        for contender in (STOCK, FIRST_COME, BATCHERY):
            runs += _measure(contender, round_, {"texts": sample, "outliers": outliers})
        for cut, seconds in _sorted_loop(sample).items():
            rate = rounded(len(sample) / seconds)
            runs.append({"round": round_, "contender": f"{CEILING}: {cut}", "mix": "texts", "tasks_per_s": rate})
    report = _report(runs, args, len(sample), len(outliers))
    if args.plot:
        _plot(report, args.plot)
    return report


def _outlier_mix(count: int) -> list[str]:
    long = " ".join([SHORT] * OUTLIER_TIMES)
    return [long if index % OUTLIER_EVERY == OUTLIER_EVERY // 2 else SHORT for index in range(count)]


def _measure(contender: Contender, round_: int, mixes: dict[str, list[str]]) -> list[dict[str, Any]]:
    runs = []
    with valkey() as url, load(url, "embed", "a text") as messages, contender.start(url) as alive:
        messages.release(messages.prepare_each(mixes["texts"][:WARM_UP]), alive)
        for mix, sample in mixes.items():
            ids = messages.prepare_each(sample)
            seconds = messages.release(ids, alive, timeout=900)
            messages.check(ids)
            runs.append(
                {
                    "round": round_,
                    "contender": contender.name,
                    "mix": mix,
                    "texts": len(sample),
                    "tasks_per_s": rounded(len(sample) / seconds),
                }
            )
    return runs


def _sorted_loop(sample: list[str]) -> dict[str, float]:
    """Return the seconds for each way to make the batches."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(sample, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.sorted_loop", file.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"The loop over sorted batches failed:\n{done.stderr[-3000:]}")
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def _report(runs: list[dict[str, Any]], args: argparse.Namespace, count: int, outlier_count: int) -> Report:
    def rate(name: str, mix: str) -> float:
        return median(run["tasks_per_s"] for run in runs if (run["contender"], run["mix"]) == (name, mix))

    names = [contender.name for contender in (STOCK, FIRST_COME, BATCHERY)]
    rates = {name: rate(name, "texts") for name in names}
    # This is the best of the medians, because the best of the single runs would be the luckiest one.
    rates[CEILING] = max(rate(name, "texts") for name in {run["contender"] for run in runs} if name not in names)
    mixed = {name: rate(name, "outliers") for name in names}
    stock, first_come, ours, ceiling = rates.values()
    return Report(
        name="mixed",
        figures={
            "tasks_per_s": ours,
            "stock": stock,
            "first_come": first_come,
            "ceiling": ceiling,
            "of_ceiling": rounded(ours / ceiling),
            "vs_stock": rounded(ours / stock),
            "vs_first_come": rounded(ours / first_come),
            "outliers_vs_one_by_one": rounded(mixed[BATCHERY.name] / mixed[STOCK.name]),
            "outliers_vs_first_come": rounded(mixed[BATCHERY.name] / mixed[FIRST_COME.name]),
            "device": args.device,
        },
        runs=runs,
        columns=("", "texts/s", "x one by one", "outlier mix: texts/s", "x one by one"),
        rows=[
            (name, r, r / stock, *((mixed[name], mixed[name] / mixed[STOCK.name]) if name in mixed else ("", "")))
            for name, r in rates.items()
        ],
        notes=[
            f"{count} docstrings of the standard library go through all-MiniLM-L6-v2 on {args.device}. The outlier mix "
            f"has {outlier_count} short texts, and one in {OUTLIER_EVERY} of them is {OUTLIER_TIMES} times longer.",
            "The time runs from the moment when all texts are ready until every result is stored. Rates are medians of "
            f"{args.rounds} interleaved rounds. One by one means -P solo, with one forward pass at a time. The rate of "
            "sorted batches is that of the fastest of several batch sizes.",
        ],
    )


def _plot(report: Report, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [str(row[0]) for row in report.rows]
    values = [float(row[1]) for row in report.rows]
    figure, axes = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    bars = axes.barh(names[::-1], values[::-1], color=["#b8b8b8", "#d9480f", "#b8b8b8", "#b8b8b8"])
    axes.bar_label(bars, fmt="%.0f", padding=4)
    axes.set_xlabel("texts per second (docstrings through all-MiniLM-L6-v2)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
