"""The device that "auto" chooses for a model."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from batchery.producer.task import device
from batchery.producer.task.device import resolve_device


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only file that shows a GPU's driver; it does not exist yet."""
    path = tmp_path / "driver"
    monkeypatch.setattr(device, "_DRIVERS", (path,))
    monkeypatch.setattr(sys, "platform", "linux")
    return path


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "mps"])
def test_a_named_device_is_used(name: str) -> None:
    assert resolve_device(name) == name


@pytest.mark.usefixtures("driver")
def test_the_device_is_the_cpu_without_a_driver_and_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_torch_is_asked_where_there_is_a_driver(
    available: bool, expected: str, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto") == expected


@pytest.mark.usefixtures("driver")
def test_torch_is_asked_on_other_systems_than_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_the_device_is_the_cpu_without_torch(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_device("auto") == "cpu"
