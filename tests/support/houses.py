"""Workers of ours without a process: they claim and settle as they are told, at a real server, beside Celery's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import redis
from batchery.batchers import Job, Outcome
from batchery.configs import WorkerOptions
from batchery.producer import private
from batchery.worker.broker import Claim, Leases, Queue, ResultRetention, Settled, Settlement
from batchery.worker.broker.retry import RedisRetry
from batchery.worker.consumer.compat.bridge import CeleryBridge
from batchery.worker.consumer.compat.replay import OutcomeReplay
from batchery.worker.consumer.fast.store import ResultStore
from batchery.worker.consumer.wire.decode import decode
from batchery.worker.consumer.wire.request import FastRequest, context_of
from celery import Celery, chord

from tests.support.callers import disconnect
from tests.support.leases import ALL, ANY_SIZE, bytes_of, client_of, label_of
from tests.support.messages import ACCEPT

QUEUE = Queue("celery")
GROUP = "celery-taskset-meta-"


def _nothing(*_: Any) -> None: ...


class House:
    """Workers of ours, a stock worker and callers, on one server; nothing runs by itself."""

    def __init__(self, url: str, client: redis.Redis, **conf: Any) -> None:
        self.url = url
        self.client = client
        self.workers: list[Worker] = []
        self.app = Celery(broker=url, backend=url, set_as_current=False)
        self.app.conf.update(conf)
        self.app.task(_nothing, name="t", shared=False, acks_late=True)  # as batch tasks have it
        self.app.finalize()
        self.callback = self.app.signature("callback", queue="callbacks")

    def call(self, count: int, **options: Any) -> str:
        """Call a chord whose header has `count` parts, 0, 1, 2...; return its group's id."""
        header = [self.app.tasks["t"].s(index).set(**options) for index in range(count)]
        return str(chord(header, app=self.app)(self.callback).parent.id)

    def worker(self) -> Worker:
        self.workers.append(Worker(self))
        return self.workers[-1]

    def callbacks(self) -> list[Any]:
        """What each callback was sent."""
        return [label_of(raw) for raw in bytes_of(self.client.lrange("callbacks", 0, -1))]

    def chord(self, group: str) -> dict[str, Any]:
        """What is kept of a chord, and for how long."""
        keys = sorted(key.decode() for key in self.client.scan_iter(f"*{GROUP}{group}*"))
        kept: dict[str, Any] = {}
        for key in keys:
            kind = self.client.type(key)
            value: Any
            read = self.app.backend.decode
            if kind == b"zset":
                value = [read(part) for part in bytes_of(self.client.zrange(key, 0, -1))]
                value += [self.client.zscore(key, part) for part in bytes_of(self.client.zrange(key, 0, -1))]
            elif kind == b"list":
                value = [read(part) for part in self.client.lrange(key, 0, -1)]
            elif kind == b"set":
                value = sorted(bytes_of(self.client.smembers(key)), key=lambda member: member[-1])
            else:
                value = self.client.get(key)
            kept[key] = (value, round(self.client.ttl(key), -2))
        return kept


class Worker:
    """One worker: claims, and settles as it is told."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._client = client_of(house.url)
        self.leases = Leases(self._client, lease_s=30)
        self.store = ResultStore(house.app, self.leases, self._client, lambda jobs: nullcontext())
        self.retry = RedisRetry()
        context: Any = SimpleNamespace(
            consumer=SimpleNamespace(
                app=house.app, accept=ACCEPT, hostname="here", event_dispatcher=None, connection_errors=()
            ),
            tasks={name: task for name, task in house.app.tasks.items() if not name.startswith("celery.")},
            options=WorkerOptions(),
            leases=self.leases,
            hub=SimpleNamespace(call=lambda function, *args, **_: function(*args)),
            retry=self.retry,
            intake=None,
        )
        self.bridge = CeleryBridge(SimpleNamespace(**{**vars(context), "tasks": {}}))  # type: ignore[arg-type]
        self.replay = OutcomeReplay(context, self.bridge, self.store.backend_of)
        backend = house.app.backend
        assert private.keeps_chord_parts_as_known(backend), "this Celery's chords are not those that our script knows"

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()

    def claim(self) -> list[Outcome]:
        """Claim all there is; return an outcome for each: the argument, in a list."""
        return [self.outcome(claim) for claim in self.leases.claim([QUEUE], ALL, ANY_SIZE)]

    def outcome(self, claim: Claim) -> Outcome:
        call = decode(claim.message, ACCEPT)
        if call is None:
            request = self.bridge.build_request(claim)
            request.claim = claim
            job = Job(request.id, request.task.name, request.args, request.kwargs, request, 0.0, claim.seq)
            return Outcome(job, value=[*request.args])
        task = self.house.app.tasks[call.headers.task]
        reply = FastRequest(claim, call.headers, task, self._request, call.headers.id, task.name, call.in_chord)
        job = Job(call.headers.id, task.name, call.args, call.kwargs, reply, 0.0, claim.seq)
        return Outcome(job, value=[*call.args])

    def settle(self, outcomes: list[Outcome]) -> list[Settled]:
        return self.store.settle(outcomes)

    def tell_celery(self, outcome: Outcome, *, dies: bool = False) -> None:
        """Store as Celery's own worker does, which counts the chord and calls back; acknowledge, unless it `dies`."""
        reply = outcome.job.reply
        self.house.app.backend.mark_as_done(outcome.job.id, outcome.value, context_of(reply))
        if not dies:
            self.leases.settle([Settlement(reply.claim)], ResultRetention())

    def finish(self, outcomes: list[Outcome]) -> None:
        """Settle in bulk, and let Celery do what is left to it."""
        for outcome, answer in zip(outcomes, self.settle(outcomes), strict=True):
            if answer == Settled.NEEDS_CELERY:
                self.tell_celery(outcome)

    def finish_by_replay(self, outcomes: list[Outcome]) -> None:
        """Settle in bulk, and tell Celery what is left to it, as our worker does."""
        for outcome, answer in zip(outcomes, self.settle(outcomes), strict=True):
            if answer == Settled.NEEDS_CELERY:
                self.tell(outcome)

    def tell(self, outcome: Outcome) -> None:
        """Tell Celery as our worker does; what this buffers is sent."""
        self.replay.tell(outcome)
        self.leases.flush()

    def _request(self, claim: Claim) -> Any:
        return self.bridge.build_request(claim)


@contextmanager
def house_at(url: str, **conf: Any) -> Iterator[House]:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        house = House(url, client, **conf)
        try:
            yield house
        finally:
            disconnect(house.app)
            for worker in house.workers:
                worker.close()
            client.flushdb()
