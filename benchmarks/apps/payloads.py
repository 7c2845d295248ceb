"""What the no-op tasks are given and give back: the same for every contender."""

from __future__ import annotations

from typing import Any

#: An embedding's worth of floats, as JSON about 7 kB.
VECTOR = [index / 384 for index in range(384)]

#: What a call of each task is given: `small` returns it, `vector` returns `VECTOR`, `large` returns its length.
PAYLOADS: dict[str, Any] = {"small": 7, "vector": 7, "large": "x" * 100_000}
