"""Where models run."""

import importlib
import importlib.util
import sys
from pathlib import Path

#: Files of Linux drivers, one of which is there whenever torch can have a GPU: NVIDIA's, that of WSL, those of Jetson
#: boards, and AMD's. Looking them up spares a machine without a GPU the import of torch.
_DRIVERS = tuple(map(Path, ("/proc/driver/nvidia", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/kfd")))


def resolve_device(device: str) -> str:
    """Return the torch device name that "auto" stands for on this machine; any other name is returned as it is."""
    if device != "auto":
        return device
    no_driver = sys.platform == "linux" and not any(driver.exists() for driver in _DRIVERS)
    if no_driver or importlib.util.find_spec("torch") is None:
        return "cpu"
    return "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
