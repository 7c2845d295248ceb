"""`make lint` finds what it is there to find: each check passes on the tree, and fails on a planted mistake."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE_FOLDERS

from .conftest import Make

Plant = Callable[[str, str], None]

#: For each contract in pyproject.toml, a file that breaks it.
BROKEN_CONTRACTS = {
    "one-way": ("configs/planted_layer.py", "from ..batchers import planted_model\n"),
    "no-cycles": ("batchers/planted_cycle.py", "from . import planted_model\n"),
    "rooms": ("worker/broker/planted_room.py", "from .. import engine\n"),
    "pure-configs": ("configs/planted_library.py", "import numpy\n"),
    "pure-batchers": ("batchers/planted_model.py", "import redis\n\nfrom . import planted_cycle\n"),
    "producer-without-torch": ("producer/planted_torch.py", "import torch\n"),
    "engine-without-queue": ("worker/engine/planted_queue.py", "import celery\n"),
    "broker-without-celery": ("worker/broker/planted_celery.py", "def lazily():\n    import celery\n"),
    "torch-in-engine": ("worker/consumer/planted_torch.py", "import torch\n"),
}


@pytest.fixture
def plant(tree: Path) -> Iterator[Plant]:
    """`plant(path, text)` adds a file to the copy of the tree, until the test is over."""
    planted: list[Path] = []

    def add(path: str, text: str) -> None:
        planted.append(tree / path)
        assert not planted[-1].exists()
        planted[-1].write_text(text)

    yield add
    for path in planted:
        path.unlink()


def contracts(tree: Path) -> dict[str, str]:
    settings = tomllib.loads((tree / "pyproject.toml").read_text())
    return {contract["id"]: contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]}


@pytest.mark.parametrize("check", ["ruff", "types", "layers"])
@pytest.mark.timeout(300)
def test_the_tree_passes(make: Make, check: str) -> None:
    done = make(check)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import json\n", "F401"),
        ("x = [1,2]\n", "would be reformatted"),
        ('def hello() -> None:\n    """Greet."""\n    print("hello")\n', "T201"),
        ("def hello() -> None:\n    pass\n", "D103"),
        ("from time import sleep\n\nsleep(1)\n", "Wait for an event until a deadline"),
        ("from batchery.configs import options\n\noptions.x = 1\n", "Inside the package imports are relative"),
        ("import pickle\n\npickle.loads(b'')\n", "Nothing is unpickled"),
    ],
)
def test_ruff_finds_a_planted_mistake(make: Make, plant: Plant, text: str, message: str) -> None:
    plant("batchers/planted.py", text if "D103" in message else f'"""Planted."""\n\n{text}')
    done = make("ruff")
    assert done.returncode != 0
    assert message in done.stdout


def test_type_checkers_see_every_module_of_the_package(root: Path) -> None:
    seen = {
        (Path(folder) / name).resolve()
        for folder, _, names in os.walk(root / ".typing" / "batchery", followlinks=True)
        for name in names
        if name.endswith(".py")
    }
    packaged = {path for folder in PACKAGE_FOLDERS for path in (root / folder).rglob("*.py")}
    assert seen == packaged


@pytest.mark.timeout(300)
def test_mypy_finds_planted_mistakes_in_every_folder(make: Make, plant: Plant) -> None:
    folders = ["configs", "batchers", "producer", "worker", "worker/engine", "worker/broker", "worker/consumer"]
    folders += ["tests", "benchmarks", "examples"]
    for folder in folders:
        plant(f"{folder}/planted_type.py", "def planted(count: int) -> str:\n    return count\n")
    plant("batchers/planted_untyped.py", "def planted(count):\n    return count\n")
    done = make("types")
    assert done.returncode != 0
    for folder in folders:
        assert f"{folder}/planted_type.py:2: error: Incompatible return value type" in done.stdout
    assert "Function is missing a type annotation" in done.stdout


def test_import_linter_finds_a_planted_breach_of_every_contract(make: Make, plant: Plant, tree: Path) -> None:
    for path, text in BROKEN_CONTRACTS.values():
        plant(path, text)
    done = make("layers")
    assert done.returncode != 0
    broken = {id_ for id_, name in contracts(tree).items() if f"{name} BROKEN" in done.stdout}
    assert broken == set(contracts(tree)) == set(BROKEN_CONTRACTS), done.stdout
