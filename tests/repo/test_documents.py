"""The documents: their code runs, their links lead somewhere, and they list what they must."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.pages import Page, blocks
from tests.support.paths import ROOT

#: One extra contains another as batchery[torch], which is no dependency.
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


PAGES = [document for document in documents(ROOT) if blocks(document.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_that_a_document_shows_runs(page: Path, redis_url: str, root: Path) -> None:
    broker = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url}
    command = [sys.executable, "-m", "tests.support.pages", str(page)]
    ran = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, **broker},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "line 2: the page shows\n2\n\nbut it prints\n1"),
        ("```python\n# app.py\nprint(1)\n```\n\n```console\n$ python app.py\n2\n```\n", "but it prints\n1"),
        ("```python\n# app.py\n1 / 0\n```\n\n```console\n$ python app.py\n```\n", "left with 1"),
        ("```console\n$ make tea\n```\n", "the Makefile has no target tea"),
        ("```console\n$ piip install batchery\n```\n", "what is piip?"),
        ("```console\n$ python -m no_such_module\n```\n", "there is no"),
        ("```toml\n[worker\n```\n", "Expected"),
        ("```yaml\n- [\n```\n", "expected the node content"),
        ("```ini\nkey = value\n```\n", "no section headers"),
        ("```pyton\nprint(1)\n```\n", "what is a block of 'pyton'"),
    ],
)
def test_a_mistake_in_a_document_is_found(tmp_path: Path, page: str, error: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(Exception, match=re.escape(error)):
        Page(path, tmp_path, "redis://127.0.0.1:1/0").run()


def test_every_code_block_of_a_document_names_its_language() -> None:
    unsaid = [page.name for page in documents(ROOT) if re.search(r"^```\n(?=.)", fences(page), flags=re.MULTILINE)]
    assert unsaid == []


def fences(page: Path) -> str:
    """A page without its blocks. A fence that is left over opens a block without a language."""
    return re.sub(r"^```[^\n`]+\n.*?^```$\n?", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    dead = [
        f"{document.relative_to(root)}: {target}"
        for document in documents(root)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        if "://" not in target and not target.startswith("mailto:") and not (document.parent / target).exists()
    ]
    assert dead == []


def test_every_test_that_a_document_names_exists(root: Path) -> None:
    named = {
        (path, test)
        for document in documents(root)
        for path, test in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", document.read_text())
    }
    assert named
    missing = [
        f"{path}::{test}"
        for path, test in sorted(named)
        if not (root / path).exists() or f"def {test}(" not in (root / path).read_text()
    ]
    assert missing == []


def test_the_changelog_has_a_section_for_the_next_release(root: Path) -> None:
    assert "\n## [Unreleased]\n" in (root / "CHANGELOG.md").read_text()


def test_contributing_says_what_every_dependency_is_for(root: Path) -> None:
    table = (root / "CONTRIBUTING.md").read_text()
    explained = {canonicalize_name(name) for name in re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)}
    # celery-batches is in no extra: its metadata forbids Celery 5.7.
    assert explained == set(requirements(root)) | {"celery-batches"}


def test_contributing_states_the_floor_of_coverage(root: Path) -> None:
    floor = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["coverage"]["report"]["fail_under"]
    assert f"less than {floor} %" in (root / "CONTRIBUTING.md").read_text()


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
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
