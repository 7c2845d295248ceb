"""Whatever a message or a model's output looks like: its own caller gets an error, its neighbours get their results.

All of it goes to one worker, and the messages into one claim: they must bear each other anyway.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import os
import pickle
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import TaskRevokedError

from tests.support.callers import options, unsettled
from tests.support.envelopes import message
from tests.support.waiting import wait_until
from tests.support.workers import Worker

WAIT = 30.0
MB = 1024 * 1024

#: Nested too deeply for any decoder.
DEEP = b"[" * 100_000 + b"]" * 100_000


class Unpickled:
    """Leaves a directory behind when it is unpickled."""

    PATH = f"/tmp/batchery-unpickled-{os.getpid()}"

    def __reduce__(self) -> Any:
        return os.mkdir, (self.PATH,)


PICKLE = pickle.dumps(((Unpickled(),), {}, {}))

UNREADABLE = "InvalidTaskError: a message that cannot be read"
NO_ARGUMENTS = "InvalidTaskError: arguments are a list and an object"

#: Calls whose caller can be told what is wrong, and what it is told: the error's type and text.
REFUSED: dict[str, tuple[bytes, str]] = {
    "a compression that nobody knows": (message(compression="nonsense"), ".*The message is compressed as 'nonsense'"),
    "a compressed body that is not": (
        message(compression="application/x-gzip"),
        r".*The message cannot be decompressed \(application/x-gzip\)",
    ),
    "a body that is not base64": (message("!!! not base64 !!!"), UNREADABLE),
    "a body that is not JSON": (message(b"{{{"), "DecodeError: JSONDecodeError"),
    "a body that is not UTF-8": (message(b'[["\xff"], {}, {}]'), "DecodeError: UnicodeDecodeError"),
    "no body": (message(b""), UNREADABLE),
    "a body of null": (message(b"null"), UNREADABLE),
    "a body that is a number": (message(b"5"), UNREADABLE),
    "a body that is an object": (message(b'{"a": 1}'), UNREADABLE),
    "a body of too few parts": (message(b"[]"), UNREADABLE),
    "a body nested too deeply": (message(DEEP), "DecodeError: RecursionError"),
    "arguments nested too deeply": (message(b"[[" + DEEP + b"], {}, {}]"), "DecodeError: RecursionError"),
    "args that are a number": (message(b"[5, {}, {}]"), NO_ARGUMENTS),
    "args that are null": (message(b"[null, {}, {}]"), NO_ARGUMENTS),
    "args that are null, after its ETA": (message(b"[null, {}, {}]", eta="2020-01-01T00:00:00+00:00"), NO_ARGUMENTS),
    "args that are a text": (message(b'["a", {}, {}]'), NO_ARGUMENTS),
    "args that are an object": (message(b'[{"a": 1}, {}, {}]'), NO_ARGUMENTS),
    "kwargs that are a list": (message(b"[[1], [1], {}]"), NO_ARGUMENTS),
    "missing arguments": (message(b"[[], {}, {}]"), "TypeError: missing a required argument: 'values'"),
    "extra arguments": (message(b"[[1, 2], {}, {}]"), "TypeError: too many positional arguments"),
    "an unknown argument": (message(b'[[1], {"nonsense": 1}, {}]'), "TypeError: .*unexpected.*'nonsense'"),
    "an argument of the wrong type": (message(b"[[5], {}, {}]", task="texts"), "AttributeError: .*strip"),
    "an item that preprocess rejects": (message(b'[["bad"], {}, {}]', task="prepared"), "OddInput: bad in preprocess"),
    "an unknown task": (message(task="nobody_knows_me"), "NotRegistered: nobody_knows_me"),
    "a task that is a number": (message(task=5), "NotRegistered: 5"),
    "a task that is a list": (message(task=["echo"]), UNREADABLE),
    "a task that is null": (message(task=None), "NotRegistered: None"),
    "an expiry that is no time": (message(expires="tomorrow"), "InvalidTaskError: invalid expires value 'tomorrow'"),
    "an expiry that is an object": (message(expires={}), UNREADABLE),
    "an expiry before all time": (message(expires="0001-01-01T00:00:00+14:00"), "TaskRevokedError: expired"),
    "an ETA that is no time": (message(eta="soon"), "InvalidTaskError: invalid ETA value 'soon'"),
    "an ETA that is a number": (message(eta=5), "InvalidTaskError: invalid ETA value 5"),
    "a pickle": (message(PICKLE, content_type="application/x-python-serialize"), "ContentDisallowed: .*pickle"),
    "a pickle that says it is JSON": (message(PICKLE), "DecodeError: UnicodeDecodeError"),
    "YAML": (message(b"- 1", content_type="application/x-yaml"), "ContentDisallowed: .*yaml"),
    "a content type that is a number": (message(content_type=5), "ContentDisallowed: .*type 5"),
    "no properties": (message(without="properties"), UNREADABLE),
    "properties that are a list": (message(properties=[]), UNREADABLE),
}

#: Calls that are odd, but can be answered.
ANSWERED: dict[str, bytes] = {
    "headers that are numbers": message(lang=5, origin=5, argsrepr=5, shadow=None, parent_id=5),
    "stamps that are numbers": message(stamps=5, stamped_headers=5),
    "an encoding that nobody knows": message(content_encoding="nonsense"),
    "no delivery tag": message(without="delivery_tag"),
    "retries that are a text": message(retries="many"),
    "a time limit that is a text": message(timelimit="long"),
    "a group that is a number": message(group=5),
    "a header that nobody knows": message(nonsense={"a": [1]}),
    "a reply address that is an object": message(reply_to={}, correlation_id=[]),
    "a priority far out of range": message(priority=10**30),
    "a priority below all": message(priority=-5),
    "a priority that is a list": message(priority=[1]),
    "delivery info that is null": message(delivery_info=None),
    "callbacks that are numbers": message(b'[[1], {}, {"chain": null, "nonsense": 5}]'),
    "sent an hour ago, by its caller's clock": message(batchery_enqueued_at=0.0),
    "sent at no time at all": message(batchery_enqueued_at=-1e308),
    "sent in a time to come": message(batchery_enqueued_at=1e308),
    "sent at a text": message(batchery_enqueued_at="now"),
    "an expiry in a time to come": message(expires="9999-12-31T23:59:59-12:00"),
    "an id twice, the first": message(id="twice"),
    "an id twice, the second": message(id="twice"),
}

#: Messages that nobody could be told about.
DROPPED: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\x80\x04\xff not json",
    "null": b"null",
    "a list": b"[1, 2]",
    "an object of nothing": b"{}",
    "nothing but brackets": DEEP,
    "no headers": message(without="headers"),
    "headers that are null": message(headers=None),
    "headers that are a list": message(headers=[1]),
    "headers nested too deeply": message(nonsense="DEEP").replace(b'"DEEP"', DEEP),
    "no id": message(without="id"),
    "an id that is null": message(id=None),
    "an id that is a number": message(id=5),
    "an id that is a list": message(id=["odd"]),
    "an id that is no text": message(id="\ud800"),
    "an unknown task and no id": message(task="nobody_knows_me", without="id"),
}


ODD_QUEUES = [
    "{braces}",
    "{",
    "a:b",
    "with spaces ",
    "*",
    "[a-z]?",
    "Büro-ключ-鍵",
    'a "quoted" one',
    "\\back\\slash",
    "%s%d",
]


@pytest.fixture(scope="module")
def worker_args() -> Sequence[str]:
    return ["-Q", ",".join(["celery", *ODD_QUEUES])]


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    return options(held_max_bytes=64 * MB)


@pytest.fixture(scope="module")
def outcomes(module_worker: Worker, module_client: redis.Redis) -> dict[str, Any]:
    """What became of each call, and of its neighbour, by name: all were claimed together."""
    messages, ids = [], {}
    odd = {**{name: raw for name, (raw, _) in REFUSED.items()}, **ANSWERED, **DROPPED}
    for index, (name, raw) in enumerate(odd.items()):
        ids[name] = "twice" if name.startswith("an id twice") else f"odd-{index}"
        ids[f"neighbour of {name}"] = f"neighbour-{index}"
        body = json.dumps([[f"beside {name}"], {}, {}]).encode()
        neighbour = message(body, id=f"neighbour-{index}", task=("echo", "plain")[index % 2])
        messages += [raw.replace(b"{id}", ids[name].encode()), neighbour]
    module_client.lpush("celery", *messages)
    keys = {name: f"celery-task-meta-{task_id}" for name, task_id in ids.items() if name not in DROPPED}

    def stored() -> dict[str, Any]:
        values: list[Any] = list(module_client.mget(list(keys.values())))
        return {name: json.loads(value) for name, value in zip(keys, values, strict=True) if value}

    with contextlib.suppress(TimeoutError):  # each test says what it misses
        wait_until(lambda: len(stored()) == len(keys), "all are answered", WAIT)
    return stored()


def told(outcome: Mapping[str, Any]) -> str:
    """What the caller of a failed call is told."""
    assert outcome["status"] in ("FAILURE", "REVOKED"), outcome
    result = outcome["result"]
    return f"{result['exc_type']}: {' '.join(map(str, result['exc_message']))}"


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_cannot_be_served_fails_with_the_reason(
    name: str, outcomes: dict[str, Any], worker: Worker
) -> None:
    assert name in outcomes, f"its caller waits for ever:\n{worker.log[-3000:]}"
    assert re.match(REFUSED[name][1], told(outcomes[name])), told(outcomes[name])


@pytest.mark.parametrize("name", ANSWERED)
def test_a_call_that_is_odd_is_answered(name: str, outcomes: dict[str, Any], worker: Worker) -> None:
    assert name in outcomes, f"its caller waits for ever:\n{worker.log[-3000:]}"
    assert (outcomes[name]["status"], outcomes[name]["result"]) == ("SUCCESS", 1)


def test_the_neighbours_of_odd_messages_are_answered(outcomes: dict[str, Any], worker: Worker) -> None:
    answers = {name: outcomes.get(f"neighbour of {name}", {}).get("result") for name in [*REFUSED, *ANSWERED, *DROPPED]}
    assert answers == {name: f"beside {name}" for name in answers}, worker.log[-3000:]


def test_nothing_is_unpickled(outcomes: dict[str, Any]) -> None:
    assert not os.path.exists(Unpickled.PATH)
    pickle.loads(PICKLE)
    assert os.path.exists(Unpickled.PATH), "it would have shown"
    os.rmdir(Unpickled.PATH)


def test_no_odd_message_is_left_in_the_worker(outcomes: dict[str, Any], app: Celery, client: redis.Redis) -> None:
    wait_until(lambda: not unsettled(client), "all are acknowledged", WAIT)
    (reserved,) = app.control.inspect(timeout=3, limit=1).reserved().values()
    assert reserved == []


# -- What models return ------------------------------------------------------------------------------------------------

MISCOUNTS = {
    "fewer": "0 outputs for 1 items",
    "more": "2 outputs for 1 items",
    "none": "returned a NoneType",
    "a number": "returned a int",
    "a text": "returned a str",
    "an object": "returned a dict",
}


def test_a_wrong_number_of_outputs_fails_only_the_job_that_causes_it(
    app: Celery,
) -> None:
    results = list(app.tasks["miscounts"].delay_many([part for kind in MISCOUNTS for part in ("sound", kind)]))
    assert [result.get(timeout=WAIT) for result in results[::2]] == ["sound"] * len(MISCOUNTS)
    for result, reason in zip(results[1::2], MISCOUNTS.values(), strict=True):
        with pytest.raises(Exception, match=reason) as caught:
            result.get(timeout=WAIT)
        assert type(caught.value).__name__ == "OutputMismatch"


def test_nan_and_infinity_come_back_as_from_celery(app: Celery, client: redis.Redis) -> None:
    """Celery's JSON writes NaN and reads it; a caller that is strict about JSON fares with us as with Celery."""
    results = list(app.tasks["numbers"].delay_many(["1.5", "nan", "inf", "-inf"]))
    number, nan, *infinities = [result.get(timeout=WAIT) for result in results]
    assert (number, infinities) == (1.5, [math.inf, -math.inf])
    assert math.isnan(nan)
    assert b'"result": NaN' in (client.get(f"celery-task-meta-{results[1].id}") or b"")


