"""A lost connection postpones an outcome, and never becomes a job's failure.

Celery's tracer and its backends make a failure of every error that they meet, also if a server is away while a result
is stored, a callback is sent or a chord is counted. So the tracer gets a backend that raises `Postponed` instead.
Nothing of Celery's catches that, so all stays as if the worker had died at this moment, and can be done again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import redis
from celery import states
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.canvas import Signature
from celery.exceptions import BackendError
from kombu.exceptions import EncodeError, OperationalError

from ....batchers import Outcome
from ....producer import private
from ...broker.retry import RedisRetry, is_transient

T = TypeVar("T")

#: Lets go of a chord, if it is still ours, so that the same worker can send its callback at its next try.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

#: Stores a state that is not the last word on a task, unless a backend has that word: a retry may be sent, run and
#: succeed elsewhere before RETRY is stored. Values that cjson cannot read, such as compressed ones, are replaced.
_STORE_UNLESS_ANSWERED = """
local read, meta = pcall(cjson.decode, redis.call('GET', KEYS[1]) or '{}')
local status = read and type(meta) == 'table' and meta.status
if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then return 0 end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1]) end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""

#: What backends raise for a value that they can never store.
_ABOUT_VALUES = (TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError, EncodeError)


class Postponed(BaseException):
    """Something cannot be done for a job now. No `Exception`, because Celery would make a failure of it."""


class PerhapsPostponed(Postponed):
    """A backend raised an error that does not tell whether the backend is away or does not want the value."""


class SentElsewhere(Postponed):
    """The callback of a chord is being sent by another worker, or by one that died a few seconds ago."""


def passes(error: BaseException | None, backend: Backend | None = None) -> bool:
    """Whether an error may be over later, by its type, or because its backend says so."""
    if isinstance(error, BackendError):  # Celery has given up trying, and the error that it met says more
        error = error.__cause__ or error.__context__
    if isinstance(error, redis.RedisError):
        return is_transient(error)
    if isinstance(error, OperationalError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, AttributeError):
        return private.is_lost_channel(error)
    # To a backend on Redis every OSError is a lost connection.
    if backend is None or isinstance(backend, RedisBackend) or not isinstance(error, Exception):
        return False
    return bool(backend.exception_safe_to_retry(error))


def may_pass(error: Exception, backend: Backend) -> bool:
    """Whether a backend that raised an error may take the same value later.

    Few backends but Redis tell that. Those that do not are taken to be away, except if the error is about the value.
    """
    return passes(error, backend) or not (isinstance(backend, RedisBackend) or isinstance(error, _ABOUT_VALUES))


def answered(backend: Backend, task_id: str) -> bool:
    """Whether a backend has the last word on a task: a success, a failure or a revocation."""
    try:
        return bool(backend.get_task_meta(task_id, cache=False)["status"] in states.READY_STATES)
    except (NotImplementedError, TypeError):  # none, and rpc:// cannot be asked
        return False


