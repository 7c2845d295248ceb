"""Celery is told each outcome once all servers take it: a lost connection fails no job, and loses no callback."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from batchery.batchers import Outcome
from batchery.worker import tuning
from batchery.worker.broker import Settled
from batchery.worker.broker.retry import RedisRetry
from batchery.worker.consumer.compat.postpone import passes, steady, steady_client
from celery import Celery, signals
from celery import chord as celery_chord
from celery.exceptions import ChordError, InvalidTaskError, Reject
from kombu import Connection
from kombu.exceptions import OperationalError

from batchery import BatchTask
from tests.support.houses import QUEUE, House, Worker, house_at
from tests.support.leases import Lists

# Celery's own way to store a result.
pytestmark = [
    pytest.mark.redis,
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exception raised outside body"),
]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow one another at once."""
    monkeypatch.setattr(RedisRetry, "_pause", lambda self, *_: self._stopped.is_set())


@pytest.fixture
def house(redis_url: str) -> Iterator[House]:
    with house_at(redis_url) as house:
        yield house


class Cut:
    """Cuts the backend's connections before or behind its n-th command, once."""

    def __init__(self) -> None:
        self.left, self.behind, self.seen = -1, False, 0

    def at(self, number: int, *, behind: bool) -> None:
        self.left, self.behind, self.seen = number, behind, 0

    def came(self) -> bool:
        """Whether there was a cut; there will be none from now on."""
        came, self.left = self.left < 0, -1
        return came

    def hits(self, *, behind: bool) -> bool:
        if behind == self.behind:
            self.seen += 1
            self.left -= 1
            return self.left == -1
        return False


@contextmanager
def cuts(app: Celery) -> Iterator[Cut]:
    """Let a test cut the connections of an app's backend."""
    cut = Cut()

    class Connection(redis.Connection):
        def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            if cut.hits(behind=False):
                self.disconnect()  # type: ignore[no-untyped-call]
                raise redis.ConnectionError("cut before a command")
            super().send_packed_command(*args, **kwargs)  # type: ignore[no-untyped-call]

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().read_response(*args, **kwargs)
            if cut.hits(behind=True):
                self.disconnect()  # type: ignore[no-untyped-call]
                raise redis.ConnectionError("cut behind a command")
            return answer

    pool = app.backend.client.connection_pool
    pool.connection_class = Connection
    yield cut


def complete(worker: Worker) -> Outcome:
    """Settle all parts of a chord but the one that completes it, which is returned."""
    parts = worker.claim()
    (left,) = [part for part, answer in zip(parts, worker.settle(parts), strict=True) if answer is Settled.NEEDS_CELERY]
    return left


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_chord_is_called_back_once_wherever_the_connection_of_its_last_part_is_cut(
    house: House, behind: bool
) -> None:
    worker = house.worker()
    with cuts(house.app) as cut:
        for number in itertools.count():
            house.call(3)
            last = complete(worker)
            cut.at(number, behind=behind)
            worker.tell(last)
            came = cut.came()
            assert house.callbacks() == [[[0], [1], [2]]], f"cut at command {number}"
            assert house.app.backend.get_task_meta(last.job.id)["status"] == "SUCCESS"
            assert house.client.hlen(QUEUE.unacked) == 0
            house.client.delete("callbacks")
            if not came:  # there were no more commands
                break
    assert number > 6, "the chord took some commands"


