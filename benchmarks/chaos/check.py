"""Holds what happened in a chaos run against what had to happen."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis

from .answers import Answer
from .calls import Call
from .faults import SERVER, Fault
from .fleet import Exit
from .history import Run, Sent, Wait

#: Deaths of workers after which a job does not run again, as in the worker's tuning.
MAX_DEATHS = 3
#: Seconds by which clocks and log lines may differ.
SLACK_S = 0.1
#: Seconds after which an answer that is stored has to be at its caller.
CALLER_SLACK_S = 15.0


@dataclass
class Record:
    """All that is known at the end of a run."""

    sent: list[Sent]
    answers: dict[str, Answer]
    changed: dict[str, tuple[Answer, Answer]]
    runs: dict[str, list[Run]]
    exits: list[Exit]
    faults: list[Fault]
    #: The text of every message that is in a queue or under a lease.
    messages: str
    leases: int
    waits: list[Wait] = field(default_factory=list)


@dataclass
class Verdict:
    """The calls that have not become what they had to, each with the reason."""

    lost: dict[str, str] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    #: Innocent calls that failed because the driver killed every worker that ran them.
    coincidences: dict[str, str] = field(default_factory=dict)
    callbacks_twice: dict[str, str] = field(default_factory=dict)

    def all(self) -> dict[str, str]:
        return {key: f"{name}: {why}" for name, calls in vars(self).items() for key, why in calls.items()}


def judge(record: Record) -> Verdict:
    verdict = Verdict()
    for sent in record.sent:
        call = sent.call
        answer = record.answers.get(call.id)
        runs = record.runs.get(call.key, [])
        if answer is None:
            if sent.sure:
                _unanswered(call, record, verdict)
            continue
        if why := _wrong(call, answer, sent, runs) or _changed(call, record):
            unlucky = answer.error == "WorkerLostError" and _deaths(runs, record) >= MAX_DEATHS
            (verdict.coincidences if unlucky and not call.poison else verdict.wrong)[call.key] = why
        tags = {run.tag for run in runs if run.stage == "plain"}
        if len(tags) > 1 and call.after and sent.sure:
            verdict.callbacks_twice[call.key] = f"executed for {len(tags)} messages"
    return verdict


def _unanswered(call: Call, record: Record, verdict: Verdict) -> None:
    open_ = [each for each in call.after if each not in record.answers]
    if call.id in record.messages:
        verdict.stuck[call.key] = "no answer, although its message is there"
    elif open_:
        verdict.stuck[call.key] = f"no answer, because {len(open_)} calls before it have none"
    elif any(record.answers[each].status != "SUCCESS" for each in call.after) and not call.errors:
        verdict.stuck[call.key] = "no answer, because a call before it has failed"
    else:
        verdict.lost[call.key] = "no answer, and no message"


def _wrong(call: Call, answer: Answer, sent: Sent, runs: list[Run]) -> str:
    if answer.status == "REVOKED":
        return "" if call.revocable else "it is revoked, but nobody asked for that"
    if answer.status == "FAILURE":
        if answer.error not in call.errors:
            return f"it failed with {answer.result}"
        if answer.error == "ModelError" and call.key not in str(answer.result.get("exc_message")):
            return f"it failed with the error of another call: {answer.result}"
        return ""
    if why := _wrong_value(call, answer):
        return why
    starts = [run.start for run in runs if run.stage in ("predict", "plain")]
    if call.countdown_s and starts and min(starts) < sent.before + call.countdown_s - SLACK_S:
        return f"it ran {sent.before + call.countdown_s - min(starts):.2f} s before its ETA"
    return ""


def _wrong_value(call: Call, answer: Answer) -> str:
    if call.errors:
        return f"it had to fail with {call.errors}, but the answer is {answer.result}"
    if answer.result != call.value:
        return f"the answer is {answer.result} and not {call.value}"
    return ""


def _changed(call: Call, record: Record) -> str:
    if call.id not in record.changed or call.repeats:
        return ""
    first, last = record.changed[call.id]
    # The workers that live at that time keep a revocation in their memory. A later one does not know it, as in Celery.
    if first.status == "REVOKED" and call.revocable and not _wrong_value(call, last):
        return ""
    # Celery stores a revocation when it arrives, also over the result of a call that ended at the same moment.
    if last.status == "REVOKED" and call.revocable and not _wrong_value(call, first):
        return ""
    # A worker that dies between the failure of a harmful input and its acknowledgement leaves it to another one.
    if call.poison and first.status == last.status == "FAILURE":
        return ""
    return f"the answer was {first.status} {first.result}, and became {last.status} {last.result}"


def _deaths(runs: Iterable[Run], record: Record) -> int:
    """How often the driver killed, stopped or froze the worker that ran a call."""
    asked = {each.worker for each in record.exits if each.cause}
    return sum(run.cut and run.worker in asked for run in runs)


def figures(record: Record, verdict: Verdict) -> dict[str, float | int | str]:
    sure = [sent for sent in record.sent if sent.sure]
    innocent = [sent for sent in record.sent if not sent.call.poison and not sent.call.repeats]
    executed = {sent.call.key: _executions(record.runs.get(sent.call.key, [])) for sent in innocent}
    orphans, others = _orphans(record, innocent), _after_faults(record, innocent)
    waits = sorted([*orphans, *others])
    poison = {sent.call.key for sent in record.sent if sent.call.poison}
    return {
        "sent": len(sure),
        "unsure": len(record.sent) - len(sure),
        "answered": sum(sent.call.id in record.answers for sent in record.sent),
        "lost": len(verdict.lost),
        "wrong": len(verdict.wrong),
        "stuck": len(verdict.stuck),
        "stuck_poisons": len(poison & verdict.stuck.keys()),
        "leases_left": record.leases,
        "coincidences": len(verdict.coincidences),
        "callers": len(record.waits),
        "callers_stuck": len(_stuck_callers(record)),
        "callers_failed": sum(bool(wait.error) and not wait.timeout for wait in record.waits),
        "callbacks_twice": len(verdict.callbacks_twice),
        "executed_twice": sum(ends > 1 for _, ends in executed.values()),
        "innocents_rerun": sum(starts > 1 for starts, _ in executed.values()),
        "recovery_p50_s": _rank(waits, 0.5),
        "recovery_max_s": _rank(waits, 1.0),
        "orphans": len(orphans),
        "orphans_p50_s": _rank(sorted(orphans), 0.5),
        "orphans_max_s": _rank(sorted(orphans), 1.0),
        "faults": len(record.faults),
        "deaths": sum(not each.cause for each in record.exits),
        "kills": sum(each.cause == "kill" for each in record.exits),
        "poisons": len(poison),
        "poison_deaths_max": max((sum(run.cut for run in record.runs.get(key, ())) for key in poison), default=0),
    }


def _stuck_callers(record: Record) -> list[Wait]:
    """Return the callers that gave up although their answer had been there for a while."""
    answers = record.answers
    return [
        wait
        for wait in record.waits
        if wait.timeout and wait.id in answers and answers[wait.id].t < wait.done - CALLER_SLACK_S
    ]


def _executions(runs: list[Run]) -> tuple[int, int]:
    """How often a call began to run, and how often it ran to the end, without those of a batch that failed."""
    counted = [run for run in runs if run.stage in ("predict", "plain") and not run.error]
    return len(counted), sum(not run.cut for run in counted)


def _orphans(record: Record, innocent: list[Sent]) -> list[float]:
    """Seconds from the death of a worker to the answer of each call that it was running."""
    died = {each.worker: each.t for each in record.exits if each.cause != "term"}
    found = []
    for sent in innocent:
        answer = record.answers.get(sent.call.id)
        deaths = [died[run.worker] for run in record.runs.get(sent.call.key, ()) if run.cut and run.worker in died]
        if answer and deaths and answer.t > max(deaths):
            found.append(answer.t - max(deaths))
    return found


def _after_faults(record: Record, innocent: list[Sent]) -> list[float]:
    """Seconds from the end of a server's or network's fault to the answer of each call that was open then."""
    ends = sorted(fault.end for fault in record.faults if fault.kind in SERVER)
    found = []
    for sent in innocent:
        answer = record.answers.get(sent.call.id)
        if answer and not sent.call.after and not sent.call.countdown_s:
            open_at = [end for end in ends if sent.after < end < answer.t]
            found += [answer.t - open_at[-1]] if open_at else []
    return found


def _rank(ordered: list[float], share: float) -> float:
    return round(ordered[max(0, int(share * len(ordered)) - 1)], 2) if ordered else 0.0


#: Looks at all keys, because a message may move from one that is not yet read to one that is.
LOOKS = 3


def left_messages(client: redis.Redis, looks: int = LOOKS) -> tuple[str, int]:
    """Return the text of all messages at the server, with their bodies decoded, and the number of leases."""
    found = [_look(client) for _ in range(looks)]
    texts = dict.fromkeys(text for texts, _ in found for text in texts)
    return "\n".join(_decoded(text) for text in texts), found[-1][1]


def _look(client: redis.Redis) -> tuple[list[bytes], int]:
    texts: list[bytes] = []
    leases = 0
    for key in client.scan_iter(count=1000):
        kind: Any = client.type(key)
        if kind == b"list":
            texts += _bytes(client.lrange(key, 0, -1))
        elif kind == b"hash":
            values = list(_bytes(client.hvals(key)))
            leases += len(values) if b"unacked" in key else 0
            texts += values
    return texts, leases


def _bytes(values: Any) -> list[bytes]:
    return list(values)


def _decoded(text: bytes) -> str:
    shown = text.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, IndexError):
        message = json.loads(shown)
        message = message[0] if isinstance(message, list) else message
        message = json.loads(message) if isinstance(message, str) else message
        return shown + base64.b64decode(message["body"]).decode(errors="replace")
    return shown


def story(record: Record, key: str, why: str) -> Iterable[str]:
    """Tell the history of one call."""
    sent = next(each for each in record.sent if each.call.key == key)
    answer = record.answers.get(sent.call.id)
    end = max([answer.t if answer else sent.after + 60, *(run.end for run in record.runs.get(key, ()))])
    happened = [(sent.before, f"sent ({sent.kind}, {sent.call.task}, id {sent.call.id}, sure: {sent.sure})")]
    for run in record.runs.get(key, ()):
        happened.append((run.start, f"{run.worker} starts {run.stage} of {len(run.keys)}: {' '.join(run.keys)}"))
        if not run.cut:
            happened.append((run.end, f"{run.worker} ends {run.stage} {run.error}"))
    for fault in record.faults:
        if fault.end > sent.before - 2 and fault.start < end:
            shown = f"FAULT {fault.kind} (slot {fault.slot}, hard {fault.hard})"
            happened += [(fault.start, f"{shown} begins"), (fault.end, f"{shown} ends {fault.error}")]
    for each in record.exits:
        if sent.before < each.t < end:
            happened.append((each.t, f"{each.worker} left with {each.code} {each.cause}"))
    if answer:
        happened.append((answer.t, f"answered {answer.status} {str(answer.result)[:300]}"))
    yield f"{key} {why}"
    yield from (f"  {t:.2f} {what}" for t, what in sorted(happened))
