"""Where a model goes if nobody says where."""

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
    """The only file by which a GPU's driver can be known; it is not there yet."""
    path = tmp_path / "driver"
    monkeypatch.setattr(device, "_DRIVERS", (path,))
    monkeypatch.setattr(sys, "platform", "linux")
    return path


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "mps"])
def test_a_device_that_is_named_is_taken(name: str) -> None:
    assert resolve_device(name) == name


@pytest.mark.usefixtures("driver")
def test_without_a_driver_it_is_the_cpu_and_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_with_a_driver_torch_is_asked(
    available: bool, expected: str, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto") == expected


@pytest.mark.usefixtures("driver")
def test_elsewhere_than_on_linux_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_without_torch_it_is_the_cpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_device("auto") == "cpu"
