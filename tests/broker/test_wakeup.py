"""The doorbell: wakes who waits for work, and touches nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from batchery.worker.broker import ArrivalWatcher, Queue, connect

from tests.support.leases import Lists, client_of, message
from tests.support.waiting import wait_until

#: No test waits this long: a bell that does not ring fails by the answer.
LONG = 60.0


@pytest.fixture
def doorbell(redis_url: str) -> Iterator[ArrivalWatcher]:
    doorbell = ArrivalWatcher(client_of(redis_url))
    yield doorbell
    doorbell.close()


class Waiting:
    """A wait on a thread of its own."""

    def __init__(
        self, doorbell: ArrivalWatcher, queues: list[Queue], client: redis.Redis, last: str = "exists"
    ) -> None:
        self.answer: bool | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(doorbell, queues), daemon=True)
        self._thread.start()
        wait_until(lambda: any(row["cmd"] == last for row in client.client_list()), "the doorbell waits")

    def result(self) -> bool | Exception | None:
        self._thread.join(20)
        return self.answer

    def _run(self, doorbell: ArrivalWatcher, queues: list[Queue]) -> None:
        try:
            self.answer = doorbell.wait(queues, LONG)
        except redis.RedisError as error:
            self.answer = error


def test_it_rings_at_once_where_work_is(doorbell: ArrivalWatcher, lists: Lists) -> None:
    lists.put("a", priority=9)
    assert doorbell.wait([Queue("empty"), lists.queue], LONG)


def test_it_does_not_ring_where_nothing_is(doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    Lists(redis_client, Queue("another")).put("a")
    assert not doorbell.wait([lists.queue], 0.05)


@pytest.mark.parametrize("name", ["first", "second", "odd 'name\x06\x16ü"])
@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_a_message_in_any_queue_of_any_priority_rings(
    doorbell: ArrivalWatcher, redis_client: redis.Redis, name: str, priority: int
) -> None:
    queues = [Queue("first"), Queue("second"), Queue("odd 'name\x06\x16ü")]
    waiting = Waiting(doorbell, queues, redis_client)
    Lists(redis_client, Queue(name)).put("a", priority=priority)
    assert waiting.result() is True


def test_it_rings_for_every_message(doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    for label in range(20):
        waiting = Waiting(doorbell, [lists.queue], redis_client)
        lists.put(label)
        assert waiting.result() is True
        redis_client.delete(lists.queue.lists[0])
        while_quiet(doorbell, lists)


def while_quiet(doorbell: ArrivalWatcher, lists: Lists) -> None:
    """Hear what is still to be heard of changes in the past."""

    wait_until(lambda: not doorbell.wait([lists.queue], 0.01), "the doorbell is quiet")


def test_it_takes_nothing_out_of_the_queue(doorbell: ArrivalWatcher, lists: Lists) -> None:
    lists.put(*range(5))
    for _ in range(3):
        assert doorbell.wait([lists.queue], LONG)
    assert lists.labels() == list(range(5))


def test_a_message_between_the_look_and_the_wait_is_not_missed(redis_url: str, redis_client: redis.Redis) -> None:
    class PutsAfterLook(redis.Connection):
        after_look: Callable[[], Any] | None = None

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().read_response(*args, **kwargs)
            if answer == 0 and PutsAfterLook.after_look is not None:
                put, PutsAfterLook.after_look = PutsAfterLook.after_look, None
                put()
            return answer

    PutsAfterLook.after_look = lambda: redis_client.lpush("work", message("a"))
    doorbell = ArrivalWatcher(connect(PutsAfterLook, redis.ConnectionPool.from_url(redis_url).connection_kwargs))
    assert doorbell.wait([Queue("work")], LONG)
    assert PutsAfterLook.after_look is None
    doorbell.close()


def kill_everything(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub")


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
def test_a_cut_connection_is_an_error_once_and_then_forgotten(
    doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists, kind: str
) -> None:
    assert not doorbell.wait([lists.queue], 0.01)
    redis_client.client_kill_filter(_type=kind, skipme=True)
    with pytest.raises(redis.ConnectionError):
        doorbell.wait([lists.queue], LONG)
    redis_client.flushdb()  # it was the one that watches, and nobody else takes over before that has expired
    waiting = Waiting(doorbell, [lists.queue], redis_client)
    lists.put("a")
    assert waiting.result() is True


def test_who_waits_learns_of_a_cut_connection(
    doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists
) -> None:
    waiting = Waiting(doorbell, [lists.queue], redis_client)
    kill_everything(redis_client)
    assert isinstance(waiting.result(), redis.ConnectionError)


def test_an_interrupt_ends_a_wait(doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    waiting = Waiting(doorbell, [lists.queue], redis_client)
    doorbell.interrupted = True
    assert waiting.result() is False


def test_a_message_wakes_one_worker_and_that_one_wakes_the_next(
    redis_url: str, doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists
) -> None:
    watching = Waiting(doorbell, [lists.queue], redis_client)
    other = ArrivalWatcher(client_of(redis_url))
    idle = Waiting(other, [lists.queue], redis_client, "blpop")
    lists.put("a")
    assert watching.result() is True
    assert idle.answer is None
    doorbell.wake_next_worker(more=False)
    assert idle.result() is True
    assert other.wait([lists.queue], LONG), "it watches now, and sees the message that nobody took"
    other.close()


def test_where_the_one_that_watched_has_died_another_takes_over(
    redis_url: str, doorbell: ArrivalWatcher, lists: Lists
) -> None:
    doorbell.wait([lists.queue], 0.01)
    doorbell.close()
    other = ArrivalWatcher(client_of(redis_url))
    lists.put("a")
    wait_until(lambda: other.wait([lists.queue], 0.05), "the other one has rung")
    other.close()


def test_closed_it_leaves_no_connection(doorbell: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    before = len(redis_client.client_list())
    doorbell.wait([lists.queue], 0.01)
    assert len(redis_client.client_list()) == before + 2
    doorbell.close()
    wait_until(lambda: len(redis_client.client_list()) == before, "its connections are closed")


def test_in_another_database_it_rings_too(many_databases: str, queue: Queue) -> None:
    url = f"{many_databases.rpartition('/')[0]}/7"
    doorbell = ArrivalWatcher(client_of(url))
    with redis.Redis.from_url(url) as client:
        waiting = Waiting(doorbell, [queue], client)
        Lists(client, queue).put("a")
        assert waiting.result() is True
        client.flushdb()
    doorbell.close()
