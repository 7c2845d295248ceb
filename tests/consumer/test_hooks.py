"""Hooks and signals are called for each job, and results go to whatever backend the app has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chord

from tests.support.apps import APP
from tests.support.backends import SEAL, SealedBackend
from tests.support.callers import calling, unsettled
from tests.support.models import BATCHES, SEEN
from tests.support.servers import valkey
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAIT = 15.0

SIGNALS = ["task_received", "task_prerun", "task_postrun", "task_success", "task_failure"]


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    return {"SIGNALS": json.dumps(SIGNALS)}


def seen(client: redis.Redis, *kinds: str) -> list[Any]:
    """What hooks and signals of these kinds wrote down."""
    entries = [json.loads(entry) for entry in client.lrange(SEEN, 0, -1)]
    return [entry for entry in entries if entry[0] in kinds]


# --- Hooks and signals ------------------------------------------------------------------------------------------------


def test_hooks_are_called_once_a_job(app: Celery, client: redis.Redis) -> None:
    results = list(app.tasks["hooked"].delay_many([1, "bad", 3]))
    assert [result.get(timeout=WAIT, propagate=False) for result in results[::2]] == [1, 3]
    assert str(results[1].get(timeout=WAIT, propagate=False)) == "hooked"
    hooks = ("on_success", "on_failure", "after_return")
    wait_until(lambda: len(seen(client, *hooks)) >= 6, "all hooks were called", WAIT)
    one, bad, three = (result.id for result in results)
    assert sorted(seen(client, *hooks)) == sorted(
        [
            ["on_success", 1, one, [1]],
            ["after_return", "SUCCESS", one, [1]],
            ["on_failure", "hooked", bad, ["bad"]],
            ["after_return", "FAILURE", bad, ["bad"]],
            ["on_success", 3, three, [3]],
            ["after_return", "SUCCESS", three, [3]],
        ]
    )


def test_signals_are_sent_once_a_job(app: Celery, client: redis.Redis) -> None:
    add = app.tasks["add"]
    results = list(add.delay_many([("bad" if index % 10 == 0 else index, 1) for index in range(40)]))
    for result in results:
        result.get(timeout=WAIT, propagate=False)
    for name in ("task_postrun", "task_received"):
        wait_until(lambda name=name: len(seen(client, name)) >= 40, f"each {name} was sent", WAIT)  # type: ignore[misc]
    assert add.delay(1, 1).get(timeout=WAIT) == 2  # what were sent twice would be sent by now
    ids = [result.id for result in results]
    failed = ids[::10]
    counts = {name: Counter(task_id for _, task_id in seen(client, name) if task_id in ids) for name in SIGNALS}
    assert counts == {
        "task_received": Counter(ids),
        "task_prerun": Counter(ids),
        "task_postrun": Counter(ids),
        "task_success": Counter(set(ids) - set(failed)),
        "task_failure": Counter(failed),
    }


def test_signals_come_in_celerys_order(app: Celery, client: redis.Redis) -> None:
    good, bad = app.tasks["add"].delay(1, 1), app.tasks["add"].delay("bad", 1)
    wait_until(lambda: len(seen(client, "task_postrun")) == 2, "both are through", WAIT)
    # Not task_received: that comes from another thread.
    order = {name: [entry[0] for entry in seen(client, *SIGNALS[1:]) if entry[1] == name] for name in (good.id, bad.id)}
    assert order[good.id] == ["task_prerun", "task_success", "task_postrun"]
    assert order[bad.id] == ["task_prerun", "task_failure", "task_postrun"]


# --- Backends ---------------------------------------------------------------------------------------------------------


class Service:
    """A worker whose results go elsewhere, and its callers' side."""

    def __init__(self, app: Celery, worker: Worker, client: redis.Redis) -> None:
        self.app = app
        self.worker = worker
        self.client = client

    def settled(self) -> bool:
        return not unsettled(self.client) and not self.client.exists("celery")


