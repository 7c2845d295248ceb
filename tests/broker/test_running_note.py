"""What a worker notes at the server: the batch that it runs, so that others know it if the worker dies."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import pytest
import redis
from batchery.worker import tuning
from batchery.worker.broker import RunningNote

from tests.support.leases import client_of
from tests.support.waiting import wait_until

KEY = "site:batchery:running:w"


@pytest.fixture
def note(redis_url: str) -> Iterator[RunningNote]:
    note = RunningNote(client_of(redis_url), "w", key_prefix="site:", expires_s=60)
    yield note
    note.close()


def wait_for(client: redis.Redis, value: bytes) -> None:
    wait_until(lambda: client.get(KEY) == value, f"the note says {value!r}", 5)


def test_a_note_names_the_batch_that_ran_last_and_expires(note: RunningNote, redis_client: redis.Redis) -> None:
    note.write(["w:1.0", "w:2.0"])
    note.write(["w:3.0"])
    wait_for(redis_client, b"w:3.0")
    assert 0 < int(str(redis_client.ttl(KEY))) <= 61


def test_each_of_many_notes_is_one_command_and_their_answers_do_not_pile_up(
    note: RunningNote, redis_client: redis.Redis
) -> None:
    before = redis_client.info("commandstats").get("cmdstat_set", {}).get("calls", 0)
    count = 5 * tuning.NOTE_ANSWERS
    for number in range(count):
        note.write([f"w:{number}"])
        assert note._unread <= tuning.NOTE_ANSWERS
    wait_for(redis_client, b"w:%d" % (count - 1))
    assert redis_client.info("commandstats")["cmdstat_set"]["calls"] - before == count


def test_a_connection_that_the_server_closed_while_it_was_idle_is_made_anew(
    note: RunningNote, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "NOTE_IDLE_S", 0.0)
    redis_client.client_kill_filter(_type="normal", skipme=True)
    note.write(["w:1.0"])
    wait_for(redis_client, b"w:1.0")
    assert not caplog.records


def test_unread_answers_are_no_lost_connection(
    note: RunningNote, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CLOSED_CHECK_S", 0.0)
    sock = note._connection._sock
    for number in range(10):
        note.write([f"w:{number}"])
        wait_for(redis_client, b"w:%d" % number)
    assert note._connection._sock is sock


def test_a_connection_that_was_cut_under_load_costs_a_note_at_most(
    note: RunningNote, redis_client: redis.Redis
) -> None:
    note.write(["w:0.0"])
    redis_client.client_kill_filter(_type="normal", skipme=True)

    def written() -> bool:
        note.write(["w:1.0"])
        return redis_client.get(KEY) == b"w:1.0"

    wait_until(written, "it is written again", 5)


def test_a_server_that_is_away_is_told_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    note = RunningNote(client_of(f"redis://127.0.0.1:{port}"), "w", expires_s=60)
    note.write(["w:1.0"])
    assert "If the running batch ends this worker, nobody may know" in caplog.text


def test_a_server_that_never_answers_holds_a_batch_up_for_a_short_time_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "NOTE_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        note = RunningNote(client_of(f"redis://127.0.0.1:{silent.getsockname()[1]}"), "w", expires_s=60)
        for _ in range(tuning.NOTE_ANSWERS + 1):
            note.write(["w:1.0"])
        note.close()
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_note_that_the_server_refuses_is_told_and_raises_nothing(
    note: RunningNote, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "NOTE_IDLE_S", 0.0)
    note._expires_s = 0
    note.write(["w:1.0"])
    note._expires_s = 60
    note.write(["w:2.0"])
    wait_for(redis_client, b"w:2.0")
    assert "invalid expire" in caplog.text


def test_a_note_names_the_work_of_all_threads_until_it_is_over(note: RunningNote, redis_client: redis.Redis) -> None:
    note.write(["w:1.0", "w:2.0"])
    noted, over = threading.Event(), threading.Event()

    def work() -> None:
        note.write(["w:3.0"])
        noted.set()
        over.wait(20)
        note.write([])

    thread = threading.Thread(target=work)
    thread.start()
    assert noted.wait(20)
    wait_for(redis_client, b"w:1.0 w:2.0 w:3.0")
    over.set()
    thread.join()
    wait_for(redis_client, b"w:1.0 w:2.0 ")
