"""Every test has one kind, by which `make test-fast` and the reader choose."""

from __future__ import annotations

import pytest

from tests.support.kinds import check_command, kinds_of


@pytest.mark.parametrize(
    ("folder", "fixtures", "markers", "kinds"),
    [
        ("engine", ["front", "start"], [], {"unit"}),
        ("broker", ["server", "leases"], [], {"redis"}),
        ("consumer", ["server", "module_worker"], ["leaves_leases"], {"worker"}),
        ("repo", ["server", "start_worker"], [], {"repo"}),
        ("consumer", ["server"], ["worker"], {"worker"}),
        ("broker", ["server"], ["unit", "worker"], {"unit", "worker"}),
    ],
)
def test_the_kind_comes_from_markers_then_the_folder_then_the_fixtures(
    folder: str, fixtures: list[str], markers: list[str], kinds: set[str]
) -> None:
    assert kinds_of(folder, fixtures, markers) == kinds


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("['python', '-m', 'celery', '-A', 'app', 'worker']", "redis"),
        ("['/usr/bin/valkey-server', '--port', '7000']", "unit"),
    ],
)
def test_a_test_that_starts_more_than_its_kind_says_fails(command: str, kind: str) -> None:
    with pytest.raises(AssertionError, match=f"Mark this {kind} test"):
        check_command(command, kind)
    check_command(command, "worker")