def test_a_chord_whose_callback_cannot_be_sent_for_a_time_is_called_back_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may be away, or full, while the backend is not."""
    worker = house.worker()
    group = house.call(3)
    last = complete(worker)
    fails = iter([OperationalError("the broker is away"), redis.exceptions.OutOfMemoryError("maxmemory"), None])
    send = house.app.amqp.send_task_message

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if error := next(fails):
            raise error
        return send(*args, **kwargs)

    monkeypatch.setattr(house.app.amqp, "send_task_message", flaky)
    worker.tell(last)
    assert house.callbacks() == [[[0], [1], [2]]]
    assert list(house.chord(group)) == [f"celery-taskset-meta-{group}.c"]


def test_a_chord_that_another_worker_is_about_to_call_back_is_left_to_it_for_a_time(house: House) -> None:
    """That worker may have died in between, so the part is not acknowledged but comes back."""
    worker = house.worker()
    group = house.call(2)
    last = complete(worker)
    house.client.set(f"celery-taskset-meta-{group}.c", "another's", ex=600)
    worker.tell(last)
    assert house.callbacks() == []
    assert house.client.hlen(QUEUE.unacked) == 1
    house.client.delete(f"celery-taskset-meta-{group}.c")
    other = house.worker()
    other.claim()  # so that it knows the queue
    Lists(house.client, QUEUE).run_out(worker.leases)
    other.leases.sweep()
    other.finish_by_replay(other.claim())
    assert house.callbacks() == [[[0], [1]]]
    assert house.client.hlen(QUEUE.unacked) == 0


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("error", [None, ValueError("its own")], ids=["success", "failure"])
def test_an_outcome_is_stored_wherever_the_connection_is_cut(
    house: House, behind: bool, error: Exception | None
) -> None:
    worker = house.worker()
    with cuts(house.app) as cut:
        for number in itertools.count():
            result = house.app.tasks["t"].delay(1)
            (outcome,) = worker.claim()
            outcome.error = error
            cut.at(number, behind=behind)
            worker.tell(outcome)
            came = cut.came()
            meta = house.app.backend.get_task_meta(result.id)
            expected = ("SUCCESS", [1]) if error is None else ("FAILURE", error)
            assert (meta["status"], repr(meta["result"])) == (expected[0], repr(expected[1])), f"command {number}"
            assert house.client.hlen(QUEUE.unacked) == 0
            if not came:
                break


def failing(house: House, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Let the broker refuse what is published, with one error after the other; then it takes all."""
    rest, send = [*errors], house.app.amqp.send_task_message

    def send_unless(*args: Any, **kwargs: Any) -> Any:
        if rest:
            raise rest.pop(0)
        return send(*args, **kwargs)

    monkeypatch.setattr(house.app.amqp, "send_task_message", send_unless)


AWAY = [OperationalError("the broker is away"), redis.exceptions.OutOfMemoryError("maxmemory")]


def test_a_callback_that_cannot_be_sent_for_a_time_fails_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = house.worker()
    result = house.app.tasks["t"].apply_async((1,), link=house.app.signature("callback", queue="callbacks"))
    (outcome,) = worker.claim()
    failing(house, monkeypatch, *AWAY)
    worker.tell(outcome)
    assert result.get(timeout=5) == [1]
    assert house.callbacks() == [[1]]
    assert house.client.hlen(QUEUE.unacked) == 0


def test_a_retry_that_cannot_be_sent_for_a_time_is_sent_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    @house.app.task(base=BatchTask, name="flaky", shared=False, autoretry_for=(ValueError,), default_retry_delay=0)
    def flaky(values: list[Any]) -> list[Any]:
        return values

    house.app.tasks["flaky"].apply_async((7,), queue="celery")
    worker = house.worker()
    (outcome,) = worker.claim()
    outcome.error = ValueError("flaky")
    failing(house, monkeypatch, *AWAY)
    worker.tell(outcome)
    assert house.app.backend.get_task_meta(outcome.job.id)["status"] == "RETRY"
    assert house.client.llen("celery") == 1, "the retry, which goes where the call went"
    assert house.client.hlen(QUEUE.unacked) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "RETRY"), ("STARTED", "RETRY"), ("RETRY", "RETRY"), ("SUCCESS", "SUCCESS"), ("FAILURE", "FAILURE")],
)
def test_a_state_on_the_way_is_not_stored_over_the_last_word(house: House, before: str | None, after: str) -> None:
    """A retry may be sent, run and succeed elsewhere before its RETRY is stored."""
    backend, key = house.app.backend, house.app.backend.get_key_for_task("an-id")
    if before is not None:
        backend._set_with_state(key, backend.encode({"status": before, "result": None}), before)
    twin: Any = steady(backend, SimpleNamespace(error=None), steady_client(backend, RedisRetry()))
    twin._set_with_state(key, backend.encode({"status": "RETRY", "result": None}), "RETRY")
    assert backend.get_task_meta("an-id", cache=False)["status"] == after
    assert 0 < house.client.ttl(key) <= backend.expires


def test_a_script_that_is_missing_again_after_it_was_loaded_is_a_lost_connection(house: House) -> None:
    """Another server has become the master meanwhile, so that this is no failure of a chord."""
    client = steady_client(house.app.backend, RedisRetry())
    assert client is not None
    tries = []

    def run() -> None:
        tries.append(1)
        raise redis.exceptions.NoScriptError

    with pytest.raises(redis.ConnectionError):
        client._run_script("return 1", run)
    assert len(tries) == 2


