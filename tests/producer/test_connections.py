"""Calls over connections that are silent, or lead to a server that is no longer the master."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import kombu.pools
import pytest
import redis
from batchery.producer.connections import CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S, TRANSPORT_OPTIONS
from celery import Celery
from kombu.exceptions import OperationalError

from batchery import setup
from tests.support.callers import calling
from tests.support.failover import replicated
from tests.support.proxy import Proxy, proxied
from tests.support.servers import Valkey
from tests.support.waiting import wait_until

#: Seconds in which nothing here ends that waits without limit.
BOUND_S = 20.0

BUSY_FOR_A_SECOND = """
local began = redis.call("TIME")
repeat local now = redis.call("TIME") until (now[1] - began[1]) + (now[2] - began[2]) / 1e6 > 1
"""

pytestmark = pytest.mark.redis


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with proxied(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        yield proxy
        kombu.pools.reset()


@pytest.fixture
def app(proxy: Proxy) -> Iterator[Celery]:
    """A caller that waits half a second for the broker, so that the tests do not wait for long."""
    with calling(proxy.url, broker_transport_options={"socket_timeout": 0.5}) as app:
        yield app


def test_a_call_over_a_silent_connection_is_sent_over_another_one(
    app: Celery, proxy: Proxy, redis_client: redis.Redis
) -> None:
    echo = app.tasks["echo"]
    echo.apply_async((1,), ignore_result=True)
    proxy.silence()
    began = time.monotonic()
    echo.apply_async((2,), ignore_result=True)
    assert redis_client.llen("celery") == 2
    proxy.silence()
    assert len(echo.delay_many([*range(700)])) == 700
    assert redis_client.llen("celery") == 702
    assert time.monotonic() - began < BOUND_S


def test_a_result_is_got_although_the_connection_that_announces_it_is_silent(
    proxy: Proxy, redis_client: redis.Redis
) -> None:
    with calling(proxy.url, redis_backend_health_check_interval=1) as app:
        result = app.tasks["echo"].delay("x")
        assert not result.ready()
        proxy.silence(app.backend.result_consumer._pubsub.connection._sock.getsockname())
        meta = {"task_id": result.id, "status": "SUCCESS", "result": "x", "traceback": None, "children": []}
        threading.Timer(0.5, redis_client.set, (f"celery-task-meta-{result.id}", json.dumps(meta))).start()
        assert result.get(timeout=BOUND_S) == "x"


def test_a_call_whose_channel_was_closed_is_sent_over_another_one_by_kombu_too(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kombu goes on with the channel of a lost connection after it has declared a queue, and raises AttributeError."""
    with app.producer_or_acquire() as producer:
        call = {"args": (1,), "ignore_result": True, "compression": "gzip", "producer": producer}
        for retry in (True, False):
            app.tasks["echo"].apply_async(**call)
            closes = iter([producer.channel.close])
            monkeypatch.setattr(producer, "maybe_declare", lambda *_, closes=closes, **__: next(closes, int)())
            if retry:
                app.tasks["echo"].apply_async(**call)
            else:
                with pytest.raises(OperationalError, match="connection was lost"):
                    app.tasks["echo"].apply_async(**call, retry=False)
        app.tasks["echo"].apply_async(**call)
    assert redis_client.llen("celery") == 4


def test_what_a_busy_server_refused_to_one_call_is_no_error_of_another() -> None:
    server = Valkey(busy_reply_threshold=10)
    try:
        server.start()
        with calling(server.url) as app, redis.Redis.from_url(server.url) as client:
            result = app.tasks["echo"].delay("x")
            busy = threading.Thread(target=client.eval, args=(BUSY_FOR_A_SECOND, 0))
            busy.start()
            wait_until(lambda: is_busy(server.url), "the server is busy")
            with pytest.raises((OperationalError, redis.ResponseError)):
                app.tasks["echo"].apply_async(("y",), retry=False)
            busy.join()
            meta = {"task_id": result.id, "status": "SUCCESS", "result": "x", "traceback": None, "children": []}
            stored = {f"celery-task-meta-{result.id}": json.dumps(meta)}
            storing = threading.Timer(0.5, announce, (client, stored))
            storing.start()
            assert result.get(timeout=BOUND_S) == "x"
            storing.join()
        kombu.pools.reset()
    finally:
        server.close()


def announce(client: redis.Redis, stored: dict[str, str]) -> None:
    client.mset(stored)
    for key, value in stored.items():
        client.publish(key, value)


def is_busy(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        try:
            client.get("key")
        except redis.ResponseError:
            return True
        return False


def test_many_calls_into_a_black_hole_raise_within_a_bound(app: Celery, proxy: Proxy) -> None:
    echo = app.tasks["echo"]
    echo.apply_async((1,), ignore_result=True)
    proxy.black_hole()
    began = time.monotonic()
    with pytest.raises(OperationalError):
        echo.delay_many([1, 2, 3])
    with pytest.raises(OperationalError):
        echo.apply_async((1,), ignore_result=True)
    assert time.monotonic() - began < 2 * BOUND_S
    proxy.heal()
    assert len(echo.delay_many([1, 2, 3])) == 3


def test_a_caller_leaves_a_master_that_was_demoted() -> None:
    with replicated() as pair, proxied(pair.master.port) as proxy, calling(proxy.url) as app:
        echo = app.tasks["echo"]
        echo.apply_async((1,), ignore_result=True)
        pair.swap()
        proxy.target = pair.replica.port
        echo.apply_async((2,), ignore_result=True)
        echo.delay_many([3])
        with redis.Redis(port=pair.replica.port) as client:
            assert client.llen("celery") == 3
        kombu.pools.reset()


def test_a_callers_connections_wait_for_a_bounded_time_unless_the_app_says_otherwise(redis_url: str) -> None:
    chosen = {"socket_timeout": 7, "health_check_interval": 3}
    with calling(redis_url, broker_transport_options=chosen) as app, app.producer_or_acquire() as producer:
        app.tasks["echo"].apply_async((1,), producer=producer, ignore_result=True)
        parameters = producer.channel.pool.connection_kwargs
    assert parameters["socket_timeout"] == 7
    assert parameters["health_check_interval"] == 3
    assert parameters["socket_connect_timeout"] == CONNECT_TIMEOUT_S
    assert parameters["socket_keepalive_options"] == TRANSPORT_OPTIONS["socket_keepalive_options"]
    kombu.pools.reset()


def test_setup_bounds_every_wait_unless_the_app_says_otherwise(redis_url: str) -> None:
    app = Celery("bounded", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.redis_socket_timeout = 77
    setup(app)
    assert app.conf.broker_transport_options["socket_timeout"] == SOCKET_TIMEOUT_S
    assert app.backend.connparams["socket_timeout"] == 77
    assert app.backend.connparams["socket_connect_timeout"] == CONNECT_TIMEOUT_S
    other = Celery("rabbit", broker="amqp://localhost", set_as_current=False)
    setup(other)
    assert not other.conf.broker_transport_options
