"""The house's limits: what is too large to be read at once is asking to be two things."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FOLDERS = ("batchery", "configs", "batchers", "producer", "worker")
LIMITS = {"file": 300, "class": 150, "function": 40}
#: Occurrences of `Any` in the consumer, whose types are Celery's.
MOST_ANY = 30


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def sizes(code: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, name and lines of everything that has a limit."""
    yield "file", "", len(code.splitlines())
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield kind, node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def too_large(code: str) -> list[tuple[str, str, int]]:
    return [(kind, name, lines) for kind, name, lines in sizes(code) if lines > LIMITS[kind]]


@pytest.mark.parametrize("path", [*sources()], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_larger_than_the_limits(path: Path) -> None:
    assert too_large(path.read_text()) == []


@pytest.mark.parametrize(("kind", "head"), [("class", "class A:"), ("function", "def a():")])
def test_the_limits_count_every_line(kind: str, head: str) -> None:
    fitting = "\n".join([head, *["    1"] * (LIMITS[kind] - 1)])
    assert too_large(fitting) == []
    assert [found for found, _, _ in too_large(f"{fitting}\n    1")] == [kind]


def test_the_consumer_is_typed() -> None:
    code = [ast.parse(path.read_text()) for path in (ROOT / "worker" / "consumer").rglob("*.py")]
    names = [node.id for tree in code for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert names.count("Any") <= MOST_ANY
