"""One chaos run of one system: servers, workers, producers, faults, and the wait for all answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from tests.support.paths import ROOT

from . import faults as what_goes_wrong
from .answers import LOOK_EVERY_S, Answers
from .calls import PRODUCERS, Send, plan
from .check import Record, Verdict, figures, judge, left_messages, story
from .faults import KINDS, Target, inflict, schedule
from .fleet import Fleet, fleet
from .history import Sent, Tail, by_key, runs, sent, waits
from .servers import Servers, servers
from .settings import RUNS

#: Seconds that a producer may need longer than planned, because a server that is away holds it up.
PRODUCER_GRACE_S = 120


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a run is made of."""

    system: str
    seed: int
    seconds: float
    rate: float = 30.0
    workers: int = 3
    poisons: bool = True
    #: Whether workers and producers ask Sentinel for the server, instead of using one address.
    sentinel: bool = False
    faults: tuple[str, ...] = (*KINDS,)
    gap_s: float = what_goes_wrong.MEAN_GAP_S
    #: Seconds after the last fault within which all has to be answered.
    settle_s: float = 120.0
    folder: Path = ROOT / "build" / "chaos"

    @property
    def place(self) -> Path:
        """The folder of this run's files."""
        return self.folder / f"{self.system}-{self.seed}"

    def plans(self) -> list[list[Send]]:
        return [
            plan(self.system, self.seed, number, self.seconds, self.rate, self.poisons) for number in range(PRODUCERS)
        ]


def run_trial(trial: Trial) -> tuple[dict[str, Any], Verdict]:
    """Run it, write the history of each call that went wrong to its folder, and return figures and verdict."""
    shutil.rmtree(trial.place, ignore_errors=True)
    trial.place.mkdir(parents=True)
    with servers(sentinel=trial.sentinel) as pair, fleet(trial.system, pair.url, trial.place, trial.workers) as workers:
        record, settled_s = _run(trial, pair, workers)
    verdict = judge(record)
    found = {**figures(record, verdict), "settled_s": round(settled_s, 1)}
    bad = [line for key, why in verdict.all().items() for line in story(record, key, why)]
    (trial.place / "history.txt").write_text("\n".join(bad) + "\n")
    (trial.place / "exits.json").write_text(json.dumps([asdict(each) for each in record.exits], indent=1))
    (trial.place / "figures.json").write_text(json.dumps(found, indent=1))
    return found, verdict


def _run(trial: Trial, pair: Servers, workers: Fleet) -> tuple[Record, float]:
    plans = trial.plans()
    faults = schedule(trial.seed, trial.seconds, trial.faults, trial.gap_s)
    calls: list[Sent] = []
    tails = [Tail(trial.place / f"calls-{number}.jsonl") for number in range(PRODUCERS)]

    def news() -> list[str]:
        new = [each for tail, sends in zip(tails, plans, strict=True) for each in sent(tail(), sends)]
        calls.extend(new)
        return [each.call.id for each in new]

    answers = Answers(pair.client, news)
    answers.start()
    with producers(trial, pair.url) as processes:
        started = time.time() + 0.5
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{started}\n")
            process.stdin.flush()
        inflict(faults, Target(pair, workers), started, trial.place / "faults.jsonl")
        deadline = started + trial.seconds + PRODUCER_GRACE_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.time()))
    ended = time.time()
    _settle(answers, calls, pair, ended + trial.settle_s)
    settled_s = time.time() - ended
    with pair.client() as client:
        messages, leases = left_messages(client)
    answers.close()
    all_runs = by_key(runs(trial.place))
    waited = [each for tail in tails for each in waits(tail.path)]
    return (
        Record(calls, answers.found, answers.changed, all_runs, workers.exits, faults, messages, leases, waited),
        settled_s,
    )


def _settle(answers: Answers, calls: list[Sent], pair: Servers, deadline: float) -> None:
    """Wait until every call that was sent for sure is answered and no lease is left, or until the deadline."""
    while time.time() < deadline:
        time.sleep(2 * LOOK_EVERY_S)
        if not answers.missing([each.call.id for each in calls if each.sure]):
            with suppress(redis.RedisError), pair.client() as client:
                if not left_messages(client, looks=1)[1]:
                    return


@contextmanager
def producers(trial: Trial, url: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the producers, and wait until each has its app and its plan."""
    processes = []
    for number in range(PRODUCERS):
        arguments = [trial.system, trial.seed, number, trial.seconds, trial.rate]
        more = ["poisons" if trial.poisons else "none", trial.place / f"calls-{number}.jsonl"]
        with (trial.place / f"producer-{number}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.chaos.producer", *map(str, (*arguments, *more))],
                    cwd=ROOT,
                    env={**os.environ, "REDIS_URL": url, RUNS: os.devnull},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            )
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("a producer did not start; its log is in " + str(trial.place))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
