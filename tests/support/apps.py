"""The app that these tests run: `celery -A tests.support.apps worker`; `make_app` makes a caller's."""

from __future__ import annotations

import builtins
import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from batchery.configs import WorkerOptions
from batchery.worker import tuning
from celery import Celery, signals

from batchery import BatchTask, setup

#: The name of this module, as `celery -A` takes it.
APP = "tests.support.apps"
#: List at the broker: one entry for each batch that ran, the JSON list of its items.
BATCHES = "test:batches"
#: List at the broker: what hooks and signals saw, as JSON lists.
SEEN = "test:seen"


class OddInput(Exception):
    """What the tests' models raise."""


class Flaky(Exception):
    """What `flaky` raises on the first two runs of a job."""


class Unserializable:
    """JSON has no word for this."""


def make_app(broker: str, backend: str | None = None, **conf: Any) -> Celery:
    app = Celery("consumer-tests", broker=broker, backend=backend or broker, set_as_current=False)
    app.conf.update(
        task_default_queue="celery",
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        **conf,
    )
    register(app)
    return app


def note(app: Celery, key: str, value: Any) -> None:
    """Write down, at the broker, what happened in the worker."""
    with app.connection_for_write() as connection:
        connection.default_channel.client.rpush(key, json.dumps(value))


def pass_gates(paths: Iterable[str]) -> None:
    """Wait at each FIFO until somebody has opened and closed its other end; one that is gone is open."""
    for path in sorted(set(paths)):
        with suppress(FileNotFoundError), open(path) as gate:
            gate.read()


