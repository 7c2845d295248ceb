"""Decompresses what a caller's `task_compression` made small, up to a bound.

kombu's own decompression has no bound, so that a megabyte of a well-made message becomes a gigabyte.
"""

import bz2
import contextlib
import gc
import lzma
import sys
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from ... import tuning

#: What LZMA may take for its dictionary, whose size the sender chooses; the highest preset takes 65 MiB.
_LZMA_MEMORY_BYTES = 128 * 2**20

#: By the name that kombu gives in a message's header.
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": partial(lzma.LZMADecompressor, memlimit=_LZMA_MEMORY_BYTES),
}

with contextlib.suppress(ImportError):
    # As kombu has it: part of Python from 3.14 on, in a package of its own before.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    _DECOMPRESSORS["application/zstd"] = zstd.ZstdDecompressor


#: Bytes of large bodies that were decompressed since the garbage collector last ran because of them.
_large_bytes = 0


class NoRoom(Exception):
    """A body is larger, decompressed, than there is room for at the moment. It may be well-formed."""


def decompress(body: bytes, method: object, max_bytes: int, room: int | None = None) -> bytes:
    """Return what `body` holds, compressed by `method`: at most `max_bytes`, give or take a block.

    Raises:
        NoRoom: it holds more than `room`, which is less than `max_bytes`.
        ValueError: the method is unknown or has no bound, the body is damaged, or it holds more.
    """
    make = _DECOMPRESSORS.get(method) if isinstance(method, str) else None
    if make is None:
        known = ", ".join(sorted(_DECOMPRESSORS))
        raise ValueError(f"The message is compressed as {method!r:.50}; this worker decompresses {known}.")
    decompressor = make()
    most = max_bytes if room is None else min(room, max_bytes)
    try:
        data: bytes = decompressor.decompress(body, most + 1)
    except Exception as exc:  # each library has an error of its own
        raise ValueError(f"The message cannot be decompressed ({method}): {exc}") from exc
    if len(data) > most and most < max_bytes:
        raise NoRoom
    check_size(len(data), max_bytes)
    if not decompressor.eof:
        raise ValueError(f"The message cannot be decompressed ({method}): the body ends early.")
    _collect_garbage_of(len(data))
    return data


def _collect_garbage_of(size: int) -> None:
    """Run Python's garbage collector in time, because it counts objects and not bytes.

    An error refers to the frames that it came through, they refer to the arguments of the call, and often to the error.
    """
    global _large_bytes
    if size >= tuning.LARGE_BODY_BYTES:
        _large_bytes += size
        if _large_bytes >= tuning.COLLECT_AFTER_BYTES:
            _large_bytes = 0
            gc.collect()


def check_size(size: int, max_bytes: int) -> None:
    """Raise a ValueError if a message's body of at least `size` bytes is more than a worker takes."""
    if size > max_bytes:
        raise ValueError(
            f"The message's body is larger than {max_bytes} bytes: send a reference to the data, such as a path or URL."
        )
