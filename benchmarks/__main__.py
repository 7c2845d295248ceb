"""`python -m benchmarks NAME` measures one claim, prints a table, and can write the figures as JSON."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

#: The names of the benchmarks. Each is a module with `add_arguments(parser)` and `run(args) -> Report`.
NAMES = ("mixed", "padding", "load", "overhead", "publish", "latency", "scaling", "chord", "chaos")


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    benchmarks = {name: import_module(f"benchmarks.{name}") for name in NAMES}
    parser = _parser(benchmarks)
    args = parser.parse_args(argv)
    if args.list:
        for name, module in benchmarks.items():
            print(f"{name:10} {_summary(module)}")
        return 0
    if args.name is None:
        parser.error("Name a benchmark, or list them with --list.")
    if args.name == "all":
        return _run_all(parser, args.json_dir)
    _run(benchmarks[args.name], args, args.json)
    return 0


def _run_all(parser: argparse.ArgumentParser, json_dir: Path) -> int:
    """Run every benchmark with its defaults, and go on with the next one if one fails."""
    failed = []
    for name in NAMES:
        path = json_dir / f"{name}.json"
        try:
            _run(import_module(f"benchmarks.{name}"), parser.parse_args([name]), path)
        except Exception as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed.append(name)
    return 1 if failed else 0


def _run(module: Any, args: argparse.Namespace, json_path: Path | None) -> None:
    report = module.run(args)
    report.print()
    if json_path:
        report.write(json_path)


def _parser(benchmarks: dict[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the benchmarks and what they measure")
    commands = parser.add_subparsers(dest="name", metavar="NAME")
    for name, module in benchmarks.items():
        command = commands.add_parser(name, help=_summary(module), description=module.__doc__)
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
        module.add_arguments(command)
    everything = commands.add_parser("all", help="Runs every benchmark with its defaults.")
    everything.add_argument("--json-dir", type=Path, default=Path("build/benchmarks"), metavar="DIR")
    return parser


def _summary(module: Any) -> str:
    return str(module.__doc__).splitlines()[0]


def _exit_on_sigterm(_signal: int, _frame: object) -> None:
    raise SystemExit(143)  # as an exception, so that `with` blocks and `finally` stop servers and workers


if __name__ == "__main__":
    sys.exit(main())
