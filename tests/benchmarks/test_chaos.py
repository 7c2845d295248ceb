"""The chaos run: its schedule, its checker, and a short one of them on a real server and real workers."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.chaos import work
from benchmarks.chaos.answers import Answer
from benchmarks.chaos.calls import POISONS, PRODUCERS, Call, kinds_of, plan
from benchmarks.chaos.check import Record, Verdict, figures, judge, left_messages, story
from benchmarks.chaos.faults import KINDS, Fault, schedule
from benchmarks.chaos.fleet import Exit
from benchmarks.chaos.history import Run, Sent, Tail, by_key, runs
from benchmarks.chaos.proxy import proxy
from benchmarks.chaos.trial import Trial, run_trial

SURE: dict[str, Any] = {"kind": "single", "before": 100.0, "after": 100.1, "sure": True}
FAILS = {"errors": ("ModelError",)}


def call(**more: Any) -> Call:
    spec = {"key": "a1", "x": 2, "do": "ok", "ms": 1, "size": 1}
    return Call(**{"id": "id-a1", "key": "a1", "task": "model", "spec": spec, "value": ["a1", 7], **more})


def record(*calls: Call, **more: Any) -> Record:
    known: dict[str, Any] = {
        "answers": {}, "changed": {}, "runs": {}, "exits": [], "faults": [], "messages": "", "leases": 0,
    }  # fmt: skip
    return Record(sent=[Sent(call=each, **SURE) for each in calls], **{**known, **more})


def answered(status: str, result: Any, t: float = 101.0) -> dict[str, Answer]:
    return {"id-a1": Answer(t, status, result)}


def error(name: str, *message: str) -> dict[str, Any]:
    return {"exc_type": name, "exc_message": list(message), "exc_module": "m"}


def run(worker: str = "slot0.1", start: float = 100.5, end: float = 100.6, **more: Any) -> Run:
    return Run(**{"worker": worker, "stage": "predict", "keys": ["a1"], "start": start, "end": end, **more})


# -- The schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["batchery", "stock", "celery-batches"])
def test_a_seed_makes_the_same_calls_and_faults_again(system: str) -> None:
    plans = [plan(system, 5, 0, 30, 20) for _ in range(2)]
    assert plans[0] == plans[1] != plan(system, 6, 0, 30, 20)
    assert {send.kind for send in plan(system, 5, 0, 600, 30)} <= set(kinds_of(system))
    assert schedule(5, 60) == schedule(5, 60) != schedule(6, 60)


def test_all_kinds_of_calls_and_faults_come_and_every_call_has_a_name_of_its_own() -> None:
    sends = [send for number in range(PRODUCERS) for send in plan("batchery", 1, number, 600, 30)]
    calls = [call for send in sends for call in send.calls]
    assert {send.kind for send in sends} == set(kinds_of("batchery")) > set(POISONS)
    assert len({call.key for call in calls}) == len({call.id for call in calls}) == len(calls)
    assert 0.8 < len(calls) / (30 * 600) < 1.2
    assert {fault.kind for fault in schedule(1, 600)} == set(KINDS)


def test_the_answers_of_a_chain_follow_from_one_another() -> None:
    chains = [send.calls for send in plan("batchery", 1, 0, 300, 30) if send.kind == "chain"]
    for first, *others in chains:
        value = work.answer(first.spec)
        for step in others:
            value = work.follow(value, step.spec)
            assert step.value == value


# -- The checker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "known", "expected"),
    [
        ({}, {"answers": answered("SUCCESS", ["a1", 7])}, {}),
        ({}, {}, {"lost": "no message"}),
        ({}, {"messages": "... id-a1 ..."}, {"stuck": "its message is there"}),
        ({"after": ("id-a0",)}, {}, {"stuck": "1 calls before it have none"}),
        ({}, {"answers": answered("SUCCESS", ["b9", 7])}, {"wrong": "b9"}),
        ({}, {"answers": answered("FAILURE", error("KeyError", "x"))}, {"wrong": "KeyError"}),
        ({}, {"answers": answered("REVOKED", error("TaskRevokedError"))}, {"wrong": "revoked"}),
        ({"revocable": True}, {"answers": answered("REVOKED", error("TaskRevokedError"))}, {}),
        (FAILS, {"answers": answered("FAILURE", error("ModelError", "a1"))}, {}),
        (FAILS, {"answers": answered("FAILURE", error("ModelError", "b9"))}, {"wrong": "error of another call"}),
        (FAILS, {"answers": answered("SUCCESS", ["a1", 7])}, {"wrong": "had to fail"}),
        (
            {"countdown_s": 2.0},
            {"answers": answered("SUCCESS", ["a1", 7]), "runs": by_key([run(start=101.0)])},
            {"wrong": "1.00 s before its ETA"},
        ),
        (
            {},
            {
                "answers": answered("SUCCESS", ["a1", 7]),
                "changed": {"id-a1": (Answer(1, "SUCCESS", ["a1", 7]), Answer(2, "FAILURE", {}))},
            },
            {"wrong": "became FAILURE"},
        ),
        (
            {},
            {
                "answers": answered("FAILURE", error("WorkerLostError")),
                "runs": by_key([run(f"slot0.{number}", end=0.0) for number in range(3)]),
                "exits": [Exit(101, f"slot0.{number}", -9, "kill") for number in range(3)],
            },
            {"coincidences": "WorkerLostError"},
        ),
        (
            {"after": ("id-a0",)},
            {
                "answers": answered("SUCCESS", ["a1", 7]),
                "runs": by_key([run(stage="plain", tag=tag) for tag in ("one", "two")]),
            },
            {"callbacks_twice": "2 messages"},
        ),
    ],
)  # fmt: skip
def test_the_checker_finds_what_has_gone_wrong(made: Any, known: Any, expected: dict[str, str]) -> None:
    verdict = judge(record(call(**made), **known))
    found = {name: calls["a1"] for name, calls in vars(verdict).items() if calls}
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name]


def test_a_call_that_the_server_may_have_refused_need_not_be_answered() -> None:
    seen = record(call())
    seen.sent = [replace(seen.sent[0], sure=False)]
    assert judge(seen) == Verdict()
    seen.answers = answered("SUCCESS", ["b9", 7])
    assert judge(seen).wrong, "but an answer has to be its own"


def test_the_figures_count_executions_and_the_time_until_orphans_are_answered() -> None:
    innocent, poison = call(), call(id="id-p", key="p", poison=True, errors=("WorkerLostError",))
    seen = record(
        innocent,
        poison,
        answers={**answered("SUCCESS", ["a1", 7], 105.0), "id-p": Answer(110.0, "FAILURE", error("WorkerLostError"))},
        runs=by_key([run("slot0.1", 100.5, 0.0, keys=["a1", "p"]), run("slot1.1", 104.0, 104.1)]),
        exits=[Exit(101.0, "slot0.1", -9, "")],
        faults=[Fault(0, "cut", 0, 1, False, start=100.0, end=104.5)],
    )
    found = figures(seen, judge(seen))
    assert (found["lost"], found["wrong"], found["stuck"]) == (0, 0, 0)
    assert (found["executed_twice"], found["innocents_rerun"], found["poison_deaths_max"]) == (0, 1, 1)
    assert (found["orphans"], found["orphans_max_s"], found["deaths"]) == (1, 4.0, 1)
    assert (found["recovery_p50_s"], found["recovery_max_s"]) == (0.5, 4.0)


def test_the_story_of_a_call_has_its_runs_and_what_went_wrong_meanwhile() -> None:
    seen = record(
        call(),
        runs=by_key([run()]),
        exits=[Exit(103.0, "slot0.1", -9, "kill")],
        faults=[Fault(0, "cut", 0, 1, False, start=101.0, end=102.0)],
    )
    text = "\n".join(story(seen, "a1", "lost: no message"))
    for words in ("a1 lost: no message", "sent (single", "slot0.1 starts predict", "FAULT cut", "left with -9 kill"):
        assert words in text


def test_messages_are_found_wherever_they_are(redis_client: redis.Redis) -> None:
    message = json.dumps({"body": "eyJpZCI6ICJjYWxsYmFjay1pZCJ9", "headers": {"id": "first-id"}})
    redis_client.lpush("celery", message)
    redis_client.hset("batchery:unacked:celery", "tag", json.dumps([message.replace("first", "second"), "", "celery"]))
    try:
        text, leases = left_messages(redis_client)
    finally:
        redis_client.flushdb()
    assert leases == 1
    for task_id in ("first-id", "second-id", "callback-id"):
        assert task_id in text


def test_an_execution_is_written_down_even_if_it_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_RUNS", str(tmp_path / "runs.jsonl"))
    spec = call().spec
    with work.noted("predict", [spec]):
        pass
    with pytest.raises(MemoryError), work.noted("predict", [spec]):
        raise MemoryError
    hangs = work.noted("predict", [spec])
    hangs.__enter__()
    ended, failed, cut = runs(tmp_path)
    assert (ended.cut, failed.error, cut.cut) == (False, "MemoryError", True)
    hangs.__exit__(None, None, None)


def test_a_tail_reads_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert list(tail()) == []
    path.write_text('{"n": 1}\n{"n":')
    assert list(tail()) == [{"n": 1}]
    path.write_text('{"n": 1}\n{"n": 2}\n')
    assert list(tail()) == [{"n": 2}]


# -- The proxy ---------------------------------------------------------------------------------------------------------


def test_the_proxy_cuts_stalls_swallows_and_refuses(redis_url: str) -> None:
    with proxy(urlsplit(redis_url).port or 6379) as way:
        url = f"redis://127.0.0.1:{way.port}/0"

        def ask(timeout: float = 20.0) -> Any:
            with redis.Redis.from_url(url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0)) as client:
                return client.ping()

        with redis.Redis.from_url(url) as kept:
            connection = kept.client_id()
            way.do("cut")
            with suppress(redis.ConnectionError):  # unless the client has noticed it before
                kept.client_id()
            assert kept.client_id() != connection
        for fault in ("stall", "swallow"):
            way.do(fault, True)
            with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
                ask(timeout=0.5)
            way.do(fault, False)
            assert ask()
        way.do("refuse", True)
        with pytest.raises(redis.ConnectionError):
            ask()
        way.do("refuse", False)
        assert ask()


# -- The whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.worker
@pytest.mark.timeout(300)
def test_a_short_chaos_run_loses_nothing_and_gives_nobody_a_wrong_answer(tmp_path: Path) -> None:
    faults = ("SIGTERM", "SIGKILL", "CLIENT KILL", "cut", "SCRIPT FLUSH", "crash", "busy")
    trial = Trial(
        system="batchery", seed=7, seconds=20, rate=15, workers=2, faults=faults, poisons=False, folder=tmp_path
    )
    found, verdict = run_trial(trial)
    assert verdict.all() == {}, (trial.place / "history.txt").read_text()
    assert found["sent"] > 200
    assert (found["lost"], found["wrong"], found["stuck"], found["leases_left"]) == (0, 0, 0, 0), found