def test_a_hooks_own_retry_that_could_not_be_sent_lets_the_job_run_again(house: House) -> None:
    """Celery's `retry` raises a `Reject` then, which would be the job's failure."""
    result = house.app.tasks["t"].delay(1)
    worker = house.worker()
    (outcome,) = worker.claim()
    outcome.error = Reject(OperationalError("the broker is away"), requeue=False)
    worker.tell(outcome)
    assert house.client.hlen(QUEUE.unacked) == 1, "it is let go, and goes back when a lease is over"
    assert worker.leases.held() == []
    worker.leases.leave()
    assert house.client.llen("celery") == 1
    assert not result.ready()


def test_an_error_of_the_model_that_looks_like_a_lost_connection_is_its_jobs_failure(house: House) -> None:
    result = house.app.tasks["t"].delay(1)
    worker = house.worker()
    (outcome,) = worker.claim()
    outcome.error = redis.ConnectionError("the model's own database")
    worker.tell(outcome)
    with pytest.raises(redis.ConnectionError, match="the model's own database"):
        result.get(timeout=5)
    assert house.client.hlen(QUEUE.unacked) == 0


def test_a_server_that_stays_away_holds_up_no_outcome_for_ever(house: House) -> None:
    """A backend on another server than the broker may be away for hours."""
    worker = house.worker()
    house.app.tasks["t"].delay(1)
    house.app.tasks["t"].delay(2)
    first, second = worker.claim()
    with cuts(house.app) as cut:
        cut.hits = lambda *, behind: not behind  # type: ignore[method-assign]
        worker.tell(first)
        worker.tell(second)
    assert house.client.hlen(QUEUE.unacked) == 2, "they run again when their leases are over"
    assert worker.leases.held() == []
    house.client.delete(QUEUE.unacked)


def test_a_server_that_takes_no_writes_is_waited_for(house: House) -> None:
    """Tries count only while the broker takes writes: a full server may be full for long."""
    worker = house.worker()
    house.call(2)
    last = complete(worker)
    refused = 0

    def pause(self: RedisRetry, error: Exception, _: int) -> bool:
        nonlocal refused
        refused += 1
        if refused == 3 * tuning.REPLAY_TRIES:
            house.client.config_set("maxmemory", 0)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisRetry, "_pause", pause)
        house.client.config_set("maxmemory", 1)
        try:
            worker.tell(last)
        finally:
            house.client.config_set("maxmemory", 0)
    assert house.callbacks() == [[[0], [1]]]
    assert refused >= 3 * tuning.REPLAY_TRIES


# -- Leases that are lost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError("its own")], ids=["success", "failure"])
def test_an_outcome_without_a_lease_is_told_unless_there_is_an_answer(house: House, error: Exception | None) -> None:
    """The server may have lost the message with its data, so that nobody else will answer."""
    worker = house.worker()
    results = [house.app.tasks["t"].delay(value) for value in ("nobody", "somebody", "somebody tries again")]
    outcomes = worker.claim()
    house.client.delete(QUEUE.unacked)
    house.app.backend.store_result(results[1].id, "another's", "SUCCESS")
    house.app.backend.store_result(results[2].id, ValueError("another's"), "RETRY")
    for outcome in outcomes:
        outcome.error = error
        worker.tell(outcome)
    assert results[1].get(timeout=5) == "another's"
    for result, value in ((results[0], "nobody"), (results[2], "somebody tries again")):
        assert repr(result.get(timeout=5, propagate=False)) == repr(error or [value])
    assert worker.leases.held() == []


def test_the_last_part_of_a_chord_calls_back_though_its_lease_is_lost(house: House) -> None:
    worker, other = house.worker(), house.worker()
    house.call(3)
    parts = worker.claim()
    house.client.delete(QUEUE.unacked)
    worker.finish_by_replay(parts)
    assert house.callbacks() == [[[0], [1], [2]]]
    for part in parts:  # the same messages were elsewhere all the time
        house.client.lpush("celery", part.job.reply.claim.message)
    other.finish_by_replay(other.claim())
    assert house.callbacks() == [[[0], [1], [2]]]
    assert house.client.hlen(QUEUE.unacked) == 0


# -- What can never be stored ------------------------------------------------------------------------------------------


