"""The access rules of docs/deploy.md: they allow all that is needed, also over TLS, and they forbid the rest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.gates import Gate
from tests.support.pages import blocks
from tests.support.processes import finished, running, wait_for_worker
from tests.support.servers import valkey
from tests.support.tls_proxy import tls
from tests.support.waiting import wait_until

TASKS = """
import os

from batchery import BatchTask, setup
from celery import Celery

app = Celery("access")
setup(app)

@app.task(base=BatchTask, name="echo")
def echo(values):
    return values

@app.task(base=BatchTask, name="fail", autoretry_for=(KeyError,), max_retries=1, default_retry_delay=0)
def fail(values):
    return [KeyError(value) for value in values]

@app.task(base=BatchTask, name="gated", max_batch_size=1)
def gated(paths):
    for path in paths:
        if os.path.exists(path):
            open(path).read()
    return paths

@app.task(name="plain")
def plain(value):
    return value
"""

CALLS = """
from celery import chain, chord, group
from tasks import app, echo, fail, plain

print(echo.delay(1).get(timeout=30))
print(echo.delay_many([2, 3]).get(timeout=30))
print(group(echo.s(n) for n in (4, 5)).apply_async().get(timeout=30))
print(chord([echo.s(n) for n in (6, 7)])(plain.s()).get(timeout=30))
parts = group(echo.s(n) for n in (6, 7)).apply_async()
parts.save()
print(app.GroupResult.restore(parts.id).get(timeout=30))
print(chord([group(echo.s(4), echo.s(5)), echo.s(6)])(plain.s()).get(timeout=30))
print(chain(echo.s(8), plain.s()).apply_async().get(timeout=30))
print(echo.apply_async((9,), countdown=0.1, priority=6).get(timeout=30))
print(repr(fail.delay(10).get(timeout=30, propagate=False)))
"""


#: Of a call or a chord of somebody else.
ID = "01234567-89ab-cdef-0123-456789abcdef"


class Site(NamedTuple):
    """A server with access rules: its URL without credentials, and the port of a proxy that speaks TLS for it."""

    url: str
    tls_port: int
    certificate: Path

    def client(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self.url, username=user, password=f"{user}-secret")

    def tls_url(self, user: str) -> str:
        options = f"ssl_cert_reqs=required&ssl_ca_certs={self.certificate}"
        return f"rediss://{user}:{user}-secret@localhost:{self.tls_port}/0?{options}"


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *subject], check=True, capture_output=True)
    # With an option, `valkey` starts a server of its own even where REDIS_URL is set.
    with valkey(save="") as url, tls(urlsplit(url).port or 0, certificate, key) as port:
        with redis.Redis.from_url(url) as client:
            for user, *rules in reversed(access_rules(root)):
                client.execute_command("ACL", "SETUSER", user, *rules)
        yield Site(url, port, certificate)


def access_rules(root: Path) -> list[list[str]]:
    """The lines of docs/deploy.md: user, rules."""
    [block] = [block for block in blocks((root / "docs" / "deploy.md").read_text()) if block.info == "aclfile"]
    return [line.split()[1:] for line in block.text.splitlines()]


def test_producers_and_workers_may_do_all_they_need_over_tls(site: Site, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "calls.py").write_text(CALLS)
    gate = Gate(tmp_path / "gate")

    def env(user: str) -> dict[str, str]:
        return {"CELERY_BROKER_URL": site.tls_url(user), "CELERY_RESULT_BACKEND": site.tls_url(user)}

    with ExitStack() as stack:
        client = stack.enter_context(site.client("operator"))
        stack.callback(gate.open)
        names = ["one@here", "two@here"]
        commands = [["celery", "-A", "tasks", "worker", "-E", "-n", name] for name in names]
        workers = [stack.enter_context(running(command, folder=tmp_path, env=env("worker"))) for command in commands]
        for name, worker in zip(names, workers, strict=True):
            wait_for_worker(site.tls_url("worker"), worker, "--node", name)
        called = finished(["python", "calls.py"], folder=tmp_path, env=env("producer"))
        assert called.stdout.splitlines() == [
            *("1", "[2, 3]", "[4, 5]", "[6, 7]", "[6, 7]", "[5, 4, 6]", "8", "9", "KeyError(10)")
        ], called.stdout

        # One worker stops and gives back its messages, and the other one takes them.
        send = f"from tasks import gated; gated.delay_many([{gate.path!r}] * 8, ignore_result=True)"
        assert finished(["python", "-c", send], folder=tmp_path, env=env("producer")).returncode == 0
        gate.wait_for_model()
        wait_until(lambda: client.hlen("batchery:unacked:celery") == 8, "all is claimed, by both")
        workers[0].process.terminate()
        its_part = f":{workers[0].process.pid}:"
        wait_until(
            lambda: str(client.hkeys("batchery:unacked:celery")).count(its_part) <= 1, "it has given back what waits"
        )
        gate.open()
        wait_until(lambda: client.hlen("batchery:unacked:celery") + client.llen("celery") == 0, "all is done")
        assert workers[0].process.wait(20) == 0
        assert {entry["object"] for entry in client.acl_log()} == set()


#: The keys of somebody's result, chord and chord part, and of a message that is claimed.
RESULT, CHORD = f"celery-task-meta-{ID}", f"celery-taskset-meta-{ID}"
CLAIMED = "batchery:unacked:celery"

REFUSED = {
    "producer": [
        *(
            ["DEL", key]
            for key in ("celery", "celery\x06\x163", RESULT, CHORD, f"{CHORD}.j", CLAIMED, "_kombu.binding.celery")
        ),
        *(["SET", key, "x"] for key in ("celery", RESULT, f"{CHORD}.j", CLAIMED, "_kombu.binding.celery", "session:1")),
        *([command, "celery"] for command in ("RPOP", "LPOP", "UNLINK", "PERSIST", "TYPE", "DUMP", "OBJECT|ENCODING")),
        ["LRANGE", "celery", "0", "-1"],
        ["LTRIM", "celery", "1", "0"],
        ["RENAME", "celery", "other"],
        ["EXPIRE", "celery", "1"],
        ["SETEX", RESULT, "1", "x"],
        ["LPUSH", RESULT, "x"],
        ["LPUSH", "another-queue", "message"],
        ["SADD", "celery", "x"],
        ["SREM", "_kombu.binding.celery", "x"],
        ["GET", "celery"],
        ["ZADD", f"{CHORD}.j", "1", "x"],
        ["HLEN", CLAIMED],
        ["PUBLISH", "/0.celery.pidbox", "shutdown"],
        ["PUBLISH", RESULT, "x"],
        ["SUBSCRIBE", "/0.celery.pidbox"],
        ["PSUBSCRIBE", "*"],
        ["EVAL", "while true do end", "0"],
        ["EVALSHA", "0" * 40, "0"],
        ["SCRIPT", "LOAD", "return 1"],
        ["FLUSHALL"],
        ["KEYS", "*"],
    ],
    "worker": [
        ["GET", "session:1"],
        ["LPUSH", "celery-private", "x"],
        ["EVAL", "return 1", "0"],
        ["CONFIG", "GET", "*"],
        ["ACL", "LIST"],
        ["SCRIPT", "FLUSH"],
        ["FLUSHALL"],
        ["KEYS", "*"],
    ],
    "default": [["PING"]],
}


@pytest.mark.parametrize("user", REFUSED)
def test_the_commands_that_a_user_does_not_need_are_refused(site: Site, user: str) -> None:
    allowed = []
    with site.client(user) as client:
        for command in REFUSED[user]:
            try:
                client.execute_command(*command[0].split("|"), *command[1:])
                allowed.append(command)
            except (redis.exceptions.NoPermissionError, redis.AuthenticationError):
                pass
    assert allowed == []
