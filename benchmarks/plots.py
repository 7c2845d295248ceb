"""Draws the plots of `padding` and `load`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .demo_plot import FAINT, INK

OURS, OTHERS = "#0f766e", ("#9aa5b1", "#c9a227", "#b4534b", "#6b7fae")


def plot_padding(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the cost of each method as a multiple of the optimum, with one panel for each launch cost."""
    launches = list(dict.fromkeys(run["launch"] for run in runs))
    ways = [way for way in runs[0]["vs_optimum"] if way not in ("optimum", "learning")]
    with _style():
        figure, panels = plt.subplots(1, len(launches), figsize=(11, 4.2), layout="constrained", squeeze=False)
        for axes, launch in zip(panels[0], launches, strict=True):
            own = [run for run in runs if run["launch"] == launch]
            for index, way in enumerate(ways):
                places = [place + (index - (len(ways) - 1) / 2) / (len(ways) + 1) for place in range(len(own))]
                heights = [run["vs_optimum"][way] for run in own]
                bars = axes.bar(places, heights, 0.9 / (len(ways) + 1), label=way, color=_colour(way, index))
                if way == "batchery":
                    axes.bar_label(bars, fmt="{:.2f}", padding=2, fontsize=8, fontweight="bold")
            axes.axhline(1, color=INK, linewidth=0.8)
            axes.set_xticks(range(len(own)), [run["lengths"] for run in own])
            axes.set_title(f"a launch costs as much as {launch:,} tokens", loc="left", fontsize=10)
            _tidy(axes)
        panels[0][0].set_ylabel("cost, as a multiple of the optimum")
        panels[0][0].legend(frameon=False)
        _save(figure, path)


def plot_load(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the 95th percentile of latency at each load, with one panel for each kind of arrivals."""
    kinds = list(dict.fromkeys(run["arrivals"] for run in runs))
    policies = list(dict.fromkeys(run["policy"] for run in runs))
    with _style():
        figure, panels = plt.subplots(1, len(kinds), figsize=(10, 4), layout="constrained", squeeze=False)
        for axes, kind in zip(panels[0], kinds, strict=True):
            for index, policy in enumerate(policies):
                own = [run for run in runs if run["arrivals"] == kind and run["policy"] == policy]
                loads = [100 * run["load"] for run in own]
                colour = _colour(policy, index)
                axes.plot(loads, [run["p95_ms"] for run in own], marker="o", label=policy, color=colour, linewidth=2)
            axes.set_title(f"arrivals: {kind}", loc="left", fontsize=10)
            axes.set_xlabel("load, % of what the device can do")
            axes.set_ylim(bottom=0)
            _tidy(axes)
        panels[0][0].set_ylabel("latency, 95th percentile, ms")
        panels[0][0].legend(frameon=False)
        _save(figure, path)


def _style() -> AbstractContextManager[None]:
    return plt.rc_context(
        {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    )


def _colour(name: str, index: int) -> str:
    return OURS if name.lower().startswith("batchery") else OTHERS[index % len(OTHERS)]


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
