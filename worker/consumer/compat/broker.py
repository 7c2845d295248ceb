"""The worker's own client for the broker that Celery has connected to, and when Celery connects to it anew."""

from collections.abc import Callable
from typing import Any

import redis
from celery.worker.consumer import Consumer
from kombu import Connection
from kombu.utils.url import parse_url

from ....producer.connections import TRANSPORT_OPTIONS
from ... import tuning
from ...broker import connect
from ...broker.retry import is_transient


def connect_as_celery(channel: Any, *, lease_s: float, on_change: Callable[[], object]) -> "redis.Redis":
    """Return a client for the server of kombu's `channel`; it follows the master as the app's URL and options say.

    `on_change` is called when another server has become the master, on any thread, and must not wait.
    """
    pool, connection = channel.pool, channel.connection.client
    parameters = dict(pool.connection_kwargs)
    parameters["health_check_interval"] = connection.transport_options.get(
        "health_check_interval", tuning.HEALTH_CHECK_S
    )
    if parameters.get("socket_timeout") == TRANSPORT_OPTIONS["socket_timeout"]:
        # A refresh that gets no answer must end while the leases are still ours.
        longest = max(lease_s / tuning.REFRESHES_PER_LEASE, tuning.HEALTH_ANSWER_S)
        parameters["socket_timeout"] = min(parameters["socket_timeout"], longest)
    return connect(pool.connection_class, parameters, _servers(connection), on_change)


def reconnect(consumer: Consumer) -> None:
    """Let Celery connect anew, too, because its server is no longer the master. Any thread."""
    connection = consumer.connection

    def lose() -> None:
        if connection is not None and consumer.connection is connection:  # it has not done so by itself meanwhile
            raise redis.ConnectionError("another server is the master now")

    consumer.hub.call_soon(lose)


class ReconnectingBlueprint(Consumer.Blueprint):
    """Celery's steps. A server that refuses for a time, because it is full, busy or a replica, is a lost connection.

    Celery itself would end the worker, with its models, because it connects anew after lost connections only.
    """

    def start(self, parent: Consumer) -> None:
        """Start all steps; the last one runs the event loop until the connection is lost."""
        try:
            super().start(parent)
        except redis.ResponseError as exc:
            if not is_transient(exc):
                raise
            # Celery pauses only where it cannot connect, and a whole fleet may be refused at once.
            parent.retry.pause()
            raise redis.ConnectionError(f"{exc}") from exc


def _servers(connection: Connection) -> list[dict[str, object]]:
    """Return what differs between the servers of a broker list, beginning with the one that Celery has found."""
    urls = list(connection.alt or ())
    servers = [_server(url) for url in urls]
    for place, server in enumerate(servers):
        if (server["host"], server["port"]) == (connection.hostname, connection.port):
            return servers[place:] + servers[:place]
    return servers


def _server(url: str) -> dict[str, object]:
    parts = parse_url(url)
    return {
        "host": parts["hostname"] or "127.0.0.1",
        "port": parts["port"] or 6379,
        "username": parts["userid"],
        "password": parts["password"],
        "db": int((parts["virtual_host"] or "").strip("/") or 0),
    }
