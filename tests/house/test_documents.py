"""What the documents promise about themselves."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: In the package's own name: batchery[torch] is how one extra contains another.
ITSELF = "batchery"


def documents(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def requirements(root: Path) -> dict[str, Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    stated = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    named = {canonicalize_name(Requirement(line).name): Requirement(line) for line in stated}
    return {name: requirement for name, requirement in named.items() if name != ITSELF}


def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture
def readme(root: Path) -> list[str]:
    path = root / "README.md"
    if not path.exists():
        pytest.skip("no README.md yet")
    return path.read_text().splitlines()


def test_the_readme_shows_code_by_line_15_and_stays_under_150_lines(readme: list[str]) -> None:
    assert "```python" in readme[:15]
    assert len(readme) < 150


def test_the_code_in_the_readme_is_python(readme: list[str]) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", "\n".join(readme), flags=re.MULTILINE | re.DOTALL):
        compile(block, "README.md", "exec")


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    dead = [
        f"{document.relative_to(root)}: {target}"
        for document in documents(root)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (document.parent / target).exists()
    ]
    assert dead == []


def test_the_changelog_has_a_place_for_what_comes_next(root: Path) -> None:
    assert "\n## [Unreleased]\n" in (root / "CHANGELOG.md").read_text()


def test_contributing_says_what_every_dependency_is_for(root: Path) -> None:
    table = (root / "CONTRIBUTING.md").read_text()
    explained = {canonicalize_name(name) for name in re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)}
    # celery-batches is in no extra: its metadata forbids Celery 5.7.
    assert explained == set(requirements(root)) | {"celery-batches"}


def test_every_dependency_is_pinned_within_the_range_we_promise(root: Path) -> None:
    pinned = pins(root)
    outside = [
        f"{name}: {pinned.get(name)} is not {requirement.specifier}"
        for name, requirement in requirements(root).items()
        if name not in pinned or pinned[name] not in requirement.specifier
    ]
    assert outside == []


def test_make_help_lists_every_target(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert set(phony.split()) == set(re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE))