def test_a_result_that_cannot_be_serialised_fails_alone(app: Celery) -> None:
    results = list(app.tasks["unserializable"].delay_many(["a", "bad", "b"]))
    assert [results[0].get(timeout=WAIT), results[2].get(timeout=WAIT)] == ["a", "b"]
    with pytest.raises(Exception, match="Unserializable is not JSON serializable"):
        results[1].get(timeout=WAIT)


# -- Queues, clocks ----------------------------------------------------------------------------------------------------


def test_queues_may_have_any_name(app: Celery) -> None:
    results = [
        app.send_task("echo", [name], queue=name, priority=3 * (index % 4)) for index, name in enumerate(ODD_QUEUES)
    ]
    assert [result.get(timeout=WAIT) for result in results] == ODD_QUEUES


@pytest.mark.parametrize("skew_s", [3600, -3600], ids=["ahead", "behind"])
def test_a_caller_whose_clock_is_an_hour_off_is_answered_like_any_other(app: Celery, skew_s: int) -> None:
    off = {"headers": {"batchery_enqueued_at": time.time() + skew_s}}
    results = [app.tasks["echo"].apply_async((index,), **(off if index % 2 else {})) for index in range(32)]
    assert [result.get(timeout=WAIT) for result in results] == list(range(32))


def test_an_expiry_counts_as_it_is_written_though_its_clock_is_an_hour_off(app: Celery) -> None:
    now = dt.datetime.now(dt.UTC)
    ahead = app.tasks["echo"].apply_async((1,), expires=now + dt.timedelta(hours=1))
    behind = app.tasks["echo"].apply_async((2,), expires=now - dt.timedelta(hours=1))
    assert ahead.get(timeout=WAIT) == 1
    with pytest.raises(TaskRevokedError):
        behind.get(timeout=WAIT)


# -- Large messages ----------------------------------------------------------------------------------------------------


def test_messages_of_50_mb_are_served_one_by_one_and_hold_up_no_other_task(app: Celery, client: redis.Redis) -> None:
    """Each is more than all that this worker is to hold of one task."""
    text = "x" * (50 * MB)
    large = [app.send_task("measure", [text]) for _ in range(2)]
    small = list(app.tasks["echo"].delay_many(range(100)))
    assert [result.get(timeout=WAIT) for result in small] == list(range(100))
    assert [result.get(timeout=WAIT) for result in large] == [50 * MB] * 2
