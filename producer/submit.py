"""Publishing in bulk, and the results of it."""

import base64
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from celery import Celery, signals, states
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult
from celery.utils.saferepr import saferepr

from . import serializer
from .encoding import encode_json

if TYPE_CHECKING:
    from .task import BatchTask

#: Message header: when the caller sent the job, in seconds since the epoch on the caller's clock.
ENQUEUED_AT = "batchery_enqueued_at"

#: Messages that one command to the broker carries.
_PUBLISH_CHUNK = 500
#: Results that one command to the backend asks for.
_COLLECT_CHUNK = 500


def call_options(app: Celery, args: Any, kwargs: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return `apply_async` options with a header that says when the job was sent, and with what logs show of arrays."""
    added: dict[str, Any] = {"headers": {ENQUEUED_AT: time.time(), **(options.get("headers") or {})}}
    for name, value in (("argsrepr", args), ("kwargsrepr", kwargs)):
        shown = serializer.sketch(value)
        if shown is not value and name not in options:
            added[name] = saferepr(shown, app.amqp.argsrepr_maxsize)
    return {**options, **added}


def delay_many(task: "BatchTask", calls: Sequence[tuple[Any, ...]], **options: Any) -> "BulkResult":
    """Publish one message for each of `calls`, the positional arguments, in as few round trips as can be.

    What can only be done call by call (signals, sent events, other transports and serializers) is done so.

    Raises:
        TypeError: some call's arguments do not fit the task's signature; nothing was published.
        kombu.exceptions.OperationalError: the broker failed midway; what it took until then runs.
    """
    for args in calls:
        task.__header__(*args)
    app = task.app
    if not calls or app.conf.task_always_eager or "task_id" in options:
        results = [task.apply_async(args, **options) for args in calls]
        return BulkResult(app, [result.id for result in results], results)
    with app.producer_or_acquire() as producer:
        template = _Template(task, calls[0], producer, options)
        if template.is_ordinary(app):
            return BulkResult(app, template.publish(calls))
        with producer.batch():
            return BulkResult(app, [task.apply_async(args, producer=producer, **options).id for args in calls])


class _Recorder:
    """Stands in for a producer, to hear from Celery what it would have published."""

    body: Any = None
    options: Mapping[str, Any] = {}

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def publish(self, body: Any, **options: Any) -> None:
        self.body, self.options = body, options


class _Template:
    """One message as Celery makes it, of which the others differ in id and arguments alone."""

    def __init__(self, task: "BatchTask", args: tuple[Any, ...], producer: Any, options: dict[str, Any]) -> None:
        recorder = _Recorder(producer.connection)
        # Without a result, so that Celery does not begin to wait for it.
        task.apply_async(args, **{**options, "producer": recorder, "ignore_result": True, "add_to_parent": False})
        self._producer = producer
        self._body = recorder.body
        self._options = recorder.options
        self._headers = {**self._options["headers"]}
        self._headers["ignore_result"] = bool(options.get("ignore_result", task.ignore_result))
        self._priority = self._options.get("priority") or 0
        self._argsrepr_size = task.app.amqp.argsrepr_maxsize

    def is_ordinary(self, app: Celery) -> bool:
        """Whether every call's message can be made of this one."""
        if signals.before_task_publish.receivers or signals.after_task_publish.receivers:
            return False
        options = self._options
        if app.conf.task_send_sent_event or options["compression"] or options["exchange"] != "":
            return False
        is_redis = self._producer.connection.transport.driver_type == "redis"
        return is_redis and options["serializer"] in ("json", serializer.NAME) and not self._queue_expires()

    def publish(self, calls: Sequence[tuple[Any, ...]]) -> list[str]:
        """Publish a message for each call; return their ids."""
        push, producer = self._push, self._producer
        if self._options["retry"]:
            push = producer.connection.ensure(producer, push, **self._options["retry_policy"])
        ids: list[str] = []
        with producer.connection._reraise_as_library_errors():
            for entity in self._options["declare"] or ():
                producer.maybe_declare(entity)
            for start in range(0, len(calls), _PUBLISH_CHUNK):
                chunk = [(str(uuid.uuid4()), args) for args in calls[start : start + _PUBLISH_CHUNK]]
                push(list(self._messages(chunk)))
                ids += (task_id for task_id, _ in chunk)
        return ids

    def _push(self, messages: list[bytes]) -> None:
        channel = self._producer.channel
        with channel.conn_or_acquire() as client:
            client.lpush(channel._q_for_pri(self._options["routing_key"], self._priority), *messages)

    def _queue_expires(self) -> bool:
        return self._options["routing_key"] in self._producer.channel._expires

    def _messages(self, calls: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[bytes]:
        _, kwargs, embed = self._body
        ours = self._options["serializer"] == serializer.NAME
        encode = serializer.encode if ours else lambda value: (encode_json(value), ())
        content = (serializer.CONTENT_TYPE, "binary") if ours else ("application/json", "utf-8")
        rest, rest_raw = encode([kwargs, embed])
        is_root = self._headers["root_id"] == self._headers["id"]
        for task_id, args in calls:
            shown = saferepr(serializer.sketch(args), self._argsrepr_size)
            headers = {**self._headers, "id": task_id, "argsrepr": shown}
            if is_root:
                headers["root_id"] = task_id
            text, raw = encode(args)
            body = serializer.join(b"[%b, %b" % (text, rest[1:]), [*raw, *rest_raw])
            yield _message(headers, self._properties(task_id), body, *content)

    def _properties(self, task_id: str) -> dict[str, Any]:
        return {
            "correlation_id": task_id,
            "reply_to": self._options.get("reply_to", ""),
            "delivery_mode": self._options["delivery_mode"],
            "delivery_info": {"exchange": "", "routing_key": self._options["routing_key"]},
            "priority": self._priority,
            "body_encoding": "base64",
            "delivery_tag": task_id,
        }


def _message(
    headers: Mapping[str, Any], properties: Mapping[str, Any], body: bytes, content_type: str, encoding: str
) -> bytes:
    return msgspec.json.encode(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": headers,
            "properties": properties,
        }
    )


class BulkResult(Sequence[AsyncResult]):
    """The results of `delay_many`: a sequence of Celery's `AsyncResult`s, in the order of the calls.

    Nothing is subscribed to until a single result is waited for: `get` asks for many results in one command.
    """

    def __init__(self, app: Celery, ids: list[str], known: Sequence[AsyncResult] | None = None) -> None:
        """Stand for the results of `ids`; `known` are these results themselves, where the calls were eager."""
        self.app = app
        #: Task ids, in the order of the calls.
        self.ids = ids
        self._known = known

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        """Return one call's `AsyncResult`, or a slice of them."""
        if isinstance(index, slice):
            return BulkResult(self.app, self.ids[index], None if self._known is None else self._known[index])
        return self.app.AsyncResult(self.ids[index]) if self._known is None else self._known[index]

    def as_group(self) -> GroupResult:
        """Return Celery's `GroupResult` over the same calls."""
        return self.app.GroupResult(str(uuid.uuid4()), list(self))

    def ready(self) -> bool:
        """Whether every call has its result."""
        return all(result.ready() for result in self)

    def get(self, timeout: float | None = None, *, propagate: bool = True, interval: float = 0.01) -> list[Any]:
        """Wait for every result; return them in the order of the calls.

        `timeout` is in seconds, `interval` the seconds between two questions to the backend. A failed call raises its
        exception, the first in order, or stands in the list as an exception if `propagate` is false.

        Raises:
            celery.exceptions.TimeoutError: some result was not there in time.
        """
        ready = self.iterate(timeout, interval=interval)
        return [result.get(propagate=propagate, disable_sync_subtasks=False) for result in ready]

    def iterate(self, timeout: float | None = None, *, interval: float = 0.01) -> Iterator[AsyncResult]:
        """Yield each call's `AsyncResult` as soon as it, and all before it, are ready; as `get` otherwise."""
        deadline = None if timeout is None else time.monotonic() + timeout
        backend = self.app.backend
        if self._known is not None or not isinstance(backend, RedisBackend):
            for result in self:
                result.get(timeout=None if deadline is None else deadline - time.monotonic(), propagate=False)
                yield result
            return
        known: dict[str, Any] = {}
        place, pause = 0, threading.Event()
        while place < len(self.ids):
            known.update(self._collect(backend, place))
            while place < len(self.ids) and self.ids[place] in known:
                result = self.app.AsyncResult(self.ids[place])
                result._maybe_set_cache(known.pop(self.ids[place]))
                place += 1
                yield result
            if place < len(self.ids):
                if deadline is not None and time.monotonic() >= deadline:
                    raise CeleryTimeoutError(f"{len(self.ids) - place} of {len(self.ids)} results are not there yet.")
                pause.wait(interval)

    def _collect(self, backend: RedisBackend, place: int) -> dict[str, Any]:
        """Return the results that are ready among the next ones, by task id."""
        ids = self.ids[place : place + _COLLECT_CHUNK]
        values = backend.mget([backend.get_key_for_task(task_id) for task_id in ids])
        metas = {task_id: backend.decode_result(value) for task_id, value in zip(ids, values, strict=True) if value}
        return {task_id: meta for task_id, meta in metas.items() if meta["status"] in states.READY_STATES}
