"""Connections to Redis without automatic retries."""

from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .. import tuning


def connect(connection_class: type[Any], parameters: Mapping[str, Any]) -> "redis.Redis":
    """Return a client for the server that `parameters`, a redis-py connection's arguments, describe.

    Nothing is repeated, because redis-py 8 repeats a command up to ten times after a time-out and would claim twice.
    """
    # Maintenance notifications need RESP 3, whose replies differ.
    kept = {name: value for name, value in parameters.items() if "maint_notifications" not in name}
    chosen = {
        **kept,
        "socket_timeout": tuning.SOCKET_TIMEOUT_S,
        "socket_connect_timeout": parameters.get("socket_connect_timeout") or tuning.SOCKET_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
    }
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=connection_class, **chosen))


def same_server(one: "redis.Redis", other: "redis.Redis") -> bool:
    """Return whether two clients talk to the same server process, whatever their db numbers."""
    try:
        return bool(one.info("server")["run_id"] == other.info("server")["run_id"])
    except redis.RedisError:  # INFO is forbidden, or a server is away, so the addresses have to tell
        first, second = (client.connection_pool.connection_kwargs for client in (one, other))
        return all(first.get(name) == second.get(name) for name in ("host", "port", "path"))
