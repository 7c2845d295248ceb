"""The arrival watcher: it wakes a worker that waits for messages, and changes nothing in the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from batchery.worker.broker import ArrivalWatcher, Queue, connect

from tests.support.leases import Lists, client_of, message
from tests.support.waiting import wait_until

#: No test waits this long: a wait that does not end early fails by its answer.
LONG = 60.0


@pytest.fixture
def watcher(redis_url: str) -> Iterator[ArrivalWatcher]:
    watcher = ArrivalWatcher(client_of(redis_url))
    yield watcher
    watcher.close()


class Waiting:
    """A wait on a thread of its own."""

    def __init__(self, watcher: ArrivalWatcher, queues: list[Queue], client: redis.Redis, last: str = "exists") -> None:
        self.answer: bool | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(watcher, queues), daemon=True)
        self._thread.start()
        wait_until(lambda: any(row["cmd"] == last for row in client.client_list()), "the watcher waits")

    def result(self) -> bool | Exception | None:
        self._thread.join(20)
        return self.answer

    def _run(self, watcher: ArrivalWatcher, queues: list[Queue]) -> None:
        try:
            self.answer = watcher.wait(queues, LONG)
        except redis.RedisError as error:
            self.answer = error


def test_a_wait_ends_at_once_if_there_is_a_message(watcher: ArrivalWatcher, lists: Lists) -> None:
    lists.put("a", priority=9)
    assert watcher.wait([Queue("empty"), lists.queue], LONG)


def test_a_message_of_another_queue_does_not_end_a_wait(
    watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists
) -> None:
    Lists(redis_client, Queue("another")).put("a")
    assert not watcher.wait([lists.queue], 0.05)


@pytest.mark.parametrize("name", ["first", "second", "odd 'name\x06\x16ü"])
@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_a_message_in_any_queue_of_any_priority_ends_a_wait(
    watcher: ArrivalWatcher, redis_client: redis.Redis, name: str, priority: int
) -> None:
    queues = [Queue("first"), Queue("second"), Queue("odd 'name\x06\x16ü")]
    waiting = Waiting(watcher, queues, redis_client)
    Lists(redis_client, Queue(name)).put("a", priority=priority)
    assert waiting.result() is True


def test_every_message_ends_a_wait(watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    for label in range(20):
        waiting = Waiting(watcher, [lists.queue], redis_client)
        lists.put(label)
        assert waiting.result() is True
        redis_client.delete(lists.queue.lists[0])
        drain(watcher, lists)


def drain(watcher: ArrivalWatcher, lists: Lists) -> None:
    """Read the reports of changes in the past."""
    wait_until(lambda: not watcher.wait([lists.queue], 0.01), "the watcher is quiet")


def test_a_wait_takes_nothing_out_of_the_queue(watcher: ArrivalWatcher, lists: Lists) -> None:
    lists.put(*range(5))
    for _ in range(3):
        assert watcher.wait([lists.queue], LONG)
    assert lists.labels() == list(range(5))


def test_a_message_between_the_check_and_the_wait_is_not_missed(redis_url: str, redis_client: redis.Redis) -> None:
    class PutsAfterCheck(redis.Connection):
        after_check: Callable[[], Any] | None = None

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().read_response(*args, **kwargs)
            if answer == 0 and PutsAfterCheck.after_check is not None:
                put, PutsAfterCheck.after_check = PutsAfterCheck.after_check, None
                put()
            return answer

    PutsAfterCheck.after_check = lambda: redis_client.lpush("work", message("a"))
    watcher = ArrivalWatcher(connect(PutsAfterCheck, redis.ConnectionPool.from_url(redis_url).connection_kwargs))
    assert watcher.wait([Queue("work")], LONG)
    assert PutsAfterCheck.after_check is None
    watcher.close()


def kill_everything(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub")


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
def test_after_the_error_of_a_cut_connection_the_next_wait_works(
    watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists, kind: str
) -> None:
    assert not watcher.wait([lists.queue], 0.01)
    redis_client.client_kill_filter(_type=kind, skipme=True)
    with pytest.raises(redis.ConnectionError):
        watcher.wait([lists.queue], LONG)
    redis_client.flushdb()  # it still counts as the watcher, and nobody takes over before that expires
    waiting = Waiting(watcher, [lists.queue], redis_client)
    lists.put("a")
    assert waiting.result() is True


def test_a_cut_connection_ends_a_wait_with_an_error(
    watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists
) -> None:
    waiting = Waiting(watcher, [lists.queue], redis_client)
    kill_everything(redis_client)
    assert isinstance(waiting.result(), redis.ConnectionError)


def test_an_interrupt_ends_a_wait(watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    waiting = Waiting(watcher, [lists.queue], redis_client)
    watcher.interrupted = True
    assert waiting.result() is False


def test_a_watcher_that_is_interrupted_lets_the_next_worker_watch(
    redis_url: str, watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists
) -> None:
    watching = Waiting(watcher, [lists.queue], redis_client)
    other = ArrivalWatcher(client_of(redis_url))
    idle = Waiting(other, [lists.queue], redis_client, "blpop")
    watcher.interrupted = True
    assert watching.result() is False
    assert idle.result() is True
    lists.put("a")
    assert other.wait([lists.queue], LONG)
    other.close()


def test_a_message_wakes_one_worker_and_that_one_wakes_the_next(
    redis_url: str, watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists
) -> None:
    watching = Waiting(watcher, [lists.queue], redis_client)
    other = ArrivalWatcher(client_of(redis_url))
    idle = Waiting(other, [lists.queue], redis_client, "blpop")
    lists.put("a")
    assert watching.result() is True
    assert idle.answer is None
    watcher.wake_next_worker(more=False)
    assert idle.result() is True
    assert other.wait([lists.queue], LONG), "it watches now, and sees the message that nobody has taken"
    other.close()


def test_if_the_watcher_dies_another_worker_takes_over(redis_url: str, watcher: ArrivalWatcher, lists: Lists) -> None:
    watcher.wait([lists.queue], 0.01)
    watcher.close()
    other = ArrivalWatcher(client_of(redis_url))
    lists.put("a")
    wait_until(lambda: other.wait([lists.queue], 0.05), "the other one sees the message")
    other.close()


def test_close_closes_all_connections(watcher: ArrivalWatcher, redis_client: redis.Redis, lists: Lists) -> None:
    before = len(redis_client.client_list())
    watcher.wait([lists.queue], 0.01)
    assert len(redis_client.client_list()) == before + 2
    watcher.close()
    wait_until(lambda: len(redis_client.client_list()) == before, "its connections are closed")


def test_a_message_in_another_database_ends_a_wait(many_databases: str, queue: Queue) -> None:
    url = f"{many_databases.rpartition('/')[0]}/7"
    watcher = ArrivalWatcher(client_of(url))
    with redis.Redis.from_url(url) as client:
        waiting = Waiting(watcher, [queue], client)
        Lists(client, queue).put("a")
        assert waiting.result() is True
        client.flushdb()
    watcher.close()


def test_lost_connections_do_not_use_up_the_pool(redis_url: str, redis_client: redis.Redis, lists: Lists) -> None:
    watcher = ArrivalWatcher(client_of(redis_url, max_connections=4))
    for _ in range(5):
        redis_client.flushdb()  # nobody counts as the watcher
        assert not watcher.wait([lists.queue], 0.01)
        kill_everything(redis_client)
        with pytest.raises(redis.ConnectionError):
            watcher.wait([lists.queue], LONG)
    assert not watcher.wait([lists.queue], 0.01)
    watcher.close()
