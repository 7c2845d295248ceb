"""The benchmarks' common form, and the command that runs them."""

from __future__ import annotations

import argparse
import json
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.report import Report, median, percentile, readable


def report_of(name: str = "toy", **figures: float) -> Report:
    return Report(name=name, figures=figures, runs=[{"round": 0, "tasks_per_s": 3.0}])


def test_the_json_has_the_agreed_form(tmp_path: Path) -> None:
    path = tmp_path / "new" / "toy.json"
    report_of(tasks_per_s=3.0).write(path)
    content = json.loads(path.read_text())
    assert list(content) == ["name", "machine", "versions", "figures", "runs"]
    assert content["figures"] == {"tasks_per_s": 3.0}
    assert content["machine"]["cores"] >= 1
    assert {"python", "celery", "batchery"} <= content["versions"].keys()


def test_the_table_shows_the_figures_and_where_they_were_taken(capsys: pytest.CaptureFixture[str]) -> None:
    report_of(tasks_per_s=12_345.6).print()
    printed = capsys.readouterr().out
    assert "tasks_per_s" in printed
    assert "12,346" in printed
    assert "cores" in printed


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (34.5678, "34.6"), (0.12345, "0.123"), (500, "500"), ("text", "text")]
)
def test_numbers_have_as_many_digits_as_they_can_bear(value: float | str, text: str) -> None:
    assert readable(value) == text


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [percentile(range(1, 101), p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([7.0], 50) == 7.0
    assert median([3, 1, 2]) == 2


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two benchmarks in place of the real ones, of which the first fails."""
    ran: list[str] = []

    def toy(name: str) -> Any:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("--size", type=int, default=1)

        def run(args: argparse.Namespace) -> Report:
            ran.append(f"{name} {args.size}")
            if name == "broken":
                raise RuntimeError("no server")
            return report_of(name, size=args.size)

        module = types.SimpleNamespace(add_arguments=add_arguments, run=run)
        module.__doc__ = f"Measures {name}.\n\nIn detail."
        return module

    monkeypatch.setattr(command, "NAMES", ("broken", "sound"))
    monkeypatch.setattr("benchmarks.__main__.import_module", lambda name: toy(name.partition(".")[2]))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return ran


def test_the_list_says_what_each_measures(toys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out == "broken     Measures broken.\nsound      Measures sound.\n"


def test_one_benchmark_runs_with_its_own_options(toys: list[str], tmp_path: Path) -> None:
    assert command.main(["sound", "--size", "3", "--json", str(tmp_path / "a.json")]) == 0
    assert toys == ["sound 3"]
    assert json.loads((tmp_path / "a.json").read_text())["figures"] == {"size": 3}


def test_all_goes_on_after_a_failure_and_says_so(
    toys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["all", "--json-dir", str(tmp_path)]) == 1
    assert toys == ["broken 1", "sound 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["sound.json"]
    assert "broken failed: no server" in capsys.readouterr().err


def test_every_benchmark_has_the_form_that_the_command_expects() -> None:
    parser = command._parser({name: import_module(f"benchmarks.{name}") for name in command.NAMES})
    for name in command.NAMES:
        assert parser.parse_args([name]).name == name
