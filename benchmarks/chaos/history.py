"""What happened in a chaos run, read from the files of producers and workers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .calls import Call, Send


@dataclass
class Run:
    """One execution of one batch or of one plain task."""

    worker: str
    stage: str
    keys: list[str]
    start: float
    tag: str = ""
    end: float = 0.0
    #: The class of the exception with which it ended.
    error: str = ""

    @property
    def cut(self) -> bool:
        """Whether it has no end, because its process has died or it hangs."""
        return not self.end


@dataclass(frozen=True)
class Sent:
    """A call that a producer has sent, or has tried to send."""

    call: Call
    kind: str
    before: float
    after: float
    #: Whether the server has taken it for sure.
    sure: bool


class Tail:
    """Reads what is new in a file of lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            with self.path.open() as file:
                file.seek(self._read)
                while (line := file.readline()).endswith("\n"):
                    yield json.loads(line)
                    self._read = file.tell()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a producer that is writing
            continue


def runs(folder: Path) -> list[Run]:
    found: dict[str, Run] = {}
    for line in lines(folder / "runs.jsonl"):
        name = f"{line['worker']}/{line['run']}"
        if line["event"] == "start":
            found[name] = Run(line["worker"], line["stage"], line["keys"], line["t"], line.get("tag") or "")
        else:
            found[name].end = line["t"]
            found[name].error = line.get("error", "")
    return list(found.values())


def by_key(all_runs: list[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in all_runs:
        for key in run.keys:
            found[key].append(run)
    return found


@dataclass(frozen=True)
class Wait:
    """A caller that waited for the answer of a call, and the error that it got."""

    id: str
    done: float
    error: str
    #: Whether it gave up, because no answer came.
    timeout: bool


def waits(path: Path) -> list[Wait]:
    return [
        Wait(line["waits"], line["done"], line.get("error", ""), line.get("timeout", False))
        for line in lines(path)
        if "waits" in line
    ]


def sent(lines_of_producer: Iterable[dict[str, Any]], sends: list[Send]) -> list[Sent]:
    """Return the calls that a producer has sent, by its lines."""
    found = []
    for line in lines_of_producer:
        if "done" not in line or "n" not in line:
            continue
        send = sends[line["n"]]
        ids = line.get("ids") or [call.id for call in send.calls]
        for call, task_id in zip(send.calls, ids, strict=True):
            found.append(Sent(replace(call, id=task_id), send.kind, line["t"], line["done"], "ids" in line))
    return found
