"""docker-compose.yml and the Dockerfile fit each other and the tree."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

#: The part of the Compose specification that this file needs, each key with the types it allows.
SERVICE_KEYS: dict[str, tuple[type, ...]] = {
    "build": (str, dict),
    "command": (list,),
    "depends_on": (dict,),
    "environment": (dict,),
    "healthcheck": (dict,),
    "image": (str,),
    "init": (bool,),
    "ports": (list,),
    "restart": (str,),
    "stop_grace_period": (str,),
    "volumes": (list,),
}
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = compose["services"]
    return loaded


def test_it_uses_keys_and_types_of_the_compose_specification(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} <= {"name", "services", "volumes"}
    for name, service in compose["services"].items():
        for key, value in service.items():
            assert isinstance(value, SERVICE_KEYS.get(key, ())), f"{name}.{key}: {value!r}"
        assert all(isinstance(item, str) for item in service.get("command", [])), f"{name}: a command is strings"
        assert set(service.get("healthcheck", {})) <= HEALTHCHECK_KEYS


def test_every_service_that_is_waited_for_exists_and_tells_its_health(services: dict[str, dict[str, Any]]) -> None:
    waited_for = [
        (name, condition["condition"])
        for service in services.values()
        for name, condition in service.get("depends_on", {}).items()
    ]
    assert waited_for
    for name, condition in waited_for:
        assert condition == "service_healthy"
        assert services[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_valkey_keeps_the_queue_over_a_restart(compose: dict[str, Any]) -> None:
    valkey = compose["services"]["valkey"]
    command = shlex.join(valkey["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert {mount.split(":")[0] for mount in valkey["volumes"]} <= set(compose["volumes"])


def test_ports_are_open_to_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_workers_and_flower_run_an_application_that_exists(services: dict[str, dict[str, Any]], root: Path) -> None:
    commands = [service["command"] for service in services.values() if "build" in service]
    assert {command[3] for command in commands} == {"worker", "flower"}
    for command in commands:
        assert command[:2] == ["celery", "-A"]
        module = root / command[2].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__init__.py").exists()


def test_the_dockerfile_copies_what_is_there_and_every_packaged_folder(root: Path) -> None:
    copied: set[str] = set()
    for line in (root / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            copied |= {source.removesuffix("/") for source in line.split()[1:-1]}
    assert copied >= {"batchery", "configs", "batchers", "producer", "worker", "examples", "pyproject.toml"}
    assert [source for source in sorted(copied) if not (root / source).exists()] == []
