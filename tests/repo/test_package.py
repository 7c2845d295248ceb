"""The wheel that a user installs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.paths import PACKAGE_FOLDERS

PACKAGED = {".py", ".lua", ".toml"}

# All that a producer does, beside files that have the names of our folders.
PRODUCER = """
import importlib.util, sys

from celery import Celery
from batchery import BatchTask, PadBatcher, setup

app = Celery("calls", broker="memory://", backend="cache+memory://")
setup(app)

@app.task(base=BatchTask, max_batch_size=64, length=len)
def shout(texts):
    return [text.upper() for text in texts]

assert shout("a") == "A"
assert shout.delay("b").id
assert importlib.util.find_spec("torch") is None
print("fine")
"""


def test_the_wheel_holds_exactly_the_files_of_the_tree(wheel: Path, root: Path) -> None:
    expected = set()
    for folder in PACKAGE_FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.suffix in PACKAGED or path.name == "py.typed":
                inside = path.relative_to(root).as_posix()
                if inside.startswith("producer/entry/"):  # for kombu, which must find it outside the package
                    inside = inside.replace("producer/entry", "batchery_kombu")
                elif folder != "batchery":
                    inside = f"batchery/{inside}"
                expected.add(inside)

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert packed == expected


def test_the_wheel_carries_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [license_] = [name for name in archive.namelist() if name.endswith("LICENSE")]
        assert b"Apache License" in archive.read(license_)


# kombu is imported first, and loads entry points before its own import has ended.
KOMBU_FIRST = """
import sys
from kombu import serialization

assert "batchery" not in sys.modules
import numpy

kind, encoding, payload = serialization.dumps([numpy.ones(2)], serializer="batchery")
assert kind == serialization.registry.name_to_type["batchery"]
print(serialization.loads(payload, kind, encoding, accept={kind}))
"""


def run(installed: Path, *arguments: str, folder: Path) -> str:
    """What Python prints, or says in its error, where nothing is installed but what is in `installed`."""
    command = [sys.executable, "-S", *arguments]
    env = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout


def test_kombu_knows_the_serializer_before_batchery_is_imported(installed: Path, tmp_path: Path) -> None:
    assert run(installed, "-c", KOMBU_FIRST, folder=tmp_path) == "[array([1., 1.])]\n"


def test_a_service_without_torch_can_define_and_call_batch_tasks(installed: Path, tmp_path: Path) -> None:
    for name in ["worker", "configs", "batchers", "producer"]:
        (tmp_path / f"{name}.py").write_text("raise ImportError('batchery imported the user\\'s own module')\n")
    (tmp_path / "calls.py").write_text(PRODUCER)
    assert run(installed, "calls.py", folder=tmp_path) == "fine\n"


def test_importing_batchery_imports_no_torch_even_where_it_is_installed() -> None:
    check = "import sys, batchery, batchery.producer; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", check], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ran.stdout == "False\n"
