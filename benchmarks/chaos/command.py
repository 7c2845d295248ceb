"""The command `python -m benchmarks chaos`: a trial of each system, and the report."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.report import Figure, Report

from .calls import NOT_FOR
from .faults import KINDS, OF_THE_ADDRESS
from .producer import APPS
from .settings import BATCH_TIME_LIMIT_S, LEASE_S, VISIBILITY
from .trial import Trial, run_trial

#: Calls that went wrong and are printed. The others are in a file.
MOST_SHOWN = 25


def run(args: argparse.Namespace) -> Report:
    systems = [*APPS] if args.system == "all" else [args.system]
    runs = [_measure(system, args) for system in systems]
    names = [name for name in runs[0] if name not in ("system", "seed", "minutes")]
    figures: dict[str, Figure] = {
        name if system == "batchery" else f"{system}_{name}".replace("-", "_"): found[name]
        for system, found in zip(systems, runs, strict=True)
        for name in names
    }
    return Report(
        name="chaos",
        figures=figures,
        runs=runs,
        columns=("figure", *systems),
        rows=[(name, *(found[name] for found in runs)) for name in names],
        notes=[*_notes(systems, args)],
    )


def _measure(system: str, args: argparse.Namespace) -> dict[str, Any]:
    trial = Trial(
        system=system,
        seed=args.seed,
        seconds=60 * args.minutes,
        rate=args.rate,
        workers=args.workers,
        poisons=not args.no_poisons,
        sentinel=args.sentinel,
        faults=_faults(args),
        gap_s=args.gap_s,
        settle_s=args.settle_s,
    )
    found, verdict = run_trial(trial)
    shown = [f"{system}: {key} {why[:250]}" for key, why in verdict.all().items()]
    print(*shown[:MOST_SHOWN], sep="\n")
    if shown:
        print(f"{system}: {len(shown)} calls in all; {trial.place / 'history.txt'} tells the history of each.")
    return {"system": system, "seed": args.seed, "minutes": args.minutes, **found}


def _faults(args: argparse.Namespace) -> tuple[str, ...]:
    wanted = [kind.strip() for kind in args.faults.split(",")] if args.faults else [*KINDS]
    if args.sentinel:
        wanted = [kind for kind in wanted if kind not in OF_THE_ADDRESS]
    return tuple(wanted)


def _notes(systems: list[str], args: argparse.Namespace) -> list[str]:
    notes = [
        f"Seed {args.seed}, {args.minutes:g} minutes, {args.workers} workers, {args.rate:g} calls a second. The server "
        "has appendonly yes and appendfsync always, and fails over with FAILOVER, so that it loses nothing by itself.",
        f"Batchery: lease {LEASE_S:g} s, batch time limit {BATCH_TIME_LIMIT_S:g} s. The others: late acknowledgements, "
        f"task_reject_on_worker_lost, visibility timeout {VISIBILITY['visibility_timeout']} s.",
    ]
    for system in systems:
        for why, kinds in NOT_FOR[system].items():
            notes.append(f"{system} does not get {', '.join(sorted(kinds))}: {why}.")
    return notes
