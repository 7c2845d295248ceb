"""Buffers of what is sent to the server later."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Buffer(Generic[T]):
    """Keeps items until they were sent. Any thread."""

    def __init__(self) -> None:
        """Start empty."""
        self._items: deque[T] = deque()
        self._taking = threading.Lock()

    def put(self, item: T) -> None:
        """Add an item. Never blocks."""
        self._items.append(item)

    @contextmanager
    def taken(self) -> Iterator[list[T]]:
        """Take everything out to send it; all of it is put back if sending fails."""
        with self._taking:
            items = [self._items.popleft() for _ in range(len(self._items))]
        try:
            yield items
        except BaseException:
            self._items.extend(items)
            raise
