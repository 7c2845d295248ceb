"""The keeper: a process beside a worker, which refreshes the worker's lease while the worker itself cannot.

A model may hold Python's GIL for longer than a lease lasts. No thread of the worker runs then, but other workers must
not take its jobs. The keeper refreshes the lease meanwhile, up to a limit. A worker that is silent for one lease more
can neither go on nor end by itself, so the keeper kills it, and its supervisor starts another.

The worker runs this file by its path and not as a module, so that nothing is imported here but redis. It writes lines
of JSON to the keeper's standard input: first a `Charge`, then its beats. The keeper ends when that input ends.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: Seconds between two looks at whether the worker is still there, should its end of the pipe live on in a child.
LONGEST_WAIT_S = 60.0

#: Seconds for which a worker may be silent in any case, because its machine may be busy.
LEAST_SILENCE_S = 10.0


@dataclass(kw_only=True)
class Charge:
    """A worker, its lease, and what it last said. All times are on the monotonic clock, which processes share."""

    pid: int
    worker: str
    lease_s: float
    #: The class of redis-py for a connection to the server, and its arguments.
    connection: str
    parameters: Mapping[str, Any]
    #: When the worker last said anything, and for how many seconds it may be silent.
    beat_at: float = field(default_factory=time.monotonic)
    limit_s: float = float("inf")
    #: When the lease was last refreshed, and in which sorted sets.
    refreshed_at: float = float("inf")
    keys: Sequence[str] = ()

    def note(self, beat: Mapping[str, Any]) -> None:
        """Note a beat of the worker."""
        self.beat_at, self.limit_s = beat["at"], beat["limit_s"]
        if beat["keys"]:
            self.keys, self.refreshed_at = beat["keys"], beat["refreshed_at"]

    @property
    def refresh_at(self) -> float:
        """When to refresh the lease, unless the worker does it before."""
        return self.refreshed_at + self.lease_s / 2

    @property
    def kill_at(self) -> float:
        """When to kill the worker, unless it says anything before: its lease, no longer refreshed, has run out."""
        return self.beat_at + max(self.limit_s + self.lease_s, LEAST_SILENCE_S)


class Keeper:
    """Watches over one worker."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._client: Any = None

    def turn(self, now: float) -> float:
        """Do what is due, and return when to come back."""
        charge = self._charge
        if now >= charge.kill_at:
            self._kill(now - charge.beat_at)
        elif now >= charge.beat_at + charge.limit_s:
            return charge.kill_at
        elif now >= charge.refresh_at:
            # A refresh that fails is tried again soon.
            charge.refreshed_at = now if self._refresh() else now - charge.lease_s * 0.4
        return min(charge.refresh_at, charge.kill_at)

    def _refresh(self) -> bool:
        charge = self._charge
        try:
            if self._client is None:
                pool = redis.ConnectionPool(
                    connection_class=getattr(redis, charge.connection),
                    **charge.parameters,
                    socket_timeout=max(0.5, charge.lease_s / 4),
                    socket_connect_timeout=max(0.5, charge.lease_s / 4),
                    retry=Retry(NoBackoff(), 0),
                    protocol=2,
                )
                script = Path(__file__).with_name("scripts") / "refresh.lua"
                self._client = redis.Redis(connection_pool=pool).register_script(script.read_text())
            # A lease that is over stays so, because the worker itself must see that it may have lost messages.
            self._client(keys=charge.keys, args=[charge.lease_s, charge.worker, ""])
        except (redis.RedisError, OSError) as exc:
            say(f"the lease of worker process {charge.pid} could not be refreshed in its place: {exc}")
            return False
        return True

    def _kill(self, silent_s: float) -> None:
        pid = self._charge.pid
        os.kill(pid, signal.SIGKILL)
        say(
            f"worker process {pid} has run no Python for {silent_s:.0f} s, because something holds the GIL. "
            "It was killed, so that its supervisor starts another. Its jobs run again elsewhere."
        )


def say(text: str) -> None:
    """Write a line where the worker's log goes, unless that has a file of its own."""
    with suppress(OSError, AttributeError):  # it may be closed
        sys.stderr.write(f"Batchery's keeper: {text}\n")
        sys.stderr.flush()


def main() -> None:
    """Watch over the worker that is this process' parent until it ends."""
    # A signal to the whole group or container means the worker, which may need its lease until it has drained.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    head, _, rest = _read_line()
    charge = Charge(**json.loads(head))
    keeper, back_at = Keeper(charge), time.monotonic() + charge.lease_s
    while os.getppid() == charge.pid:
        *beats, rest = rest.split(b"\n")
        for beat in beats:
            charge.note(json.loads(beat))
        now = time.monotonic()
        if now > back_at + charge.lease_s:  # this process stood still, and so may the worker have done
            charge.beat_at = now
        back_at = keeper.turn(now)
        wait_s = min(max(0.0, back_at - time.monotonic()), LONGEST_WAIT_S)
        readable, _, _ = select.select([0], [], [], wait_s)
        if readable:
            if not (read := os.read(0, 65536)):
                return
            rest += read


def _read_line() -> tuple[bytes, bytes, bytes]:
    read = b""
    while b"\n" not in read:
        more = os.read(0, 65536)
        if not more:
            sys.exit()
        read += more
    return read.partition(b"\n")


if __name__ == "__main__":
    main()
