"""Publishing calls, one or many, and the results of many."""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
from celery import Celery, Task, signals, states
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from kombu import Producer
from kombu.exceptions import EncodeError
from kombu.serialization import dumps

from . import private
from .codec import serializer
from .codec.json import is_plain
from .publisher import Publisher, kombu_message

#: Message header: when the caller sent the job, in seconds since the epoch on the caller's clock.
ENQUEUED_AT = "batchery_enqueued_at"
#: How many messages one command to the broker carries, and how many results one command to the backend asks for.
_CHUNK = 500
#: Bytes of messages that one command or pipeline carries, except that one message may be larger: the server and this
#: process hold all of them at once.
_CHUNK_BYTES = 8 * 2**20

_Item = TypeVar("_Item")


@contextmanager
def publish_options(
    app: Celery, args: Any, kwargs: Any, more: Sequence[Any], options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the options with which Celery's `apply_async` publishes one call, on the fast path if it may.

    They are `options` with a header that says when the job was sent, and a short text for logs in place of arrays.
    `more` are the positional arguments of `apply_async` after the call's own: a producer may be among them.
    """
    ours = {**options, "headers": {ENQUEUED_AT: time.time(), **(options.get("headers") or {})}}
    for name, value in (("argsrepr", args), ("kwargsrepr", kwargs)):
        shown = serializer.summarise(value)
        if shown is not value and name not in options:
            ours[name] = private.saferepr(shown, private.argsrepr_size(app))
    private.check_results(app.backend)
    given = options.get("producer")  # that of a group or a chord, for example
    goes_elsewhere = more or given or options.keys() & {"publisher", "connection"} or app.conf.task_always_eager
    if goes_elsewhere and not isinstance(given, Producer):
        yield ours
    else:
        with app.producer_or_acquire(given) as producer:
            yield {**ours, "producer": Publisher(producer)}


def delay_many(task: Task, calls: Sequence[tuple[Any, ...]], *, alike: bool, **options: Any) -> "BulkResult":
    """Publish one message for each of `calls`, the positional arguments, in as few round trips as possible.

    Calls that are not `alike`, because the task may send each another way, are published one by one. So are all calls
    if signals, sent events, another transport or another serializer need it.

    Raises:
        kombu.exceptions.EncodeError: some call's arguments cannot be serialized. Calls published before it run.
        kombu.exceptions.OperationalError: the broker failed midway. Calls that it took before run.
    """
    app = task.app
    if not calls or app.conf.task_always_eager or "task_id" in options:
        results = [task.apply_async(args, **options) for args in calls]
        return BulkResult(task, [result.id for result in results], results)
    with app.producer_or_acquire() as producer:
        if alike and not _may_differ(app):
            publisher = Publisher(producer)
            body, given = _as_celery_sends(task, calls[0], publisher.connection, options)
            # The other messages can be made of it, because it has Celery's protocol 2 and plain headers.
            if isinstance(body, tuple) and is_plain(given["headers"]) and publisher.takes(given):
                ids = [str(uuid.uuid4()) for _ in calls]
                messages = _messages(app, body, given, ids, calls)
                with private.kombu_errors(publisher.connection):
                    for chunk in _chunks(messages, len):
                        publisher.send(chunk, given)
                return BulkResult(task, ids, ignored=given["headers"]["ignore_result"])
        results = []
        for some in _chunks(calls, lambda args: _size(args, options.get("serializer") or task.serializer)):
            with producer.batch():
                results += [task.apply_async(args, producer=producer, **options) for args in some]
        return BulkResult(task, [result.id for result in results], ignored=all(each.ignored for each in results))


def _chunks(items: Iterable[_Item], size_of: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Cut items into what may be sent at once: not too many of them, and not too many bytes, but one at least."""
    chunk: list[_Item] = []
    chunk_bytes = 0
    for item in items:
        size = size_of(item)
        if chunk and (len(chunk) == _CHUNK or chunk_bytes + size > _CHUNK_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(item)
        chunk_bytes += size
    if chunk:
        yield chunk


def _size(args: Any, by: str) -> int:
    """Return about how many bytes a call's arguments take in a message."""
    try:
        return len(dumps(args, serializer=by)[-1])
    except Exception:  # Celery raises it again when it makes the message
        return 0


def _may_differ(app: Celery) -> bool:
    """Whether calls of one task may be published in different ways, or others are to hear of each."""
    heard = private.receivers(signals.before_task_publish) or private.receivers(signals.after_task_publish)
    return bool(heard) or app.conf.task_send_sent_event or not private.routes_by_name(app)


def _as_celery_sends(task: Task, args: Any, connection: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the body of one call's message, and the options with which Celery publishes it."""
    published: list[tuple[Any, dict[str, Any]]] = []
    recorder = SimpleNamespace(connection=connection, publish=lambda body, **given: published.append((body, given)))
    # Without a result, so that Celery does not begin to wait for it.
    task.apply_async(args, **{**options, "producer": recorder, "ignore_result": True, "add_to_parent": False})
    body, given = published[0]
    given["headers"]["ignore_result"] = bool(options.get("ignore_result", task.ignore_result))
    # Unless the caller gave it, `argsrepr` is of this call alone.
    return body, {name: value for name, value in given.items() if name != "argsrepr" or name in options}


def _messages(app: Celery, body: Any, given: dict[str, Any], ids: list[str], calls: Sequence[Any]) -> Iterator[bytes]:
    """Yield the message of each call, which differs in id and arguments alone from the message that Celery sends."""
    _, kwargs, embed = body
    size = private.argsrepr_size(app)
    rest, rest_raw = serializer.encode_by(given["serializer"], [kwargs, embed])
    is_root = given["headers"]["root_id"] == given["headers"]["id"]
    for place, (task_id, args) in enumerate(zip(ids, calls, strict=True)):
        headers = {**given["headers"], "id": task_id}
        if "argsrepr" not in given:
            headers["argsrepr"] = private.saferepr(serializer.summarise(args), size)
        if is_root:
            headers["root_id"] = task_id
        try:
            text, raw = serializer.encode_by(given["serializer"], args)
        except Exception as exc:  # whatever an object's own methods raise
            raise EncodeError(f"Call {place} of {len(calls)}, counted from 0: {exc}") from exc
        message = serializer.join(b"[%b, %b" % (text, rest[1:]), [*raw, *rest_raw])
        yield msgspec.json.encode(kombu_message(headers, message, given, task_id, task_id))


class BulkResult(Sequence[AsyncResult]):
    """The results of `delay_many`: a sequence of Celery's `AsyncResult`s, in the order of the calls.

    `get` asks for many results in one command. Nothing is subscribed to until a single result is waited for. Results
    that the calls ignore are None, and nobody waits for them.
    """

    def __init__(self, task: Task, ids: list[str], known: Sequence[AsyncResult] | None = None, **given: Any) -> None:
        """Stand for the results of `ids`, calls of `task`.

        `known` are these results themselves, if the calls were eager; `given` may hold `ignored`, whether the calls
        ignore their results.
        """
        self.app = task.app
        #: Task ids, in the order of the calls.
        self.ids = ids
        self._task = task
        self._known = known
        self._ignored = bool(given.get("ignored"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        """Return one call's `AsyncResult`, or a slice of them."""
        if isinstance(index, slice):
            known = None if self._known is None else self._known[index]
            return BulkResult(self._task, self.ids[index], known, ignored=self._ignored)
        return self._result(self.ids[index]) if self._known is None else self._known[index]

    def _result(self, task_id: str) -> AsyncResult:
        result: AsyncResult = self._task.AsyncResult(task_id)  # which asks the task's own backend, if it has one
        result.ignored = self._ignored
        return result

    def ready(self) -> bool:
        """Whether every call has its result; always true of calls that ignore their results."""
        return self._ignored or all(result.ready() for result in self)

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
        if self._known is None and not self._ignored and isinstance(self._task.backend, RedisBackend):
            yield from self._iterate_on_redis(self._task.backend, deadline, interval)
            return
        for result in self:
            result.get(timeout=None if deadline is None else deadline - time.monotonic(), propagate=False)
            yield result

    def _iterate_on_redis(
        self, backend: RedisBackend, deadline: float | None, interval: float
    ) -> Iterator[AsyncResult]:
        """Ask for the first result that is not there and those behind it, and for none that is known already."""
        outcomes: dict[str, Any] = {}
        pause, asked = threading.Event(), False
        for place, task_id in enumerate(self.ids):
            while task_id not in outcomes:
                left = None if deadline is None else deadline - time.monotonic()
                if asked and left is not None and left <= 0:
                    raise CeleryTimeoutError(f"{len(self.ids) - place} of {len(self.ids)} results are not there yet.")
                pause.wait(interval if asked else 0)
                asked = True
                unknown = [each for each in self.ids[place : place + _CHUNK] if each not in outcomes]
                found = private.read_outcomes(backend, unknown, timeout=left)
                outcomes |= {key: meta for key, meta in found.items() if meta["status"] in states.READY_STATES}
            result = self._result(task_id)
            private.set_outcome(result, outcomes.pop(task_id))
            yield result
