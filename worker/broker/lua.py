"""The Lua scripts of the folder `scripts`: their KEYS, their ARGV and their replies."""

import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from .. import tuning
from .claims import Claim, ResultRetention, Settled, Settlement
from .held import HeldClaims
from .keys import Queue

#: By the settle script's reply: an enum's own look-up costs more than everything else that is done with a reply.
_SETTLED = tuple(Settled)


class Scripts:
    """Runs the scripts for one worker, each as a method. Any thread."""

    def __init__(self, client: "redis.Redis", *, worker: str, lease_s: float) -> None:
        self.db = int(client.connection_pool.connection_kwargs.get("db") or 0)
        self._pool = client.connection_pool
        self._local = threading.local()
        files = (Path(__file__).parent / "scripts").glob("*.lua")
        self._scripts = {file.stem: client.register_script(file.read_text()) for file in files}
        self._worker = worker
        self._lease_s = lease_s
        #: What all tags of this worker begin with, before the colon.
        self.tag_worker = secrets.token_hex(8)
        self._tag_prefix = f"{self.tag_worker}:"
        #: What the server knows of the messages that are held aside, by queue.
        self._told: dict[str, int] = {}

    @property
    def client(self) -> "redis.Redis":
        """A client whose connection the thread keeps, because taking one from the pool releases the GIL."""
        client: redis.Redis | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = redis.Redis(connection_pool=self._pool, single_connection_client=True)
        return client

    def claim(
        self, queues: Sequence[Queue], seqs: range, *, max_bytes: int, limits: Sequence[int], held: HeldClaims
    ) -> tuple[float, int, list[Claim]]:
        """Claim a message for each of `seqs` at most; `limits` are the messages of each of `queues` at most.

        `held` is what the worker holds so far. Return Redis TIME in seconds, the messages left to other workers, and
        the claims.
        """
        priorities = queues[0].priorities
        lists = [(queue, step) for step in range(len(priorities)) for queue in queues]
        keys = [key for queue in queues for key in (queue.unacked, queue.index, queue.workers)]
        keys += [queue.lists[step] for queue, step in lists]
        keys += [queue.aside for queue in queues]
        args: list[Any] = [self._tag_prefix, seqs.start, self._lease_s, len(seqs), max_bytes, len(queues), self._worker]
        args += (len(priorities), *priorities)
        aside = {queue.name: held.aside_of(queue) for queue in queues}
        for queue, limit in zip(queues, limits, strict=True):
            news = "" if self._told.get(queue.name, 0) == aside[queue.name] else aside[queue.name]
            args += (queue.envelope_end, limit, news, *held.jobs_of(queue))
        told, self._told = self._told, {}  # after an error it is not known
        server_time, withheld, *rest = self._run("claim", keys, args)
        self._told = {**told, **aside}
        prefix, messages = self._tag_prefix, rest[len(lists) :]
        claims: list[Claim] = []
        for (queue, step), count in zip(lists, rest, strict=False):
            first, priority = len(claims), priorities[step]
            claims += [
                Claim("%s%012d.%d" % (prefix, seq, priority), queue, message, seq, priority, len(message))  # noqa: UP031 - faster
                for seq, message in zip(seqs[first : first + count], messages[first : first + count], strict=True)
            ]
        return float(server_time), int(withheld), claims

    def give_back_claimed(self, queues: Sequence[Queue], seqs: range) -> None:
        """Give back whatever `claim` took, where its reply is not known."""
        for queue in queues:
            tags = [f"{self._tag_prefix}{seq:012d}.{priority}" for seq in seqs for priority in queue.priorities]
            self.give_back(queue, tags)

    def settle(self, settlements: Sequence[Settlement], retention: ResultRetention) -> list[Settled]:
        """Settle claims of one queue; return what became of each."""
        queue = settlements[0].claim.queue
        keys: list[str] = [queue.unacked, queue.index]
        args: list[Any] = [self.db, retention.db, retention.expires_s, len(settlements)]
        parts: list[Any] = []
        chords: dict[str, int] = {}
        chord_keys: list[str] = []
        for number, (claim, key, result, part) in enumerate(settlements, 1):
            keys.append(key or queue.unacked)
            args += (claim.tag, result)
            if part is not None:
                if part.keys[0] not in chords:
                    chords[part.keys[0]] = len(chords) + 1
                    chord_keys += part.keys
                parts += (number, chords[part.keys[0]], part.task_id, part.place, part.result)
        if parts:
            keys += chord_keys
            args += (int(retention.chord_in_order), retention.chord_expires_s, retention.group_expires_s, *parts)
        return [_SETTLED[answer] for answer in self._run("settle", keys, args)]

    def give_back(self, queue: Queue, tags: Sequence[str] = (), *, orphans: int | None = None) -> int:
        """Give back the messages of `tags`, or messages whose lease has run out, `orphans` at most; return how many."""
        keys = [queue.unacked, queue.index, *queue.lists]
        priorities = ",".join(map(str, queue.priorities))
        most = "" if orphans is None else orphans
        args = [len(queue.envelope_end), priorities, most, tuning.SWEEP_MAX_BYTES, queue.running, *tags]
        return int(self._run("give_back", keys, args))

    def refresh(self, queue: Queue, tags: Sequence[str], *, claims: bool) -> int:
        """Refresh leases, and the worker's place among those that claim; return how many of `tags` are still held."""
        worker = self._worker if claims else ""
        return int(self._run("refresh", [queue.index, queue.workers], [self._lease_s, worker, *tags]))

    def leave_share(self, queue: Queue) -> None:
        """Count no longer as a worker that claims, so that no message is left to it."""
        self.client.zrem(queue.workers, self._worker)
        self.client.hdel(queue.aside, self._worker)
        self._told.pop(queue.name, None)

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._scripts[name](keys=keys, args=args, client=self.client)