class _Steady:
    """What stands before a backend's own class."""

    #: What Celery is being told, and the client that the backend gets meanwhile.
    telling: SimpleNamespace
    #: Celery's own tries in the same place would hold up all other outcomes.
    always_retry = property(lambda _self: False)

    def store_result(self, *args: object, **kwargs: object) -> object:
        with self._postponing():
            return super().store_result(*args, **kwargs)  # type: ignore[misc]

    def on_chord_part_return(self, *args: object, **kwargs: object) -> object:
        with self._postponing():
            return super().on_chord_part_return(*args, **kwargs)  # type: ignore[misc]

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: object, **kwargs: object) -> object:
        # An error of the model's own is the job's failure, whatever its type.
        if type(exc) is not type(self.telling.outcome.error):
            self._postpone_after(exc)
        return super().mark_as_failure(task_id, exc, *args, **kwargs)  # type: ignore[misc]

    def chord_error_from_stack(self, callback: Signature, exc: BaseException | None = None) -> object:
        self._postpone_after(sys.exc_info()[1])
        return super().chord_error_from_stack(callback, exc)  # type: ignore[misc]

    @contextmanager
    def _postponing(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            self._postpone_after(exc)
            if may_pass(exc, self):
                raise PerhapsPostponed(repr(exc)) from exc
            raise

    def _postpone_after(self, error: BaseException | None) -> None:
        if passes(error, self):
            postponed = Postponed(repr(error))
            if self.telling.client is not None:
                self.telling.client.postponed = postponed
            raise postponed from error


class _SteadyOnRedis(_Steady):
    client = property(lambda self: self.telling.client)

    def _set_with_state(self, key: bytes, value: bytes, state: str) -> object:
        kind = next(each for each in type(self).__mro__ if not each.__module__.startswith("batchery."))
        if state in states.READY_STATES or kind not in (RedisBackend, SentinelBackend) or private.is_changed(self):
            return super()._set_with_state(key, value, state)  # type: ignore[misc]
        store = self.client.register_script(_STORE_UNLESS_ANSWERED)
        return store(keys=[key], args=[value, int(self.expires or 0)])  # type: ignore[attr-defined]


def steady(backend: Backend, outcome: Outcome | SimpleNamespace, client: "SteadyClient | None") -> Backend:
    """Return what does as `backend` does, and shares all with it, but raises `Postponed` while its server is away.

    It is for one thread at a time, and for one outcome.
    """
    twin = vars(backend).get("batchery_steady")
    if twin is None:
        bases = (_Steady if client is None else _SteadyOnRedis, type(backend))
        twin = object.__new__(type("Steady", bases, {"telling": SimpleNamespace()}))
        twin.__dict__ = vars(backend)
        backend.batchery_steady = twin
    twin.telling.outcome, twin.telling.client = outcome, client
    return twin


def steady_client(backend: Backend, retry: RedisRetry) -> "SteadyClient | None":
    """Return the client that `steady` needs for a backend; None for a backend that is not on Redis."""
    is_known = isinstance(backend, RedisBackend) and type(backend.client) is redis.Redis
    return SteadyClient(backend.client, retry) if is_known else None


def is_steady(backend: object) -> bool:
    """Whether `steady` has made this backend."""
    return isinstance(backend, _Steady)


class SteadyClient(redis.Redis):
    """A client that raises `Postponed` while its server is away, and from then on whatever it is asked.

    Celery's backend cleans a chord up in a `finally`, also if its callback could not be sent: that must not be done.
    """

    def __init__(self, client: "redis.Redis", retry: RedisRetry) -> None:
        """Use the connections of `client`."""
        super().__init__(connection_pool=client.connection_pool)
        self.postponed: Postponed | None = None
        self._tries = retry
        self._release = client.register_script(_RELEASE)
        #: The key of the last chord's state, and the word by which the chord is known as ours.
        self._claim: tuple[str, str] | None = None

    def execute_command(self, *args: object, **options: object) -> object:
        """Run one command."""
        run = partial(super().execute_command, *args, **options)
        script = args[1] if args[0] == "EVALSHA" else None
        if script in private.CHORD_SCRIPTS:
            run = partial(self._run_script, private.CHORD_SCRIPTS[script], run)
        if script == private.CLEANUP_SCRIPT and self.postponed is None:
            # The callback is sent, so that it must not be sent once more: this alone is tried again.
            return self._tries.while_transient(run)
        if script != private.PART_SCRIPT:
            return self.attempt(run)
        keys, values = args[3:9], args[9:]
        self._claim = cast(tuple[str, str], (keys[5], values[7]))
        count, added, size, claimed = reply = self.attempt(run)
        if size and not claimed and count == int(size) + int(added or 0):
            self.postponed = SentElsewhere("another worker sends the callback of this chord")
            raise self.postponed
        return reply

    def _run_script(self, text: str, run: Callable[[], T]) -> T:
        """Run a script of Celery's, and load it if the server does not know it.

        redis-py does so once, and then its error would fail the chord: another server may have become the master.
        """
        try:
            return run()
        except redis.exceptions.NoScriptError:
            super().execute_command("SCRIPT LOAD", text)  # type: ignore[no-untyped-call]
        try:
            return run()
        except redis.exceptions.NoScriptError as exc:
            raise redis.ConnectionError(
                "the server that has loaded a script is not the one that was to run it"
            ) from exc

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> redis.client.Pipeline:
        """Return a pipeline that does as this client does."""
        return _SteadyPipeline(self, self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def attempt(self, run: Callable[[], T]) -> T:
        """Call `run`, unless something was postponed before."""
        if self.postponed is not None:
            raise self.postponed
        try:
            return run()
        except redis.exceptions.NoScriptError:
            raise  # redis-py loads the script then
        except redis.RedisError as exc:
            if not is_transient(exc):
                raise
            self.postponed = Postponed(repr(exc))
            raise self.postponed from exc

    def begin_again(self) -> None:
        """Forget what was postponed; let go of the chord whose callback was to be sent. Raises errors of Redis."""
        self.postponed = None
        if self._claim is not None:
            key, token = self._claim
            self._release(keys=[key], args=[token])
            self._claim = None


class _SteadyPipeline(redis.client.Pipeline):
    def __init__(self, owner: SteadyClient, *args: Any) -> None:
        super().__init__(*args)
        self._owner = owner

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        return self._owner.attempt(partial(super().execute, raise_on_error))
