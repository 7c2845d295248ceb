"""Limits of connections to Redis where the app sets none, so that nothing waits for ever for a server that is gone.

Celery and kombu wait without limit for a server that is silent. A server that is away closes no connection: after a
failover, behind a firewall, or when its machine has lost its power.
"""

import socket
from typing import Any

from celery import Celery

#: Seconds to wait for an answer. A full settle of large results takes far less.
SOCKET_TIMEOUT_S = 10.0
#: Seconds to wait for a new connection.
CONNECT_TIMEOUT_S = 5.0

#: TCP options: an idle connection is checked after 30 s and lost 15 s later; sent data is acknowledged within 30 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}

#: By their names in `broker_transport_options`.
TRANSPORT_OPTIONS: dict[str, Any] = {
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "socket_keepalive": True,
    # Not every platform has all of them.
    "socket_keepalive_options": {
        getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
    },
}
#: Celery's settings of the Redis result backend.
_BACKEND_SETTINGS = {
    "redis_socket_timeout": SOCKET_TIMEOUT_S,
    "redis_socket_connect_timeout": CONNECT_TIMEOUT_S,
    "redis_backend_health_check_interval": 5,
}
_REDIS = ("redis", "rediss", "sentinel")


def limit_broker(connection: Any) -> None:
    """Give a kombu connection to Redis, which has not connected yet, the limits that it lacks."""
    if connection.transport_cls in _REDIS and not connection.connected:
        connection.transport_options = {**TRANSPORT_OPTIONS, **connection.transport_options}


def limit_connections(app: Celery) -> None:
    """Give an app whose broker is Redis the limits that its configuration does not set."""
    conf = app.conf
    if app.connection_for_read().transport_cls not in _REDIS:
        return
    conf.broker_transport_options = {**TRANSPORT_OPTIONS, **conf.broker_transport_options}
    for name, value in _BACKEND_SETTINGS.items():
        if not conf.value_set_for(name):
            conf[name] = value
