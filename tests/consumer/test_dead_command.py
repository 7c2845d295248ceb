"""`celery -A app dead`: what an operator sees and does about calls that were given up."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from batchery.producer.entry.dead import dead
from batchery.worker.broker import DeadLetter, Leases, LetterLimits, Queue
from celery import Celery
from click.testing import CliRunner, Result

from tests.support.apps import APP
from tests.support.callers import calling
from tests.support.leases import client_of
from tests.support.paths import ROOT
from tests.support.processes import finished

#: Calls the command with its arguments.
Run = Callable[..., Result]


def give_up(url: str, app: Celery, *values: Any, prefix: str = "", **options: Any) -> list[str]:
    """Send calls, and give them up as a worker does; return their ids."""
    ids = [app.tasks["echo"].apply_async((value,), **options).id for value in values]
    queue = Queue(options.get("queue", "celery"), prefix)
    leases = Leases(client_of(url), lease_s=30)
    for claim in leases.claim([queue], 100, 10**9):
        letter = DeadLetter(id=ids[claim.seq], task="echo", reason="Workers died.", worker="gpu@here", lost=4, deaths=3)
        assert leases.scripts.bury(claim, letter, LetterLimits(100, 10**6, 1000))
        leases.acknowledge(claim)
    leases.flush()
    return ids


@pytest.fixture(params=["", "{site}:"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(redis_url: str, prefix: str) -> Iterator[Celery]:
    with calling(redis_url, broker_transport_options={"global_keyprefix": prefix}) as app:
        yield app


@pytest.fixture
def run(app: Celery) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(dead, arguments, obj=SimpleNamespace(app=app))

    return run


def test_letters_are_listed_without_their_arguments_and_shown_with_them(
    redis_url: str, app: Celery, run: Run, prefix: str
) -> None:
    one, two = give_up(redis_url, app, "secret one", "secret two", prefix=prefix)
    [other] = give_up(redis_url, app, "secret", prefix=prefix, queue="{other} queue")
    listed = run("list")
    assert [line.split("  ")[1] for line in listed.stdout.splitlines()] == [one, two, other]
    assert "queue {other} queue  3 deaths of 4 lost leases  Workers died." in listed.stdout
    as_json = run("list", "--json", "-Q", "celery").stdout
    assert [letter["id"] for letter in json.loads(as_json)] == [one, two]
    assert "secret" not in listed.output + as_json
    shown = json.loads(run("show", two).stdout)
    assert (shown["id"], shown["reason"], shown["worker"]) == (two, "Workers died.", "gpu@here")
    assert shown["message"]["headers"]["task"] == "echo"
    assert json.loads(shown["body"])[0] == ["secret two"]


def test_requeued_calls_are_in_their_queues_again_and_dropped_ones_are_gone(
    redis_url: str, app: Celery, run: Run, redis_client: redis.Redis, prefix: str
) -> None:
    one, two, three = give_up(redis_url, app, 1, 2, 3, prefix=prefix)
    [urgent] = give_up(redis_url, app, 4, prefix=prefix, priority=6)
    assert run("requeue", one, urgent).stdout == "2 calls are in their queues again.\n"
    assert (redis_client.llen(f"{prefix}celery"), redis_client.llen(f"{prefix}celery\x06\x166")) == (1, 1)
    assert run("drop", two).stdout == "1 dead letters are dropped.\n"
    assert [letter["id"] for letter in json.loads(run("list", "--json").stdout)] == [three]
    assert run("requeue", "--all", "-Q", "celery").exit_code == 0
    assert redis_client.llen(f"{prefix}celery") == 2
    redis_client.flushdb()
    give_up(redis_url, app, 5, prefix=prefix)
    assert run("drop", "--all").exit_code == 0
    assert json.loads(run("list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["requeue"], "Name the ids of dead letters, or give --all."),
        (["drop", "an-id", "--all"], "Name the ids of dead letters, or give --all."),
        (["requeue", "nobody"], "There is no dead letter nobody."),
        (["show", "nobody"], "There is no dead letter nobody."),
    ],
)
def test_a_command_that_cannot_be_meant_says_why_and_does_nothing(
    redis_url: str, app: Celery, run: Run, prefix: str, arguments: list[str], said: str
) -> None:
    [letter] = give_up(redis_url, app, 1, prefix=prefix)
    result = run(*arguments)
    assert result.exit_code > 0
    assert said in result.output
    assert [told["id"] for told in json.loads(run("list", "--json").stdout)] == [letter]


def test_another_broker_is_refused() -> None:
    app = Celery(broker="memory://", set_as_current=False)
    result = CliRunner().invoke(dead, ["list"], obj=SimpleNamespace(app=app))
    assert result.exit_code > 0
    assert "but the broker is memory" in result.output


def test_celery_finds_the_command_by_its_entry_point(redis_url: str, tmp_path: Path) -> None:
    """The entry points of this tree, as an installed package has them."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["celery.commands"]
    info = tmp_path / "tree-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tree\nVersion: 1\n")
    lines = ["[celery.commands]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    with calling(redis_url) as app:
        [letter] = give_up(redis_url, app, 1)
    env = {"PYTHONPATH": str(tmp_path), "REDIS_URL": redis_url}
    listed = finished(["celery", "-A", APP, "dead", "list", "--json"], folder=ROOT, env=env)
    assert listed.returncode == 0, listed.stdout
    assert [told["id"] for told in json.loads(listed.stdout)] == [letter]
