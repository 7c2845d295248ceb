"""The repository as a whole: copies of it to plant mistakes in, and the wheel it makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

Make = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree, without what git ignores. A test puts back what it changes."""
    copy = tmp_path_factory.mktemp("house") / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    # Modification times are kept, so mypy can go on from what it knows: 5 s instead of a minute.
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    return copy


@pytest.fixture(scope="session")
def make(tree: Path) -> Make:
    """`make(target)` in the copy, with the environment that these tests run in."""

    def run(target: str) -> subprocess.CompletedProcess[str]:
        # --old-file: this environment is the right one, and must not come to point at the copy.
        command = ["make", "--old-file=setup", f"VENV={sys.prefix}", target]
        # Not what an outer `make test` was told.
        env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
        return subprocess.run(command, cwd=tree, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    """The wheel, built from a source distribution as a release would be."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={out}", str(tree)]
    built = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert built.returncode == 0, built.stdout
    [wheel] = out.glob("*.whl")
    return wheel