def register(app: Celery) -> None:
    def task(**options: Any) -> Any:
        return app.task(base=BatchTask, shared=False, **options)

    @task(name="echo", max_batch_size=16)
    def echo(values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        time.sleep(float(os.environ.get("LAUNCH_S", "0")))
        return values

    @task(name="gated", max_batch_size=4)
    def gated(paths: list[str], values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        pass_gates(paths)
        return values

    @task(name="picky", max_batch_size=16, max_wait_ms=20_000, max_age_ms=60_000)
    def picky(values: list[Any]) -> list[Any]:
        note(app, BATCHES, values)
        if "bad" in values:
            raise OddInput("bad")
        return [OddInput("slot") if value == "slot" else value for value in values]

    @task(name="quotes", max_batch_size=16)
    def quotes(words: list[str]) -> list[int]:
        vocabulary = {f"word {number}": number for number in range(1000)}
        return [vocabulary[word] for word in words]

    @task(name="short", max_batch_size=16)
    def short(values: list[Any]) -> list[Any]:
        return values[1:]

    @task(name="miscounts", max_batch_size=16)
    def miscounts(kinds: list[str]) -> Any:
        odd: dict[str, Any] = {
            "fewer": kinds[1:],
            "more": [*kinds, "one more"],
            "none": None,
            "a number": 7,
            "a text": "x" * len(kinds),
            "an object": dict.fromkeys(range(len(kinds))),
        }
        return next((odd[kind] for kind in kinds if kind in odd), kinds)

    @task(name="numbers", max_batch_size=16)
    def numbers(words: list[str]) -> list[float]:
        return [float(word) for word in words]

    @task(name="silent", max_batch_size=4)
    def silent(paths: list[str], values: list[Any]) -> list[Any]:
        pass_gates(paths)
        return values

    @task(name="swell", max_batch_size=16)
    def swell(sizes: list[int]) -> list[str]:
        return ["x" * size for size in sizes]

    @task(name="measure", max_batch_size=16)
    def measure(texts: list[str]) -> list[int]:
        return list(map(len, texts))

    @task(name="leaver", max_batch_size=16)
    def leaver(values: list[Any]) -> list[Any]:
        if "leave" in values:
            raise SystemExit(3)
        return values

    @task(name="unserializable", max_batch_size=16)
    def unserializable(values: list[Any]) -> list[Any]:
        return [Unserializable() if value == "bad" else value for value in values]

    @task(name="add", max_batch_size=16)
    def add(xs: list[Any], ys: list[Any]) -> list[Any]:
        return [OddInput(x) if x == "bad" else x + y for x, y in zip(xs, ys, strict=True)]

    @task(name="total", max_batch_size=16)
    def total(lists: list[list[float]]) -> list[float]:
        return [sum(values) for values in lists]

    @task(name="double", max_batch_size=16, serializer="batchery")
    def double(arrays: list[Any]) -> list[Any]:
        return [array * 2 for array in arrays]

    @task(name="quiet", max_batch_size=16, ignore_result=True)
    def quiet(values: list[Any]) -> list[Any]:
        note(app, SEEN, ["quiet", values])
        return values

    @task(name="flaky", max_batch_size=16, autoretry_for=(Flaky,), default_retry_delay=0, max_retries=5)
    def flaky(values: list[Any]) -> list[Any]:
        with app.connection_for_write() as connection:
            client = connection.default_channel.client
            runs = [client.incr(f"test:runs:{value}") for value in values]
        return [
            Flaky(f"run {run}") if str(value).startswith("flaky") and run < 3 else [value, run]
            for value, run in zip(values, runs, strict=True)
        ]

    @task(name="hopeless", max_batch_size=16, autoretry_for=(Flaky,), default_retry_delay=0, max_retries=1)
    def hopeless(values: list[Any]) -> list[Any]:
        return [Flaky(value) for value in values]

    if "LOAD_ERROR" in os.environ:
        app.register_task(Missing())
    app.register_task(Prepared())
    app.register_task(Hooked())
    app.register_task(Texts())

    @app.task(name="plain", shared=False)
    def plain(value: Any) -> Any:
        return value

    @app.task(name="carry", shared=False, serializer="batchery")
    def carry(value: Any) -> Any:
        return value

    @app.task(name="plain_gated", shared=False)
    def plain_gated(path: str, value: Any) -> Any:
        pass_gates([path])
        return value

    @app.task(name="note_error", shared=False)
    def note_error(request: Any, exc: Any, traceback: Any) -> None:
        note(app, SEEN, ["errback", request.id, str(exc)])

    @app.task(name="note_value", shared=False)
    def note_value(value: Any) -> Any:
        note(app, SEEN, ["link", value])
        return value


class Missing(BatchTask):
    """Does not load."""

    name = "missing"

    def load(self, device: str) -> None:
        raise getattr(builtins, os.environ["LOAD_ERROR"])("the model is not there")

    def predict(self, batch: Any) -> Any:
        return batch


class Texts(BatchTask):
    """Has a `preprocess` of its own, and so preprocess threads."""

    name = "texts"
    max_batch_size = 16

    def preprocess(self, text: str, suffix: str = "!") -> str:
        if text == "leave":
            raise SystemExit(3)
        return text.strip() + suffix

    def predict(self, texts: Sequence[str]) -> list[str]:
        return [text.upper() for text in texts]

    def postprocess(self, text: str) -> str:
        if text == "LEAVE LATE!":
            raise SystemExit(3)
        return text


class Prepared(BatchTask):
    """Its `preprocess` retries, and refuses."""

    name = "prepared"
    max_batch_size = 16
    default_retry_delay = 0

    def preprocess(self, value: Any) -> Any:
        if value == "bad":
            raise OddInput("bad in preprocess")
        if str(value).startswith("retry"):
            with self.app.connection_for_write() as connection:
                if connection.default_channel.client.incr(f"test:runs:{value}") < 3:
                    raise self.retry(exc=Flaky(value), countdown=0)
        return value

    def predict(self, values: Sequence[Any]) -> list[Any]:
        return list(values)


class Hooked(BatchTask):
    """Celery's own hooks, which are called for each job."""

    name = "hooked"
    max_batch_size = 16

    def predict(self, values: Sequence[Any]) -> list[Any]:
        return [OddInput("hooked") if value == "bad" else value for value in values]

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note(self.app, SEEN, ["on_success", retval, task_id, list(args)])

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(self.app, SEEN, ["on_failure", str(exc), task_id, list(args)])

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(self.app, SEEN, ["after_return", status, task_id, list(args)])


vars(tuning).update(json.loads(os.environ.get("TUNING", "{}")))
app = make_app(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:1/0"),
    os.environ.get("RESULTS_URL"),
    **json.loads(os.environ.get("CONF", "{}")),
)
setup(app, WorkerOptions(**json.loads(os.environ["OPTIONS"])) if "OPTIONS" in os.environ else None)


def watch(name: str) -> None:
    """Write down for which jobs Celery's signal `name` is sent."""

    def seen(sender: Any, task_id: str | None = None, request: Any = None, **_: Any) -> None:
        note(app, SEEN, [name, task_id or (request or sender.request).id])

    getattr(signals, name).connect(seen, weak=False)


for name in json.loads(os.environ.get("SIGNALS", "[]")):
    watch(name)
