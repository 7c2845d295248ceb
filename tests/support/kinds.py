"""The four kinds of tests: each test has exactly one of these markers."""

from __future__ import annotations

from collections.abc import Iterable

KINDS = {
    "unit": "needs neither a server nor a worker process",
    "redis": "uses a Redis or Valkey server, but starts no worker process",
    "worker": "starts a worker process, or uses one",
    "repo": "checks the repository itself: its tools, its package, its documents",
}

#: Fixtures on which every fixture depends that starts a server, or a worker process.
SERVER_FIXTURES = {"server", "many_databases"}
WORKER_FIXTURES = {"start_worker", "module_worker"}


def kinds_of(folder: str, fixtures: Iterable[str], markers: Iterable[str]) -> set[str]:
    """The kinds of a test: those that it is marked with, otherwise the one that its folder and its fixtures tell."""
    if marked := KINDS.keys() & set(markers):
        return set(marked)
    if folder == "repo":
        return {"repo"}
    if WORKER_FIXTURES & set(fixtures):
        return {"worker"}
    return {"redis"} if SERVER_FIXTURES & set(fixtures) else {"unit"}


def check_command(command: str, kind: str) -> None:
    """Raise an AssertionError if a test of this kind may not start this process."""
    starts = "worker" if "celery" in command and "'worker'" in command else "redis" if "valkey" in command else "unit"
    order = list(KINDS)
    assert order.index(kind) >= order.index(starts), f"Mark this {kind} test {starts}, because it starts {command}"
