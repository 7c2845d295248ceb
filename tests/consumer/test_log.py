"""No line of ours in a worker's log quotes what a caller has sent; Celery's own lines may."""

from __future__ import annotations

import json
from typing import Any

import redis
from celery import Celery, uuid

from tests.support.callers import unsettled
from tests.support.envelopes import message
from tests.support.loud import LOUD, Record, records
from tests.support.waiting import wait_until
from tests.support.workers import StartWorker

WAIT = 30.0

#: What every call of this test carries.
MARK = "caller-payload-7261"

BODY = json.dumps([[MARK], {}, {}]).encode()

#: Messages that cannot be served, whose parts have the mark.
BAD = [
    MARK.encode(),
    json.dumps({"body": MARK}).encode(),
    message(f"!!! {MARK} !!!"),
    message(f"{{{{ {MARK}".encode()),
    message(BODY, compression=f"x-{MARK}"),
    message(BODY, compression="application/x-gzip"),
    message(BODY, content_type="application/x-python-serialize"),
    message(BODY, expires=MARK),
    message(BODY, eta=MARK),
    message(BODY, expires={MARK: 1}),
    message(BODY, task=["echo"]),
    message(BODY, task="nobody_knows_me"),
    message(BODY, headers=[MARK]),
    message(BODY, properties=[MARK]),
    message(BODY, stamps=MARK, stamped_headers=[MARK]),
    message(json.dumps([MARK, {}, {}]).encode()),
    message(json.dumps([{MARK: 1}, [MARK], {}]).encode()),
    message(json.dumps([[MARK], {"nonsense": MARK}, {}]).encode()),
    message(json.dumps([MARK, {}, {}]).encode(), eta="2020-01-01T00:00:00+00:00"),
]


def of_ours(log: str) -> list[Record]:
    return [record for record in records(log) if record.logger.split(".")[0] in ("batchery", "py", "root")]


def test_no_line_of_ours_in_the_log_quotes_a_caller(
    caller: Celery, redis_client: redis.Redis, start_worker: StartWorker
) -> None:
    worker = start_worker(LOUD, args=["-l", "INFO", "-E"])
    for number, raw in enumerate(BAD):
        redis_client.lpush("celery", raw.replace(b"{id}", f"bad-{number}".encode()))
    group = uuid()
    redis_client.set(f"celery-taskset-meta-{group}.j", "no set")
    tasks: dict[str, list[Any]] = {
        "quotes": [MARK],
        "texts": [MARK, {}],
        "picky": [MARK],
        "add": [MARK, 1],
        "unserializable": ["bad"],
        "asks": [MARK, "predict", "exc"],
        "hopeless": [MARK],
        "leaver": ["leave", MARK],
    }
    results = [caller.tasks[name].apply_async(args) for name, args in tasks.items() if name not in ("texts", "leaver")]
    results += [caller.send_task(name, tasks[name]) for name in ("texts", "leaver")]
    results.append(
        caller.tasks["echo"].apply_async((MARK,), group_id=group, group_index=0, chord=caller.tasks["plain"].si(MARK))
    )
    assert caller.tasks["plain"].delay(MARK).get(timeout=WAIT) == MARK
    for result in results:
        result.get(timeout=WAIT, propagate=False)
    wait_until(lambda: not redis_client.llen("celery") and not unsettled(redis_client), "all messages are settled")
    worker.terminate()
    assert worker.wait() == 0
    ours = of_ours(worker.log)
    assert len(ours) > 10
    assert [record for record in ours if MARK in record.text] == []
    assert any(MARK in record.text for record in records(worker.log)), "Celery's own lines quote the calls"