@pytest.fixture(scope="module")
def services(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """One worker for each kind of backend, all started at once; `extended` shares the broker's database."""
    files = Path(tmp_path_factory.mktemp("results")).as_uri()
    with ExitStack() as stack:
        own = stack.enter_context(valkey(save="")).removesuffix("/0")
        backends = {"another db": f"{own}/9", "another server": server, "files": files, "extended": f"{own}/4"}
        backends["encrypting"] = f"{SealedBackend.__module__}:{SealedBackend.__qualname__}+{own}/8"
        starting: dict[str, tuple[Worker, str, dict[str, Any]]] = {}
        for number, (name, backend) in enumerate(backends.items(), start=1):
            conf = {"result_extended": True} if name == "extended" else {}
            url = f"{own}/{number}"
            env = {"REDIS_URL": url, "RESULTS_URL": backend, "CONF": json.dumps(conf)}
            # Signals that leave a call fast; the short lease shows what is not settled and runs again.
            env |= {"SIGNALS": '["task_received"]', "OPTIONS": '{"lease_s": 1.0}'}
            worker = Worker(APP, args=(), env=env)
            stack.callback(worker.close)
            starting[name] = worker, url, conf
        services = {}
        for name, (worker, url, conf) in starting.items():
            worker.wait_until_ready(url)
            app = stack.enter_context(calling(url, backends[name], **conf))
            services[name] = Service(app, worker, stack.enter_context(redis.Redis.from_url(url)))
        yield services


@pytest.fixture(params=["another db", "another server", "files", "extended", "encrypting"])
def service(services: dict[str, Service], request: pytest.FixtureRequest) -> Service:
    service = services[request.param]
    service.client.delete(BATCHES, SEEN)
    return service


@pytest.mark.worker
def test_results_come_back_through_any_backend(service: Service) -> None:
    add = service.app.tasks["add"]
    results = list(add.delay_many([(index, 1) for index in range(40)]))
    failing, single = add.delay("bad", 1), add.delay(1, 2)
    assert [result.get(timeout=WAIT) for result in results] == list(range(1, 41))
    assert single.get(timeout=WAIT) == 3
    with pytest.raises(Exception, match="bad"):
        failing.get(timeout=WAIT)
    wait_until(service.settled, "every message is settled", WAIT)


@pytest.mark.worker
def test_a_chord_is_called_back_through_any_backend(service: Service) -> None:
    add, total = service.app.tasks["add"], service.app.tasks["total"]
    assert chord(add.s(index, 1) for index in range(20))(total.s()).get(timeout=WAIT) == sum(range(1, 21))
    wait_until(service.settled, "every message is settled", WAIT)


@pytest.mark.worker
def test_an_ignored_result_is_in_no_backend(service: Service) -> None:
    ignored = service.app.tasks["echo"].apply_async(("ignored",), ignore_result=True)
    assert service.app.tasks["echo"].delay("wanted").get(timeout=WAIT) == "wanted"
    wait_until(service.settled, "every message is settled", WAIT)
    assert service.app.AsyncResult(ignored.id).state == "PENDING"


@pytest.mark.worker
def test_a_job_is_received_once_whatever_the_backend(service: Service) -> None:
    result = service.app.tasks["echo"].delay(1)
    assert result.get(timeout=WAIT) == 1
    wait_until(service.settled, "it is settled", WAIT)
    signal = ["task_received", result.id]
    wait_until(lambda: signal in seen(service.client, "task_received"), "the signal was sent", WAIT)
    assert seen(service.client, "task_received").count(signal) == 1


@pytest.mark.worker
def test_an_encrypting_backend_stores_nothing_in_plain_text(services: dict[str, Service]) -> None:
    app = services["encrypting"].app
    results = [app.tasks["echo"].delay("pa55word"), app.tasks["plain"].delay("pa55word")]
    assert [result.get(timeout=WAIT) for result in results] == ["pa55word", "pa55word"]
    stored = [app.backend.get(app.backend.get_key_for_task(result.id)) for result in results]
    assert [value.startswith(SEAL) for value in stored] == [True, True]


@pytest.mark.worker
def test_extended_results_say_what_celerys_own_say(services: dict[str, Service]) -> None:
    app = services["extended"].app
    batched, plain = app.tasks["echo"].delay(1), app.tasks["plain"].delay(1)
    failed = app.tasks["add"].delay("bad", ys=1)
    for result in (batched, plain, failed):
        result.get(timeout=WAIT, propagate=False)
    metas = [json.loads(app.backend.get(app.backend.get_key_for_task(item.id))) for item in (batched, plain, failed)]
    assert metas[0].pop("stamped_headers") == ["batch"]
    batch = metas[0].pop("batch")
    assert (batch["size"], batch["closed_by"], batch["padding_share"]) == (1, "nothing left", 0)
    assert min(batch["number"], batch["queue_ms"], batch["run_ms"]) > 0
    assert metas[0].keys() == metas[1].keys() == metas[2].keys()
    own = {"task_id", "date_done", "name"}
    assert {key: value for key, value in metas[0].items() if key not in own} == {
        key: value for key, value in metas[1].items() if key not in own
    }
    assert (batched.name, batched.args, batched.kwargs, batched.retries) == ("echo", [1], {}, 0)
    assert (batched.worker, batched.queue) == (services["extended"].worker.name, "celery")
    assert (failed.name, failed.args, failed.kwargs) == ("add", ["bad"], {"ys": 1})


@pytest.mark.worker
def test_a_result_that_no_backend_can_carry_fails_alone(service: Service) -> None:
    results = list(service.app.tasks["unserializable"].delay_many(["a", "bad", "b"]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == ["a", "b"]
    with pytest.raises(Exception, match="not JSON serializable"):
        results[1].get(timeout=WAIT)
    wait_until(service.settled, "every message is settled", WAIT)
