"""The Lua scripts of the folder `scripts`: their KEYS, their ARGV and their replies."""

import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import redis

from .. import tuning
from .claims import Claim, Lease, ResultRetention, Settled, Settlement
from .giving_up import GivingUpScripts
from .held import HeldClaims
from .keys import Queue
from .shares import Shares

#: By the settle script's reply: an enum's own look-up costs more than everything else that is done with a reply.
_SETTLED = tuple(Settled)


def tag_of(tag_worker: str, seq: int, priority: int) -> str:
    """Return the tag of a worker's claim. Sorted tags are in claim order."""
    return f"{tag_worker}:{seq:012d}.{priority}"


class Scripts(GivingUpScripts):
    """Runs the scripts for one worker, each as a method. Any thread."""

    def __init__(self, client: "redis.Redis", shares: Shares, *, worker: str, tag_worker: str, lease_s: float) -> None:
        self.db = int(client.connection_pool.connection_kwargs.get("db") or 0)
        self._pool = client.connection_pool
        self._local = threading.local()
        files = (Path(__file__).parent / "scripts").glob("*.lua")
        self._scripts = {file.stem: client.register_script(file.read_text()) for file in files}
        self._shares, self._worker = shares, worker
        self._lease_s = lease_s
        self._tag_prefix = f"{tag_worker}:"

    @property
    def client(self) -> "redis.Redis":
        """A client whose connection the thread keeps, because taking one from the pool releases the GIL."""
        client: redis.Redis | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = redis.Redis(connection_pool=self._pool, single_connection_client=True)
        return client

    def claim(
        self, queues: Sequence[Queue], seqs: range, *, held: HeldClaims, limits: Sequence[int], max_bytes: int
    ) -> tuple[float, int, list[list[Claim]]] | None:
        """Claim a message for each of `seqs` at most; `limits` are the messages of each of `queues` at most.

        `held` is what the worker holds so far. Return Redis TIME in seconds, the messages left to other workers, and
        the claims from each list; None if our lease in one of the queues has run out.
        """
        priorities = queues[0].priorities
        lists = [(queue, step) for step in range(len(priorities)) for queue in queues]
        keys = [key for queue in queues for key in (queue.unacked, queue.workers)]
        keys += [*(queue.lists[step] for queue, step in lists), *(queue.aside for queue in queues)]
        args: list[Any] = [self._tag_prefix, seqs.start, self._worker, len(seqs), max_bytes, len(queues)]
        args += (len(priorities), *priorities)
        aside = [held.aside_of(queue) for queue in queues]
        for queue, limit, news in zip(queues, limits, self._shares.news(queues, aside), strict=True):
            args += (queue.envelope_end, limit, news, *held.jobs_of(queue))
        reply = self._run("claim", keys, args)
        self._shares.told(queues, aside)
        if not reply:
            return None
        server_time, withheld, *rest = reply
        return float(server_time), int(withheld), _claims(self._tag_prefix, lists, seqs, rest)

    def settle(self, settlements: Sequence[Settlement], retention: ResultRetention) -> list[Settled]:
        """Settle claims of one queue; return what became of each."""
        queue = settlements[0].claim.queue
        keys: list[str] = [queue.unacked]
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

    def give_back(
        self,
        queue: Queue,
        tags: Collection[str],
        *,
        orphans_of: Lease | None = None,
        died: bool = False,
        rejected: bool = False,
        most: int | None = None,
    ) -> int:
        """Give back the messages of `tags` that are still held, the oldest to the front; return how many.

        With `orphans_of` these are all that this worker left, and it leaves the workers of the queue. If it has
        refreshed its lease meanwhile, the rest is its own. With `died` they are flagged as a dead worker's. What is
        `rejected` is flagged, too, and goes to the end. `most` bounds the messages: the newest of them go back.
        """
        keys = [queue.unacked, queue.workers, *queue.lists]
        worker, lease_end = orphans_of or ("", 0.0)
        args = [len(queue.envelope_end), ",".join(map(str, queue.priorities)), tuning.SWEEP_MAX_BYTES, queue.running]
        args += ["1" if died else "rejected" if rejected else "", worker, repr(lease_end)]
        in_order = sorted(tags, reverse=not rejected)[:most]
        begin = given_back = 0
        while True:  # in pieces, so that no script keeps the server busy for long
            chunk = in_order[begin : begin + tuning.SWEEP_MAX_JOBS]
            is_last = orphans_of is not None and begin + len(chunk) == len(tags)
            seen, count = self._run("give_back", keys, [*args, "1" if is_last else "", *chunk])
            begin, given_back = begin + seen, given_back + count
            if begin == len(in_order) or not seen:
                return int(given_back)

    def refresh(self, queues: Sequence[Queue]) -> list[Queue]:
        """Refresh this worker's lease in each of `queues`; return those in which it had run out, or was none yet."""
        keys = [queue.workers for queue in queues]
        in_time = self._run("refresh", keys, [self._lease_s, self._worker, "1"]) if keys else ()
        return [queue for queue, answer in zip(queues, in_time, strict=True) if not answer]

    def fetch(self, queue: Queue, tags: Sequence[str]) -> list[bytes | None]:
        """Return the messages of these tags, None for each that is not held."""
        envelopes = cast("list[bytes | None]", self.client.hmget(queue.unacked, tags))
        return [envelope and envelope[1 : -len(queue.envelope_end.encode())] for envelope in envelopes]

    def end_lease(self, queue: Queue) -> None:
        """Let this worker's lease end now, if it has not run out."""
        self._run("refresh", [queue.workers], [0, self._worker, ""])

    def add_worker(self, queue: Queue, worker: str) -> None:
        """Add another worker, with a lease of the usual length."""
        self._run("refresh", [queue.workers], [self._lease_s, worker, "1"])

    def tags(self, queue: Queue, worker: str = "*") -> set[str]:
        """Return the tags of all messages of a queue that are held, or of those whose tags begin with `worker`."""
        names: list[Any] = []
        cursor: Any = None
        try:
            while cursor != 0:  # in pieces, so that no command keeps the server busy for long
                cursor, some = self.client.hscan(
                    queue.unacked, cursor or 0, f"{worker}:*", tuning.SCAN_COUNT, no_values=True
                )
                names += some
        except redis.ResponseError:  # before Redis 7.4 and Valkey 8.0 it returns the messages, too, which may be large
            names = list(self.client.hkeys(queue.unacked))
        return {name.decode() for name in names if worker == "*" or name.startswith(f"{worker}:".encode())}

    def held(self, queue: Queue, tags: Iterable[str]) -> list[bool]:
        """Return which tags are those of messages that are held."""
        with self.client.pipeline(transaction=False) as pipeline:
            for tag in tags:
                pipeline.hexists(queue.unacked, tag)
            return [bool(is_held) for is_held in pipeline.execute()]

    def workers(self, queue: Queue) -> tuple[float, list[Lease]]:
        """Return Redis TIME in seconds, and the workers of a queue."""
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.zrange(queue.workers, 0, -1, withscores=True)
            (seconds, micros), workers = pipeline.execute()
        return seconds + micros / 1e6, [Lease(name.decode(), end) for name, end in workers]

    def check_server(self, queue: Queue) -> None:
        """Raise the error of Redis with which the server refuses writes now, if it does; changes nothing."""
        self.client.zadd(queue.workers, {"": 0}, xx=True)

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._scripts[name](keys=keys, args=args, client=self.client)


def _claims(prefix: str, lists: Sequence[tuple[Queue, int]], seqs: range, reply: Sequence[Any]) -> list[list[Claim]]:
    """Return the claims from each of `lists`, by a reply that counts them and then has all messages.

    A list is told by its queue and the place of its priority.
    """
    claims: list[list[Claim]] = []
    messages, first = reply[len(lists) :], 0
    for (queue, step), count in zip(lists, reply, strict=False):
        if count:
            priority, last = queue.priorities[step], first + count
            claims.append(
                [
                    Claim("%s%012d.%d" % (prefix, seq, priority), queue, message, seq, priority, len(message))  # noqa: UP031 - faster
                    for seq, message in zip(seqs[first:last], messages[first:last], strict=True)
                ]
            )
            first = last
    return claims