def test_a_result_whose_key_is_of_another_type_is_dropped_and_its_neighbours_are_stored(house: House) -> None:
    worker = house.worker()
    bad, good = house.app.tasks["t"].delay(1), house.app.tasks["t"].delay(2)
    house.client.rpush(f"celery-task-meta-{bad.id}", "a list")
    for outcome in worker.claim():
        worker.tell(outcome)
    assert good.get(timeout=5) == [2]
    assert house.client.hlen(QUEUE.unacked) == 0


@pytest.mark.parametrize("key", ["j", "d", "c"])
def test_a_chord_whose_keys_are_of_another_type_fails_its_callback(house: House, key: str) -> None:
    """Its parts can never be counted, so whoever waits for the chord is told."""
    worker = house.worker()
    header = [house.app.tasks["t"].s(value) for value in range(2)]
    waiting = celery_chord(header, app=house.app)(house.callback)
    house.client.delete(name := f"celery-taskset-meta-{waiting.parent.id}.{key}")
    house.client.hset(name, "a", "hash")
    for outcome in worker.claim():
        worker.tell(outcome)
    with pytest.raises(ChordError):
        waiting.get(timeout=5)
    assert [part.get(timeout=5) for part in waiting.parent.results] == [[0], [1]]
    assert house.client.hlen(QUEUE.unacked) == 0


@pytest.mark.parametrize("refused", [0, 1], ids=["the first", "the last"])
def test_a_part_that_is_refused_is_counted_in_its_chord(house: House, refused: int) -> None:
    worker = house.worker()
    waiting = celery_chord([house.app.tasks["t"].s(value) for value in range(2)], app=house.app)(house.callback)
    for index, outcome in enumerate(worker.claim()):
        if index == refused:
            worker.bridge.refuse(outcome.job.reply.claim.tag, InvalidTaskError("refused"))
            worker.leases.flush()
        else:
            worker.tell(outcome)
    with pytest.raises(ChordError, match="refused"):
        house.app.AsyncResult(waiting.id).get(timeout=5)
    assert house.client.hlen(QUEUE.unacked) == 0


def test_a_closed_channel_is_a_lost_connection_and_no_other_attribute_error_is(redis_url: str) -> None:
    with Connection(redis_url) as connection:
        channel = connection.channel()
        channel.close()
        with pytest.raises(AttributeError) as closed:
            channel.basic_publish(channel.prepare_message("a message"), "", "celery")
    assert passes(closed.value)
    assert not passes(AttributeError("'NoneType' object has no attribute 'client'"))


# -- What Celery's own machinery raises --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyError, GeneratorExit], ids=lambda error: error.__name__)
@pytest.mark.parametrize(
    "signal", [signals.task_prerun, signals.task_success, signals.task_postrun], ids=lambda signal: signal.name
)
def test_a_receiver_that_raises_leaves_no_message_and_no_caller_behind(
    house: House, signal: Any, error: type[BaseException]
) -> None:
    worker = house.worker()

    def receiver(**_: Any) -> None:
        raise error("a receiver's")

    signal.connect(receiver)
    try:
        result = house.app.tasks["t"].delay(1)
        (outcome,) = worker.claim()
        worker.tell(outcome)
    finally:
        signal.disconnect(receiver)
    assert house.app.backend.get_task_meta(result.id)["status"] in ("SUCCESS", "FAILURE")
    assert house.client.hlen(QUEUE.unacked) == 0
    assert worker.leases.held() == []


@pytest.mark.parametrize("error", [MemoryError("m"), SystemExit(3), Reject("no", requeue=False)], ids=repr)
@pytest.mark.parametrize("hook", ["on_success", "after_return", "before_start", "on_failure"])
def test_a_hook_that_raises_leaves_no_message_and_no_caller_behind(
    house: House, hook: str, error: BaseException
) -> None:
    def raises(*_: Any) -> None:
        raise error

    @house.app.task(base=BatchTask, name="hooked", shared=False, **{hook: raises})
    def hooked(values: list[Any]) -> list[Any]:
        return values

    result = house.app.tasks["hooked"].delay(1)
    worker = house.worker()
    (outcome,) = worker.claim()
    outcome.error = ValueError("its own") if hook == "on_failure" else None
    worker.tell(outcome)
    assert house.app.backend.get_task_meta(result.id)["status"] in ("SUCCESS", "FAILURE")
    assert house.client.hlen(QUEUE.unacked) == 0
    assert worker.leases.held() == []
