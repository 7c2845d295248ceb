"""Memory that a failed batch leaves behind."""

import gc
import sys


def free_memory() -> None:
    """Give back what nothing uses any more: Python's cycles, and what torch keeps for later on a CUDA device."""
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
