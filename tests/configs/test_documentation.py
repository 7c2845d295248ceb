"""docs/configuration.md lists every option, with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from batchery.configs import TaskOptions, WorkerOptions
from batchery.configs.configuration import from_text, load_configuration, option_value

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()

#: The unit that the end of an option's name stands for.
UNITS = {"ms": "ms", "s": "s", "bytes": "bytes", "tokens": "tokens", "threads": "threads", "size": "jobs"}


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """Unit and default of each option in the table below a heading, by name."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| (.*?) ?\| `(.+?)` \| \w.*\. \|$", section, flags=re.MULTILINE)
    return {name: (unit, default) for name, unit, default in found}


@pytest.mark.parametrize(
    ("kind", "heading"), [(TaskOptions, "Options of a task"), (WorkerOptions, "Options of a worker")]
)
def test_every_option_is_listed_with_its_unit_and_its_default(kind: Any, heading: str) -> None:
    listed = rows(heading)
    assert set(listed) == {*kind.__struct_fields__}
    for name, (unit, default) in listed.items():
        value = None if default == "all" else option_value(kind, name, from_text(default))
        assert (tuple(value) if isinstance(value, list) else value) == getattr(kind(), name)
        assert unit == UNITS.get(name.rsplit("_", 1)[-1], unit)


def test_every_preset_is_listed() -> None:
    section = PAGE.split("\n## Presets\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    presets = (Path(__file__).parents[2] / "configs" / "presets").glob("*.toml")
    assert set(listed) == {path.stem for path in presets}


def test_the_file_that_is_shown_can_be_used(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "deployment.toml").write_text(block)
    shown = load_configuration(tmp_path / "deployment.toml", {})
    assert "search.embed" in shown.tasks
    assert shown.problems == []
