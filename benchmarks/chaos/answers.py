"""The answers of a chaos run, as they become visible at the server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

from benchmarks.backlog import RESULT_PREFIX

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Answer:
    """A final state, and when it was seen first."""

    t: float
    status: str
    result: Any

    @property
    def error(self) -> str:
        return str(self.result.get("exc_type")) if isinstance(self.result, dict) else ""


class Answers(threading.Thread):
    """Looks for the answers of calls. It asks the primary directly, so that no fault of the network hides one."""

    def __init__(self, connect: Callable[[], redis.Redis], sent: Callable[[], Iterable[str]]) -> None:
        """Look for the answers of all ids that `sent` yields, which is asked again and again for new ones."""
        super().__init__(daemon=True)
        self.found: dict[str, Answer] = {}
        #: Answers that were another one later.
        self.changed: dict[str, tuple[Answer, Answer]] = {}
        self._open: set[str] = set()
        self._connect = connect
        self._sent = sent
        self._leave = threading.Event()

    def missing(self, ids: Iterable[str]) -> list[str]:
        return [each for each in ids if each not in self.found]

    def run(self) -> None:
        while not self._leave.wait(LOOK_EVERY_S):
            with suppress(redis.RedisError, OSError), self._connect() as client:
                while not self._leave.wait(LOOK_EVERY_S):
                    self._look(client)

    def _look(self, client: redis.Redis) -> None:
        role: Any = client.execute_command("ROLE")  # type: ignore[no-untyped-call]
        if role[0] != b"master":
            raise redis.ConnectionError("a replica now")
        self._open.update(self._sent())
        for task_id, answer in self._read(client, list(self._open)):
            self.found[task_id] = answer
            self._open.remove(task_id)

    def _read(self, client: redis.Redis, ids: list[str]) -> list[tuple[str, Answer]]:
        read = []
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            values: Any = client.mget([RESULT_PREFIX + each for each in some])
            for task_id, value in zip(some, values, strict=True):
                meta = json.loads(value) if value else {}
                if meta.get("status") in FINAL:
                    read.append((task_id, Answer(time.time(), meta["status"], meta["result"])))
        return read

    def close(self) -> None:
        """Stop looking, and compare all answers with what is stored now."""
        self._leave.set()
        self.join()
        with self._connect() as client:
            self._look(client)
            for task_id, answer in self._read(client, list(self.found)):
                first = self.found[task_id]
                if (answer.status, answer.result) != (first.status, first.result):
                    self.changed[task_id] = (first, answer)
