"""Publishing in bulk, and the results of it."""

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from celery import Celery, signals, states
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult
from kombu import Producer
from kombu.exceptions import EncodeError

from . import private
from .codec import serializer
from .codec.json import is_plain
from .publisher import Publisher, encode_message, message_properties

if TYPE_CHECKING:
    from .task.batch_task import BatchTask

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
        shown = serializer.summarise(value)
        if shown is not value and name not in options:
            added[name] = private.saferepr(shown, private.argsrepr_size(app))
    return {**options, **added}


@contextmanager
def publisher(app: Celery, args: Sequence[Any], options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return what `apply_async` needs instead of some of its `options` to publish the short way.

    `args` are its positional arguments after the call's own; a producer among those is used as it is.
    """
    given = options.get("producer")
    if isinstance(given, Producer):  # of a group or a chord, say
        yield {"producer": Publisher(given)}
    elif args or given or options.keys() & {"publisher", "connection"} or app.conf.task_always_eager:
        yield {}
    else:
        with app.producer_or_acquire() as producer:
            yield {"producer": Publisher(producer)}


def delay_many(
    task: "BatchTask", calls: Sequence[tuple[Any, ...]], *, one_by_one: bool = False, **options: Any
) -> "BulkResult":
    """Publish one message for each of `calls`, the positional arguments, in as few round trips as can be.

    What can only be done call by call (signals, sent events, other transports and serializers) is done so; all of it
    is `one_by_one`.

    Raises:
        TypeError: some call's arguments do not fit the task's signature; nothing was published.
        kombu.exceptions.EncodeError: some call's arguments cannot be serialized; what was published before it runs.
        kombu.exceptions.OperationalError: the broker failed midway; what it took until then runs.
    """
    for args in calls:
        private.check_arguments(task, args)
    app = task.app
    if not calls or app.conf.task_always_eager or "task_id" in options:
        results = [task.apply_async(args, **options) for args in calls]
        return BulkResult(app, [result.id for result in results], results)
    with app.producer_or_acquire() as producer:
        if not one_by_one and not _differ(app):
            template = _Template(task, calls[0], Publisher(producer), options)
            if template.is_ordinary:
                return BulkResult(app, template.publish(calls))
        with producer.batch():
            return BulkResult(app, [task.apply_async(args, producer=producer, **options).id for args in calls])


def _differ(app: Celery) -> bool:
    """Whether calls of one task may be published in different ways, or others are to hear of each."""
    if private.has_receivers(signals.before_task_publish) or private.has_receivers(signals.after_task_publish):
        return True
    return app.conf.task_send_sent_event or not private.routes_by_name(app)


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

    def __init__(self, task: "BatchTask", args: tuple[Any, ...], publisher: Publisher, options: dict[str, Any]) -> None:
        recorder = _Recorder(publisher.connection)
        # Without a result, so that Celery does not begin to wait for it.
        task.apply_async(args, **{**options, "producer": recorder, "ignore_result": True, "add_to_parent": False})
        self._publisher = publisher
        self._body = recorder.body
        self._hides_args = "argsrepr" in options
        # Celery puts into the properties, too, what only logs are to show: of this call's arguments.
        self._options = {name: value for name, value in recorder.options.items() if name != "argsrepr"}
        self._headers = {**self._options["headers"]}
        self._headers["ignore_result"] = bool(options.get("ignore_result", task.ignore_result))
        self._argsrepr_size = private.argsrepr_size(task.app)

    @property
    def is_ordinary(self) -> bool:
        """Whether the others can be made of this one."""
        is_protocol_2 = isinstance(self._body, tuple)
        return is_protocol_2 and is_plain(self._headers) and self._publisher.is_ordinary(self._options)

    def publish(self, calls: Sequence[tuple[Any, ...]]) -> list[str]:
        """Publish a message for each call; return their ids."""
        ids: list[str] = []
        with private.kombu_errors(self._publisher.connection):
            for start in range(0, len(calls), _PUBLISH_CHUNK):
                chunk = [str(uuid.uuid4()) for _ in calls[start : start + _PUBLISH_CHUNK]]
                self._publisher.send(list(self._messages(chunk, calls, start)), self._options)
                ids += chunk
        return ids

    def _messages(self, ids: Iterable[str], calls: Sequence[tuple[Any, ...]], start: int) -> Iterator[bytes]:
        """Yield a message for each of `calls` from `start` on, as many as there are `ids`."""
        _, kwargs, embed = self._body
        name = self._options["serializer"]
        rest, rest_raw = serializer.encode_by(name, [kwargs, embed])
        is_root = self._headers["root_id"] == self._headers["id"]
        for place, task_id in enumerate(ids, start):
            args = calls[place]
            headers = {**self._headers, "id": task_id}
            if not self._hides_args:
                headers["argsrepr"] = private.saferepr(serializer.summarise(args), self._argsrepr_size)
            if is_root:
                headers["root_id"] = task_id
            try:
                text, raw = serializer.encode_by(name, args)
            except Exception as exc:  # whatever an object's own methods raise
                raise EncodeError(f"Call {place} of {len(calls)}, counted from 0: {exc}") from exc
            body = serializer.join(b"[%b, %b" % (text, rest[1:]), [*raw, *rest_raw])
            properties = message_properties(self._options, task_id, task_id)
            yield encode_message(headers, properties, body, name, msgspec.json.encode)


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
                private.set_outcome(result, known.pop(self.ids[place]))
                place += 1
                yield result
            if place < len(self.ids):
                if deadline is not None and time.monotonic() >= deadline:
                    raise CeleryTimeoutError(f"{len(self.ids) - place} of {len(self.ids)} results are not there yet.")
                pause.wait(interval)

    def _collect(self, backend: RedisBackend, place: int) -> dict[str, Any]:
        """Return the results that are ready among the next ones, by task id."""
        metas = private.read_outcomes(backend, self.ids[place : place + _COLLECT_CHUNK])
        return {task_id: meta for task_id, meta in metas.items() if meta["status"] in states.READY_STATES}
