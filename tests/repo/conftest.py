"""The wheel that the repository makes, and what a user has who installs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a source distribution as a release would be, in a copy of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={folder}", str(folder / "tree")]
    built = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert built.returncode == 0, built.stdout
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and those that it requires, as pip would install them, and no others.

    The required ones are this environment's, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder}", str(wheel)], check=True)
    [ours] = Distribution.discover(name="batchery", path=[str(folder)])
    found: dict[str, Distribution] = {}
    dependencies(ours, found)
    for required in found.values():
        for name in {file.parts[0] for file in required.files or ()} - {"..", "__pycache__"}:
            (folder / name).symlink_to(Path(str(required.locate_file(name))))
    return folder


def dependencies(parent: Distribution, found: dict[str, Distribution], extras: frozenset[str] = frozenset()) -> None:
    """Add to `found`, by name, what a distribution requires, and what that requires."""
    for requirement in map(Requirement, parent.requires or ()):
        name, marker = canonicalize_name(requirement.name), requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
        if wanted and (name not in found or requirement.extras):
            found[name] = distribution(name)
            dependencies(found[name], found, frozenset(requirement.extras))
