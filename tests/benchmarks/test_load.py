"""The device that `benchmarks load` simulates, in small."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.load import ARRIVALS, CAPACITY, GREEDY, POLICIES, SIZE


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ARRIVALS)
def test_every_job_is_answered_once_and_no_sooner_than_a_batch_takes(policy: str, kind: str) -> None:
    arrivals = list(ARRIVALS[kind](0.5 * CAPACITY, 500))
    answered, busy = POLICIES[policy](arrivals)
    assert sorted(arrived for arrived, _ in answered) == arrivals
    assert all(done - arrived >= 0.0055 - 1e-9 for arrived, done in answered)
    assert 0 < busy <= max(done for _, done in answered)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_batch_waits_for_nobody(policy: str) -> None:
    answered, _ = POLICIES[policy]([0.0] * SIZE)
    assert [done for _, done in answered] == pytest.approx([0.037] * SIZE)


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    for arrivals in ARRIVALS.values():
        assert max(arrivals(100, 20_000)) == pytest.approx(200, rel=0.1)


def test_no_window_answers_sooner_than_none(tmp_path: Path) -> None:
    args = argparse.Namespace(jobs=3000, plot=tmp_path / "load.png")
    report = load.run(args)
    worst = report.figures["worst_greedy_vs_window_p95"]
    assert isinstance(worst, float)
    assert worst <= 1.05
    assert {run["policy"] for run in report.runs} == set(POLICIES) >= {GREEDY}
    assert args.plot.stat().st_size > 0
