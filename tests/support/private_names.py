"""The names of Celery's and kombu's that producer/private.py lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.paths import ROOT


def assert_known(name: str, is_known: Callable[[], bool]) -> None:
    """Fail, with the name in the message, unless Celery or kombu has it as it was."""
    try:
        known = is_known()
    except Exception as error:
        pytest.fail(f"Celery or kombu has no {name} any more: {error!r}")
    assert known, f"{name} of Celery or kombu is not what it was"


def listed_names() -> tuple[list[str], list[str]]:
    """The names of the producer's table, and those of the worker's."""
    docstring = ast.get_docstring(ast.parse((ROOT / "producer/private.py").read_text())) or ""
    producers, _, workers = docstring.partition("The worker uses")
    return [*_names(producers)], [*_names(workers)]


def _names(table: str) -> Iterator[str]:
    for row in re.findall("^[|] (`.+?) [|]", table, re.MULTILINE):
        first, *others = re.findall("`(.+?)`", row)
        owner = first.rpartition(".")[0]
        yield from (first, *(owner + name if name.startswith(".") else name for name in others))
