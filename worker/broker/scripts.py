"""Runs the Lua scripts of the folder `scripts`."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

_FOLDER = Path(__file__).parent / "scripts"


class Scripts:
    """Runs scripts on one server. Any thread."""

    def __init__(self, client: "redis.Redis") -> None:
        """Run scripts on `client`'s server and db."""
        self._pool = client.connection_pool
        self._local = threading.local()
        self._scripts = {path.stem: client.register_script(path.read_text()) for path in _FOLDER.glob("*.lua")}
        self.db = int(self._pool.connection_kwargs.get("db") or 0)

    @property
    def client(self) -> "redis.Redis":
        """A client whose connection the calling thread keeps, because the pool costs a system call and so the GIL."""
        client: redis.Redis | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = redis.Redis(connection_pool=self._pool, single_connection_client=True)
        return client

    def run(self, name: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run the script scripts/`name`.lua and return its reply."""
        return self._scripts[name](keys=keys, args=args, client=self.client)
