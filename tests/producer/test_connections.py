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

#: Seconds in which nothing here ends that waits without limit.
BOUND_S = 20.0

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
