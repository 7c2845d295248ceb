"""Draws the plot of the demo."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .trial import Trial

INK, FAINT = "#1f2933", "#d9dee4"
COLOURS = {"Batchery": "#0f766e", "Celery,\none by one": "#9aa5b1"}


def plot(batchery: Trial, stock: Trial, path: Path) -> None:
    """Draw the texts per second on the left, and the answers over time on the right."""
    trials = dict(zip(COLOURS, (batchery, stock), strict=True))
    with plt.rc_context(
        {"font.size": 11, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    ):
        figure, (rates, answers) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1, 2.2), layout="constrained")
        _draw_rates(rates, trials)
        _draw_answers(answers, trials)
        figure.suptitle(
            f"{len(batchery.sent)} texts, each its own Celery task: "
            f"{batchery.tasks_per_s / stock.tasks_per_s:.1f} times the throughput",
            fontweight="bold",
            x=0.01,
            ha="left",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _draw_rates(axes: Axes, trials: dict[str, Trial]) -> None:
    rates = {name: trial.tasks_per_s for name, trial in trials.items()}
    bars = axes.bar(list(rates), list(rates.values()), color=list(COLOURS.values()), width=0.6)
    axes.bar_label(bars, fmt="{:.0f}", padding=3, fontweight="bold")
    axes.set_title("texts per second", loc="left", fontsize=11)
    axes.set_ylim(0, 1.15 * max(rates.values()))
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_answers(axes: Axes, trials: dict[str, Trial]) -> None:
    slowest = max(max(trial.answered) for trial in trials.values())
    for (name, trial), colour in zip(trials.items(), COLOURS.values(), strict=True):
        times = [0.0, *sorted(trial.answered)]
        axes.step(times, range(len(times)), where="post", color=colour, linewidth=2)
        axes.annotate(
            name.replace("\n", " "),
            (times[-1], len(times) - 1),
            xytext=(0, 5) if times[-1] == slowest else (-6, -4),  # the labels must not overlap
            textcoords="offset points",
            ha="right",
            color=colour,
            fontweight="bold",
        )
    axes.set_title("answers received", loc="left", fontsize=11)
    axes.set_xlabel("seconds since the first text was sent")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.1 * len(next(iter(trials.values())).sent))
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
