"""The arguments and results of the no-op tasks, which are the same for every contender."""

from __future__ import annotations

from typing import Any

#: As many floats as in an embedding, about 7 kB as JSON.
VECTOR = [index / 384 for index in range(384)]

#: The argument of each task. `small` returns it, `vector` returns `VECTOR`, and `large` returns its length.
PAYLOADS: dict[str, Any] = {"small": 7, "vector": 7, "large": "x" * 100_000}
