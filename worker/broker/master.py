"""Connections that follow the master: whichever server takes writes now.

A connection of redis-py goes back to the address that it was made for. But Sentinel may have named another master, the
next server of a list may be the one that works, and one address may lead to another server than before.
"""

import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

import redis

from .. import tuning
from .retry import is_not_the_master

logger = logging.getLogger(__name__)

#: The socket of a connection of redis-py, or None.
_socket_of = attrgetter("_sock")


class Master:
    """Where the master is, for all connections of one worker. Any thread.

    It is the first of `servers` that takes writes; each of them is what differs between the servers, as attributes of a
    connection: its host and its port, for example. Or it is what `sentinels` say of `service`. `on_change` is called
    when another server has become the master, and must not wait.
    """

    def __init__(
        self,
        servers: Sequence[Mapping[str, Any]] = (),
        sentinels: Any = None,
        service: str = "",
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._servers = servers or ({},)
        self._sentinels = sentinels
        self._service = service
        self._on_change = on_change
        #: The address that Sentinel named last.
        self._address: Any = None
        #: The place in `servers` of the master, and whether that has to be checked, because one said that it is not.
        self.place, self._doubtful = 0, False
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        #: How often another server has become the master. A connection from before leads to the wrong server.
        self.changes = 0
        if sentinels is not None:
            threading.Thread(
                target=_ask_again, args=(weakref.ref(self),), name="batchery-sentinel", daemon=True
            ).start()

    @property
    def address(self) -> Mapping[str, Any]:
        """What tells the master of now from other servers, as arguments of a connection; empty where there is one."""
        if self._sentinels is None:
            return self._servers[self.place]
        return dict(zip(("host", "port"), self._address or (), strict=False))

    def lead(self, connection: Any, connect: Callable[[], None]) -> None:
        """Connect to the master. `connect` connects to the address that the connection has then."""
        with self._lock:
            self._connections.discard(connection)
        if self._sentinels is not None:
            with self._lock:
                self._ask()
                (connection.host, connection.port), connection.changes = self._address, self.changes
                self._connections.add(connection)  # before it connects, because that may wait for an old master, too
            connect()
        else:
            self._lead_to_first(connection, connect)
            with self._lock:
                self._connections.add(connection)

    def ask(self) -> None:
        """Ask Sentinel who is the master now.

        Raises:
            redis.RedisError: no Sentinel knows a master.
        """
        with self._lock:
            self._ask()

    def leave(self, connection: Any) -> None:
        """Note that the server to which a connection leads is not the master."""
        with self._lock:
            if (connection.place, connection.changes) == (self.place, self.changes):
                self.place = (self.place + 1) % len(self._servers)
                self._doubtful = True

    def _ask(self) -> None:
        address = self._sentinels.discover_master(self._service)
        if self._address not in (None, address):
            self._changed("{}:{}".format(*address))
        self._address = address

    def _lead_to_first(self, connection: Any, connect: Callable[[], None]) -> None:
        error: redis.RedisError | None = None
        several = len(self._servers) > 1
        for _ in self._servers:
            connection.place, connection.changes = self.place, self.changes
            for name, value in self._servers[connection.place].items():
                setattr(connection, name, value)
            try:
                connect()
                if several or self._doubtful:
                    _check_is_master(connection)
                    self._arrived(connection)
                return
            except redis.RedisError as exc:
                error = exc
                connection.disconnect()
                if several:
                    self.leave(connection)
        assert error is not None
        raise error

    def _arrived(self, connection: Any) -> None:
        with self._lock:
            if self._doubtful:
                self._doubtful = False
                self._changed(_name(connection))
                connection.changes = self.changes

    def _changed(self, name: str) -> None:
        logger.warning("The master is another server now, or one again. This worker goes on there: %s.", name)
        self.changes += 1
        for connection in self._connections:
            connection.wake()
        self._connections.clear()
        self._on_change()


def _ask_again(reference: "weakref.ref[Master]") -> None:
    """Ask Sentinel every few seconds, because an old master may still answer, and nothing else would tell."""
    pause = threading.Event()
    while (master := reference()) is not None:
        with suppress(redis.RedisError):
            master.ask()
        del master
        pause.wait(tuning.SENTINEL_CHECK_S)


def _name(connection: Any) -> str:
    return getattr(connection, "path", None) or f"{connection.host}:{connection.port}"


def _check_is_master(connection: Any) -> None:
    connection.send_command("INFO", "replication", check_health=False)
    with suppress(redis.exceptions.NoPermissionError):
        if b"role:master" not in connection.read_response():
            raise redis.ConnectionError(f"{_name(connection)} is a read only replica")


def following_class(connection_class: type[Any]) -> type[Any]:
    """Return the class of connections like those of `connection_class` that follow a master."""
    return type(connection_class.__name__, (MasterConnection, connection_class), {})


def followed_class(connection_class: type[Any]) -> type[Any]:
    """Return the class that `following_class` was given, if `connection_class` is its result."""
    followed: type[Any] = connection_class.__bases__[-1]
    return followed if issubclass(connection_class, MasterConnection) else connection_class


class MasterConnection:
    """Makes a connection of redis-py follow a `Master`; the class of such a connection is its other parent.

    A connection that was silent for a while is checked before a command goes over it, and replaced if it is lost. So it
    suits whoever sends a command and reads its answer. Whoever has more state than that sets `health_check_interval` to
    0 and checks it by himself.
    """

    def __init__(self: Any, *, master: Master, **parameters: Any) -> None:
        self._master = master
        #: The master's changes and its place when this connection was made.
        self.changes = self.place = 0
        self._heard_at = 0.0
        super().__init__(**parameters)

    def connect_check_health(self: Any, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect to whichever server is the master now."""
        if not self.is_connected:
            # Neither is looked at: a connection is checked when it is used, and `RedisRetry` tries again.
            del check_health, retry_socket_connect
            connect = super().connect_check_health  # type: ignore[misc]
            self._master.lead(self, lambda: connect(check_health=False, retry_socket_connect=False))
            self._heard_at = time.monotonic()

    def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        """Send a command, but never to a server that is no longer the master."""
        if self.changes != self._master.changes and self.is_connected:
            self.disconnect()
            raise redis.ConnectionError("another server is the master now")
        super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Read an answer; close the connection if the server says that it is not the master."""
        try:
            response = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.RedisError as exc:
            if is_not_the_master(exc):
                self.disconnect()
                self._master.leave(self)
            raise
        self._heard_at = time.monotonic()
        return response

    def check_health(self: Any) -> None:
        """Replace this connection if it is lost."""
        silent_s = time.monotonic() - self._heard_at
        if not self.health_check_interval or silent_s < tuning.CLOSED_CHECK_S:
            return
        try:
            lost = self.can_read(timeout=0)  # nobody has asked for anything: it is the end, or an answer too many
            if not lost and silent_s >= self.health_check_interval:
                self.send_command("PING", check_health=False)
                self.read_response(timeout=tuning.HEALTH_ANSWER_S)
        except redis.RedisError:
            lost = True
        if lost:
            self.disconnect()
            self.connect_check_health(check_health=False)

    def wake(self: Any) -> None:
        """End a wait for an answer, with an error. Any thread."""
        sock = _socket_of(self)
        with suppress(OSError):
            if sock is not None:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which the reading thread would miss
