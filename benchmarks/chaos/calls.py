"""The calls of a chaos run, each with its answer. A seed makes the same calls again."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from . import work
from .settings import GIL_S
from .work import Spec

PRODUCERS = 2
#: What Celery's `expires` and `countdown` may be, in seconds.
SHORT_EXPIRY_S, LONG_EXPIRY_S, LONGEST_COUNTDOWN_S = 1.0, 3600.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call, and what may become of it."""

    id: str
    key: str
    task: str
    spec: Spec
    #: Its answer, unless it is to fail.
    value: Any = None
    #: The classes of the errors with which it may fail. Without any it has to succeed.
    errors: tuple[str, ...] = ()
    #: Whether it may be answered with REVOKED: it expires soon, or it is revoked.
    revocable: bool = False
    #: Whether it kills or hangs its worker.
    poison: bool = False
    #: Whether it may run more than once by itself, because it asks for a retry or fails with its batch.
    repeats: bool = False
    #: The ids of the calls that have to be answered before it is sent.
    after: tuple[str, ...] = ()
    countdown_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Send:
    """What a producer sends at one time: one call, or several that belong together."""

    at: float
    kind: str
    calls: tuple[Call, ...]
    #: Options of `apply_async`.
    options: dict[str, Any] = field(default_factory=dict)


class Maker:
    """Makes calls with names of their own."""

    def __init__(self, chance: Random, prefix: str) -> None:
        self.chance = chance
        self._prefix = prefix
        self._made = 0

    def call(self, task: str = "model", do: str = "ok", **more: Any) -> Call:
        chance = self.chance
        spec = {
            "key": f"{self._prefix}{self._made}",
            "x": chance.randrange(1000),
            "do": do,
            "ms": chance.choice((0, 1, 5, 20, 50, 100, 200)),
            "size": int(min(256, 1 + chance.expovariate(1 / 40))),
            **more.pop("spec", {}),
        }
        self._made += 1
        made = {"id": str(uuid.UUID(int=chance.getrandbits(128), version=4)), "value": work.answer(spec), **more}
        return Call(key=spec["key"], task=task, spec=spec, **made)

    def calls(self, few: int, many: int, task: str = "model") -> tuple[Call, ...]:
        return tuple(self.call(task) for _ in range(self.chance.randint(few, many)))


Made = tuple[tuple[Call, ...], dict[str, Any]]


def _single(task: str = "model", do: str = "ok", options: dict[str, Any] | None = None, **more: Any) -> Any:
    return lambda make: ((make.call(task, do, **more),), options or {})


def _many(make: Maker) -> Made:
    return make.calls(5, 20), {}


def _group(make: Maker) -> Made:
    return make.calls(3, 8, make.chance.choice(("model", "plain"))), {}


def _chord(make: Maker) -> Made:
    parts = [make.call(make.chance.choice(("model", "model", "plain"))) for _ in range(make.chance.randint(2, 8))]
    body = make.call("gather", after=tuple(part.id for part in parts))
    return (*parts, _with(body, value=work.gather([part.value for part in parts], body.spec))), {}


def _failing_chord(make: Maker) -> Made:
    (*parts, body), options = _chord(make)
    parts.append(make.call("model", "raise", errors=("ModelError",)))
    return (*parts, _with(body, value=None, errors=("ChordError",), after=tuple(part.id for part in parts))), options


def _chain(make: Maker) -> Made:
    steps = [make.call()]
    for _ in range(make.chance.randint(1, 3)):
        step = make.call("follow", after=(steps[-1].id,))
        steps.append(_with(step, value=work.follow(steps[-1].value, step.spec)))
    return tuple(steps), {}


def _link(make: Maker) -> Made:
    call = make.call(make.chance.choice(("model", "plain")))
    note = make.call("note", after=(call.id,))
    return (call, _with(note, value=work.follow(call.value, note.spec))), {}


def _countdown(make: Maker) -> Made:
    seconds = round(make.chance.uniform(0.5, LONGEST_COUNTDOWN_S), 2)
    call = make.call(make.chance.choice(("model", "model", "plain")), countdown_s=seconds)
    return (call,), {"countdown": seconds}


def _priority(make: Maker) -> Made:
    return (make.call(make.chance.choice(("model", "plain"))),), {"priority": make.chance.choice((0, 3, 6, 9))}


def _with(call: Call, **changes: Any) -> Call:
    return Call(**{**vars(call), **changes})


