"""CeleryBridge outcomes, told to Celery's own tracer.

Errors, retries, callbacks, chains, chords, signals: Celery does all of that in one function, its tracer, around a call
of the task. We have the outcome already; so the tracer gets a task whose body replays it.
"""

import threading
from typing import Any

from celery.app.autoretry import add_autoretry_behaviour
from celery.app.trace import build_tracer

from ....batchers import Outcome


def make_replay(task: Any) -> Any:
    """Return a task like `task`, whose body returns or raises the outcome that `trace` was given.

    Where `task` has `autoretry_for`, Celery's wrapper goes around this body: so each job is retried by itself.
    """
    outcomes = threading.local()

    def run(*_: Any, **__: Any) -> Any:
        outcome: Outcome = outcomes.current
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def call(_self: Any, *args: Any, **kwargs: Any) -> Any:
        return replay.run(*args, **kwargs)

    replay: Any = object.__new__(type("Replay", (type(task),), {"__call__": call}))
    replay.__dict__.update((name, value) for name, value in vars(task).items() if name != "_orig_run")
    replay.run = run
    replay.outcomes = outcomes
    replay.__trace__ = None
    add_autoretry_behaviour(replay)
    return replay


def trace(replay: Any, request: Any, outcome: Outcome, app: Any) -> tuple[int, Any, Any]:
    """Let Celery's tracer store and announce `outcome`; return what its pools hand to `Request.on_success`.

    That is, as Celery has it: (failed, result, runtime).
    """
    if replay.__trace__ is None:
        replay.__trace__ = build_tracer(replay.name, replay, app.loader, request.hostname, app=app)
    args, kwargs, embed = request._payload
    context = {
        **request.request_dict,
        "args": args,
        "kwargs": kwargs,
        "is_eager": False,
        **(embed if isinstance(embed, dict) else {}),
    }
    replay.outcomes.current = outcome
    try:
        result, info, runtime, text = replay.__trace__(request.id, args, kwargs, context)
    finally:
        del replay.outcomes.current
    return (1, result, runtime) if info else (0, text, runtime)
