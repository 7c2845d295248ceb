"""`make lint` finds what it is there to find: each of its checks, with its real settings, fails on a planted mistake.

That the tree itself passes is for `make lint`, which CI runs once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE_FOLDERS, ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: For each contract in pyproject.toml, a file that breaks it.
BROKEN_CONTRACTS = {
    "one-way": ("configs/planted_layer.py", "from ..batchers import planted_model\n"),
    "no-cycles": ("batchers/planted_cycle.py", "from . import planted_model\n"),
    "rooms": ("worker/broker/planted_room.py", "from .. import engine\n"),
    "rooms-of-the-consumer": ("worker/consumer/wire/planted_room.py", "from .. import fast\n"),
    "pure-configs": ("configs/planted_library.py", "import numpy\n"),
    "pure-batchers": ("batchers/planted_model.py", "import redis\n\nfrom . import planted_cycle\n"),
    "producer-without-torch": ("producer/planted_torch.py", "import torch\n"),
    "engine-without-queue": ("worker/engine/planted_queue.py", "import celery\n"),
    "broker-without-celery": ("worker/broker/planted_celery.py", "def lazily():\n    import celery\n"),
    "torch-in-engine": ("worker/consumer/fast/planted_torch.py", "import torch\n"),
}


def run(*command: str, folder: Path = ROOT, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of this environment's programs, with `text` as its input; its errors come with its output."""
    # Not what an outer `make test` was told.
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        command, cwd=folder, env=env, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def python(*command: str, folder: Path = ROOT, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *command, folder=folder, text=text)


def modules(folder: Path) -> set[Path]:
    """Every module below a folder, wherever its symlinks lead."""
    return {
        (Path(parent) / name).resolve()
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(".py")
    }


def test_make_lint_runs_every_check_and_ci_runs_it_once() -> None:
    recipe = run("make", "--dry-run", "--old-file=setup", "lint").stdout
    for command in ("ruff check", "ruff format --check", "mypy", "lint-imports"):
        assert recipe.count(f"/{command}") == 1, recipe
    assert (ROOT / ".ci" / "run").read_text().count("make lint") == 1


# --- ruff -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import json\n", "F401"),
        ('def hello() -> None:\n    """Greet."""\n    print("hello")\n', "T201"),
        ("def hello() -> None:\n    pass\n", "D103"),
        ("from time import sleep\n\nsleep(1)\n", "Wait for an event until a deadline"),
        ("from batchery.configs import options\n\noptions.x = 1\n", "Inside the package imports are relative"),
        ("import pickle\n\npickle.loads(b'')\n", "Nothing is unpickled"),
    ],
)
def test_ruff_finds_a_planted_mistake(text: str, message: str) -> None:
    text = text if "D103" in message else f'"""Planted."""\n\n{text}'
    done = python("-m", "ruff", "check", "--stdin-filename=batchers/planted.py", "-", text=text)
    assert done.returncode != 0
    assert message in done.stdout


def test_ruff_finds_a_planted_line_that_it_would_format() -> None:
    command = ["-m", "ruff", "format", "--check", "--stdin-filename=batchers/planted.py", "-"]
    assert python(*command, text="x = [1, 2]\n").returncode == 0
    assert python(*command, text="x = [1,2]\n").returncode != 0


def test_ruff_reads_every_module() -> None:
    read = set(map(Path, python("-m", "ruff", "check", "--show-files").stdout.splitlines()))
    for folder in [*PACKAGE_FOLDERS, "tests", "benchmarks", "examples"]:
        assert modules(ROOT / folder) <= read


# --- mypy -------------------------------------------------------------------------------------------------------------


def test_type_checkers_see_every_module_of_the_package() -> None:
    assert modules(ROOT / ".typing" / "batchery") == set().union(
        *(modules(ROOT / folder) for folder in PACKAGE_FOLDERS)
    )


def test_mypy_finds_planted_mistakes_in_every_folder(tmp_path: Path) -> None:
    """In a tree that has nothing but the mistakes, so that mypy is done in seconds."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / ".typing", tmp_path / ".typing", symlinks=True)
    folders = ["configs", "batchers", "producer", "worker", "worker/engine", "worker/broker", "worker/consumer"]
    folders += ["tests", "benchmarks", "examples"]
    for folder in ["batchery", *folders]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    for folder in folders:
        (tmp_path / folder / "planted_type.py").write_text("def planted(count: int) -> str:\n    return count\n")
    (tmp_path / "batchers" / "planted_untyped.py").write_text("def planted(count):\n    return count\n")
    done = python("-m", "mypy", folder=tmp_path)
    assert done.returncode != 0
    for folder in folders:
        assert f"{folder}/planted_type.py:2: error: Incompatible return value type" in done.stdout, done.stdout
    assert "Function is missing a type annotation" in done.stdout


# --- import-linter ----------------------------------------------------------------------------------------------------


def test_import_linter_finds_a_planted_breach_of_every_contract(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".typing" / "batchery", tmp_path / "batchery", ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in BROKEN_CONTRACTS.values():
        planted = tmp_path / "batchery" / path
        assert not planted.exists()
        planted.write_text(text)
    linter = shutil.which("lint-imports", path=Path(sys.executable).parent)
    assert linter is not None
    done = run(linter, "--no-logo", "--no-cache", f"--config={ROOT / 'pyproject.toml'}", folder=tmp_path)
    assert done.returncode != 0
    contracts = {contract["id"]: contract["name"] for contract in SETTINGS["tool"]["importlinter"]["contracts"]}
    words = " ".join(done.stdout.split())  # long names are wrapped
    broken = {id_ for id_, name in contracts.items() if f"{name} BROKEN" in words}
    assert broken == set(contracts) == set(BROKEN_CONTRACTS), done.stdout
