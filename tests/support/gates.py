"""Gates that hold the models of a worker process."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.waiting import wait_until


class Gate:
    """A FIFO that holds every model to which its path was sent, until it is opened."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._writers: list[int] = []

    def wait_for_model(self, timeout: float = 30.0) -> None:
        """Return once a model waits here."""
        self._writers.append(wait_until(self._enter, "a model waits at the gate", timeout))

    def open(self) -> None:
        """Let all pass, now and later."""
        if os.path.exists(self.path):
            # A model that is about to wait finds this writer, and a later model finds no gate.
            self._writers.append(os.open(self.path, os.O_RDWR))
            os.unlink(self.path)
        while self._writers:
            os.close(self._writers.pop())

    def _enter(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no model reads
            return 0
