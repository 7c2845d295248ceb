"""The names of Celery's and kombu's that producer/private.py lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support.paths import ROOT


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
