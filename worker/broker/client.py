"""Connections to Redis that never repeat a command by themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

#: Seconds without an answer after which a connection counts as lost. A full settle of large results is far below.
SOCKET_TIMEOUT_S = 20.0

#: Redis' and Valkey's own limit, in bytes.
_LARGEST_VALUE = 512 * 1024 * 1024

_SCRIPTS = Path(__file__).parent / "scripts"


def connect(connection_class: type[Any], parameters: Mapping[str, Any]) -> "redis.Redis":
    """Return a client for the server that `parameters`, a redis-py connection's arguments, describe.

    redis-py 8 repeats a command up to ten times after a time-out, which would claim twice: here nothing is repeated.
    """
    # Maintenance notifications need RESP 3, whose replies are others.
    kept = {name: value for name, value in parameters.items() if "maint_notifications" not in name}
    chosen = {
        **kept,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": parameters.get("socket_connect_timeout") or SOCKET_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
    }
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=connection_class, **chosen))


def script(client: "redis.Redis", name: str) -> Script:
    """Return the script of scripts/`name`.lua, to be called with keys and args."""
    return client.register_script((_SCRIPTS / f"{name}.lua").read_text())


def largest_value(client: "redis.Redis") -> int:
    """Return how many bytes the server takes as one value; it closes the connection of whoever sends more."""
    try:
        answer: Any = client.config_get("proto-max-bulk-len")
        return int(answer["proto-max-bulk-len"])
    except (redis.ResponseError, KeyError, ValueError):  # CONFIG is not allowed to us
        return _LARGEST_VALUE


def same_server(one: "redis.Redis", other: "redis.Redis") -> bool:
    """Whether two clients talk to one and the same server process, whatever their db numbers."""
    try:
        return bool(one.info("server")["run_id"] == other.info("server")["run_id"])
    except redis.RedisError:  # INFO is not allowed to us, or one of them is away: compare addresses
        return _address(one) == _address(other)


def _address(client: "redis.Redis") -> tuple[Any, ...]:
    parameters = client.connection_pool.connection_kwargs
    return tuple(parameters.get(name) for name in ("host", "port", "path"))
