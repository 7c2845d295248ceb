"""What goes wrong in a chaos run, and when. A seed makes the same schedule again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import redis

from .fleet import Fleet, Slot
from .servers import Servers

#: Seconds between two faults on average.
MEAN_GAP_S = 3.5


@dataclass
class Fault:
    """One fault: when it is to begin, and with what luck."""

    at: float
    kind: str
    #: Which worker it hits, and how long it lasts.
    slot: int
    seconds: float
    #: Whether it is the harsher of two forms: a whole process group, all connections, all commands.
    hard: bool
    start: float = 0.0
    end: float = 0.0
    error: str = ""


@dataclass
class Target:
    """All that a fault can hit."""

    servers: Servers
    fleet: Fleet
    #: Faults of the server come one after the other.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def slot(self, fault: Fault) -> Slot:
        return self.fleet.slots[fault.slot % len(self.fleet.slots)]


def _term(target: Target, fault: Fault) -> None:
    target.slot(fault).signal(signal.SIGTERM, "term")


def _rolling_deploy(target: Target, fault: Fault) -> None:
    for slot in target.fleet.slots:
        slot.signal(signal.SIGTERM, "term")
        time.sleep(fault.seconds)


def _kill(target: Target, fault: Fault) -> None:
    target.slot(fault).signal(signal.SIGKILL, "kill", group=fault.hard)


def _freeze(target: Target, fault: Fault) -> None:
    slot = target.slot(fault)
    slot.signal(signal.SIGSTOP, group=fault.hard)
    time.sleep(1.5 * fault.seconds)
    slot.signal(signal.SIGCONT, group=fault.hard)


def _client_kill(target: Target, fault: Fault) -> None:
    with target.servers.client() as client:
        if fault.hard:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            return
        listed: Any = client.client_list(_type="normal")
        chosen = listed[int(fault.seconds * 1000) % len(listed)]
        client.client_kill_filter(_id=chosen["id"], skipme=False)


def _script_flush(target: Target, _: Fault) -> None:
    with target.servers.client() as client:
        client.script_flush()


def _pause(target: Target, fault: Fault) -> None:
    with target.servers.client() as client:
        client.client_pause(int(1000 * fault.seconds), all=fault.hard)
    time.sleep(fault.seconds)


def _busy(target: Target, fault: Fault) -> None:
    script = """local start = redis.call('TIME')
repeat
    local now = redis.call('TIME')
until (now[1] - start[1]) * 1000000 + now[2] - start[2] > tonumber(ARGV[1])"""
    with target.servers.client() as client:
        client.eval(script, 0, str(int(1e6 * min(fault.seconds, 3))))


def _full(target: Target, fault: Fault) -> None:
    with target.servers.client() as client:
        memory: Any = client.info("memory")
        client.config_set("maxmemory", memory["used_memory"] - 100_000 * fault.hard)
        time.sleep(fault.seconds)
        client.config_set("maxmemory", 0)


def _too_few_replicas(target: Target, fault: Fault) -> None:
    with target.servers.client() as client:
        client.config_set("min-replicas-to-write", 2)
        time.sleep(fault.seconds)
        client.config_set("min-replicas-to-write", 0)


def _restart(target: Target, fault: Fault) -> None:
    target.servers.restart(fault.seconds / 2 if fault.hard else 0, kill=False)


def _crash(target: Target, fault: Fault) -> None:
    target.servers.restart(fault.seconds / 2 if fault.hard else 0, kill=True)


def _fail_over(target: Target, fault: Fault) -> None:
    target.servers.fail_over()
    if fault.hard:  # a failover that also cuts what was connected to the old primary
        target.servers.proxy.do("cut")


def _cut(target: Target, _: Fault) -> None:
    target.servers.proxy.do("cut")


def _network(what: str, value: Any = True, default: Any = False) -> Callable[[Target, Fault], None]:
    def fault_(target: Target, fault: Fault) -> None:
        target.servers.proxy.do(what, value)
        try:
            time.sleep(fault.seconds)
        finally:
            target.servers.proxy.do(what, default)
        if what == "refuse" and fault.hard:
            target.servers.proxy.do("cut")

    return fault_


#: Faults of workers, by how often they come.
WORKERS: dict[str, tuple[int, Callable[[Target, Fault], None]]] = {
    "SIGTERM": (8, _term),
    "rolling deploy": (2, _rolling_deploy),
    "SIGKILL": (8, _kill),
    "freeze": (6, _freeze),
}
#: Faults of the server and of the network. One ends before the next begins.
SERVER: dict[str, tuple[int, Callable[[Target, Fault], None]]] = {
    "CLIENT KILL": (4, _client_kill),
    "cut": (3, _cut),
    "stall": (2, _network("stall")),
    "refuse": (2, _network("refuse")),
    "swallow": (1, _network("swallow")),
    "slow": (2, _network("slow", 0.03, 0.0)),
    "SCRIPT FLUSH": (3, _script_flush),
    "CLIENT PAUSE": (2, _pause),
    "busy": (2, _busy),
    "full": (3, _full),
    "too few replicas": (2, _too_few_replicas),
    "restart": (3, _restart),
    "crash": (3, _crash),
    "failover": (3, _fail_over),
}
KINDS = {**WORKERS, **SERVER}
#: Faults of the address that Sentinel replaces.
OF_THE_ADDRESS = {"cut", "stall", "refuse", "swallow", "slow"}


def schedule(seed: int, seconds: float, kinds: tuple[str, ...] = (*KINDS,), gap_s: float = MEAN_GAP_S) -> list[Fault]:
    """Return the faults of a run, in the order of time."""
    chance = Random(f"{seed}-faults")
    at, faults = 1.0, []
    while (at := at + chance.expovariate(1 / gap_s)) < seconds:
        (kind,) = chance.choices(kinds, [KINDS[kind][0] for kind in kinds])
        faults.append(Fault(at, kind, chance.randrange(60), chance.uniform(0.3, 5.0), chance.random() < 0.5))
    return faults


def inflict(faults: list[Fault], target: Target, started: float, log: Path) -> None:
    """Let all faults happen at their times, and return once the last one is over."""
    threads = []
    for fault in faults:
        time.sleep(max(0.0, started + fault.at - time.time()))
        thread = threading.Thread(target=_inflict, args=(fault, target, log), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()


def _inflict(fault: Fault, target: Target, log: Path) -> None:
    _, function = KINDS[fault.kind]
    lock = target.lock if fault.kind in SERVER else threading.Lock()
    with lock:
        fault.start = time.time()
        try:
            function(target, fault)
        except (redis.RedisError, OSError, TimeoutError) as error:
            fault.error = repr(error)
        fault.end = time.time()
    with log.open("a") as file:
        print(json.dumps(asdict(fault)), file=file)
