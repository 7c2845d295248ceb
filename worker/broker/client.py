"""The worker's own connections to Redis: they follow the master, and repeat nothing by themselves."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelManagedConnection

from .. import tuning
from .master import Master, following_class

_NO_RETRIES = {"retry": Retry(NoBackoff(), 0), "retry_on_timeout": False, "retry_on_error": []}


def connect(
    connection_class: type[Any],
    parameters: Mapping[str, Any],
    servers: Sequence[Mapping[str, Any]] = (),
    on_change: Callable[[], object] = lambda: None,
) -> "redis.Redis":
    """Return a client for the server that `parameters`, a redis-py connection's arguments, describe.

    Where they lead through Sentinel, it follows the master. So it does where `servers` lists more than one server, each
    with what differs from `parameters`. Nothing is repeated, because redis-py 8 repeats a command up to ten times after
    a time-out and would claim twice. `on_change` is the `Master`'s.
    """
    # Maintenance notifications need RESP 3, whose replies differ.
    kept = {name: value for name, value in parameters.items() if "maint_notifications" not in name}
    managed = issubclass(connection_class, SentinelManagedConnection)
    if managed:
        pool = kept.pop("connection_pool")
        master = Master(
            sentinels=_patient_with_none(pool.sentinel_manager), service=pool.service_name, on_change=on_change
        )
        connection_class = (
            redis.SSLConnection if issubclass(connection_class, redis.SSLConnection) else redis.Connection
        )
    else:
        master = Master(servers, on_change=on_change)
    chosen = {
        "health_check_interval": tuning.HEALTH_CHECK_S,
        **kept,
        **_NO_RETRIES,
        "socket_timeout": kept.get("socket_timeout") or tuning.SOCKET_TIMEOUT_S,
        "decode_responses": False,
        "protocol": 2,
        "master": master,
    }
    return redis.Redis(connection_pool=redis.ConnectionPool(following_class(connection_class), **chosen))


def _patient_with_none(sentinels: Any) -> Any:
    """Return the same Sentinels, each with a second to answer: redis-py would try one that is away ten times."""
    ours = copy.copy(sentinels)
    ours.sentinels = []
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), tuning.SENTINEL_TIMEOUT_S)
    for sentinel in sentinels.sentinels:
        pool = sentinel.connection_pool
        parameters = {**pool.connection_kwargs, **timeouts, **_NO_RETRIES}
        ours.sentinels.append(redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **parameters)))
    return ours


def same_server(one: "redis.Redis", other: "redis.Redis") -> bool:
    """Return whether two clients talk to the same server process, whatever their db numbers."""
    try:
        return bool(one.info("server")["run_id"] == other.info("server")["run_id"])
    except redis.RedisError:  # INFO is forbidden, or a server is away, so the addresses have to tell
        first, second = (client.connection_pool.connection_kwargs for client in (one, other))
        if "master" in first:
            first = {**first, **first["master"].address}
        return all(first.get(name) == second.get(name) for name in ("host", "port", "path"))


def place_in_list(client: "redis.Redis") -> int:
    """Return which of the servers that `connect` was given is the master now, counted from 0."""
    place: int = client.connection_pool.connection_kwargs["master"].place
    return place
