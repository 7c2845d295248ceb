"""Where models run."""

import importlib
import importlib.util
from pathlib import Path

#: The kernel driver's file: there whenever a CUDA device can be. Looking it up spares a torch import without a GPU.
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def resolve_device(device: str) -> str:
    """Return the torch device name that "auto" stands for on this machine; any other name is returned as it is."""
    if device != "auto":
        return device
    if not _NVIDIA_DRIVER.exists() or importlib.util.find_spec("torch") is None:
        return "cpu"
    torch = importlib.import_module("torch")
    return "cuda" if torch.cuda.is_available() else "cpu"