_FAILS: dict[str, Any] = {"errors": ("ModelError",)}
_PREPARED: Any = {"stage": "preprocess"}
_POSTPROCESSED: Any = {"stage": "postprocess"}
#: The kinds of what is sent: how often, and by what it is made.
KINDS: dict[str, tuple[int, Callable[[Maker], Made]]] = {
    "single": (26, _single()),
    "waited for": (5, _single()),
    "many": (6, _many),
    "group": (4, _group),
    "chord": (6, _chord),
    "failing chord": (1, _failing_chord),
    "chain": (6, _chain),
    "link": (4, _link),
    "autoretry": (6, _single("flaky", "flaky", repeats=True)),
    "retry": (4, _single("hooked", "retry", repeats=True)),
    "countdown": (6, _countdown),
    "expires soon": (4, _single(options={"expires": SHORT_EXPIRY_S}, revocable=True)),
    "expires": (3, _single(options={"expires": LONG_EXPIRY_S})),
    "revoke": (3, _single(revocable=True)),
    "priority": (8, _priority),
    "plain": (12, _single("plain")),
    "hooks": (6, _single("hooked")),
    "large": (2, _single(spec={"text": "x" * 50_000})),
    "error": (4, _single(do="raise", **_FAILS)),
    "error in plain": (2, _single("plain", "raise", **_FAILS)),
    "error in preprocess": (1, _single("hooked", "raise", spec=_PREPARED, **_FAILS)),
    "error in postprocess": (1, _single("hooked", "raise", spec=_POSTPROCESSED, **_FAILS)),
    "error of a batch": (3, _single(do="burst", repeats=True, **_FAILS)),
    "quoting error": (2, _single(do="quote", repeats=True, errors=("ValueError",))),
    "out of memory": (1, _single(do="oom", repeats=True, errors=("MemoryError",))),
    "tight memory": (2, _single(do="tight", repeats=True)),
}

#: Errors that tell the caller that the input ends workers.
_LOST = ("WorkerLostError", "TimeLimitExceeded", "DeadLetter")
_POISON: dict[str, Any] = {"poison": True, "errors": _LOST}
#: Inputs that harm their worker: how many there are in a minute.
POISONS: dict[str, tuple[float, Callable[[Maker], Made]]] = {
    "kill": (1.5, _single(do="kill", **_POISON)),
    "kill in preprocess": (0.5, _single("hooked", "kill", spec=_PREPARED, **_POISON)),
    "kill in postprocess": (0.5, _single("hooked", "kill", spec=_POSTPROCESSED, **_POISON)),
    "hang": (0.5, _single(do="hang", **_POISON)),
    "hang in preprocess": (0.4, _single("hooked", "hang", spec=_PREPARED, **_POISON)),
    "hang in postprocess": (0.4, _single("hooked", "hang", spec=_POSTPROCESSED, **_POISON)),
    "GIL": (1.0, _single(do="gil", spec={"s": GIL_S})),
}

#: What a system does not get, because one such call would decide about all others. The reason is told with the figures.
NOT_FOR: dict[str, dict[str, set[str]]] = {
    "batchery": {},
    "stock": {
        # Celery raises a MemoryError again in the worker's main process.
        "a MemoryError ends the worker, and its message goes back to the next one, for ever": {"out of memory"},
    },
    "celery-batches": {
        "there are no retries, callbacks, chains and chords": {
            "chord", "failing chord", "chain", "link", "autoretry", "retry",
        },
        "a batch that raises leaves all of its callers without an answer": {
            "error in preprocess", "error in postprocess", "error of a batch", "quoting error", "out of memory",
            "tight memory",
        },
        "a worker has no time limit, and its batch dies with it": {*POISONS},
    },
}  # fmt: skip


def kinds_of(system: str) -> list[str]:
    left_out = {kind for kinds in NOT_FOR[system].values() for kind in kinds}
    return [kind for kind in (*KINDS, *POISONS) if kind not in left_out]


def plan(system: str, seed: int, producer: int, seconds: float, rate: float, poisons: bool = True) -> list[Send]:
    """Return what one producer sends, in the order of time. `rate` is calls per second of all producers."""
    make = Maker(Random(f"{seed}-calls-{producer}"), f"{'abcdefgh'[producer]}")
    possible = kinds_of(system)
    kinds = {kind: entry for kind, entry in KINDS.items() if kind in possible}
    sends = []
    at, chance = 0.0, make.chance
    while True:
        (kind,) = chance.choices([*kinds], [weight for weight, _ in kinds.values()])
        calls, options = kinds[kind][1](make)
        at += chance.expovariate(rate / PRODUCERS / len(calls))
        if at > seconds:
            break
        sends.append(Send(at=at, kind=kind, calls=calls, options=options))
    if poisons:
        sends += _poisons(make, possible, producer, seconds)
    return sorted(sends, key=lambda send: send.at)


def _poisons(make: Maker, possible: list[str], producer: int, seconds: float) -> Iterator[Send]:
    """Spread harmful inputs over the first three quarters of the run, so that their deaths fall into it."""
    for place, (kind, (per_minute, maker)) in enumerate(POISONS.items()):
        wanted = per_minute * seconds / 60
        count = int(wanted) + (make.chance.random() < wanted % 1)
        for number in range(count):
            at = make.chance.uniform(0.02, 0.75) * seconds
            # Each producer makes the same number of random choices, and sends its share.
            calls, options = maker(make)
            if kind in possible and (place + number) % PRODUCERS == producer:
                yield Send(at=at, kind=kind, calls=calls, options=options)
