"""docker-compose.yml, the Dockerfile and docs/deploy.md fit each other and the tree, and their commands run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from batchery.configs import WorkerOptions
from batchery.worker.broker import Queue
from jsonschema import Draft201909Validator, ValidationError

from tests.support.pages import blocks
from tests.support.processes import finished, running, wait_for_worker
from tests.support.servers import valkey

Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> Services:
    loaded: Services = compose["services"]
    return loaded


@pytest.fixture(scope="module")
def schema() -> Draft201909Validator:
    """The Compose Specification's own."""
    return Draft201909Validator(json.loads((Path(__file__).parent / "compose-spec" / "compose-spec.json").read_text()))


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, str]:
    """The Dockerfile's stages, from their FROM line on."""
    texts = re.split(r"^(?=FROM )", (root / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    return {text.split()[3]: text for text in texts}


@pytest.fixture(scope="module")
def manifests(root: Path) -> dict[str, dict[str, Any]]:
    """The Kubernetes manifests of docs/deploy.md, by kind."""
    shown = [block.text for block in blocks((root / "docs" / "deploy.md").read_text()) if block.info == "yaml"]
    return {loaded["kind"]: loaded for text in shown for loaded in yaml.safe_load_all(text)}


# --- Compose ----------------------------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_compose_specification(
    compose: dict[str, Any], schema: Draft201909Validator
) -> None:
    schema.validate(compose)


@pytest.mark.parametrize(
    "mistake",
    [
        {"comand": ["celery"]},
        {"healthcheck": {"test": ["CMD", "true"], "intervall": "2s"}},
        {"ports": {"6379": "6379"}},
        {"init": "maybe"},
    ],
)
def test_the_specification_finds_a_mistake(schema: Draft201909Validator, mistake: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schema.validate({"services": {"valkey": {"image": "valkey", **mistake}}})


def test_every_service_that_another_one_waits_for_has_a_health_check(services: Services) -> None:
    waited_for = [
        (name, condition["condition"])
        for service in services.values()
        for name, condition in service.get("depends_on", {}).items()
    ]
    assert waited_for
    for name, condition in waited_for:
        assert condition == "service_healthy"
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_ports_are_open_to_this_machine_only(services: Services) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_image_is_built_from_a_stage_and_differs_where_its_build_does(
    services: Services, stages: dict[str, str]
) -> None:
    built = {service["image"]: service["build"] for service in services.values() if "build" in service}
    assert {build["target"] for build in built.values()} == set(stages) - {"build"}
    assert len({json.dumps(build, sort_keys=True) for build in built.values()}) == len(built)


def test_workers_can_be_scaled_and_are_given_the_time_to_drain(services: Services) -> None:
    for name in ("worker", "worker-gpu"):
        assert not {"container_name", "ports"} & set(services[name])
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > WorkerOptions().drain_timeout_s
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert "profiles" not in services["worker"]


def test_valkey_starts_with_its_command_and_keeps_the_queue(compose: dict[str, Any]) -> None:
    service = compose["services"]["valkey"]
    program, *words = service["command"]
    assert program == "valkey-server"
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    with valkey(**options) as url, redis.Redis.from_url(url) as client:
        assert client.config_get("appendonly", "maxmemory-policy") == {
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
        }
    assert {mount.split(":")[0] for mount in service["volumes"]} <= set(compose["volumes"])


def test_worker_health_check_and_producer_run_with_their_commands(
    services: Services, redis_url: str, root: Path, tmp_path: Path
) -> None:
    env = dict.fromkeys(services["worker"]["environment"], redis_url)
    assert set(env) == {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}
    (tmp_path / "quick.toml").write_text("[worker]\nwarm_up_s = 0.5\n")  # by default it measures for 10 s
    env["BATCHERY_CONFIG"] = str(tmp_path / "quick.toml")
    health = services["worker"]["healthcheck"]["test"][1:]
    assert finished([*health, "--timeout", "0.1"], folder=root, env=env).returncode == 1
    with running(services["worker"]["command"], folder=root, env=env) as worker:
        wait_for_worker(redis_url, worker)
        asked = finished(health, folder=root, env=env)
        assert asked.returncode == 0, asked.stdout
        called = finished(services["producer"]["command"], folder=root, env=env)
        assert re.fullmatch(r"100 texts, 384 numbers for each, [\d.]+ s\n", called.stdout)


# --- Images -----------------------------------------------------------------------------------------------------------


def test_the_dockerfile_copies_every_packaged_folder_and_nothing_that_is_missing(root: Path) -> None:
    copied: set[str] = set()
    for line in (root / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {source.removesuffix("/") for source in line.split()[1:-1]}
    assert copied >= {"batchery", "configs", "batchers", "producer", "worker", "examples", "pyproject.toml"}
    assert [source for source in sorted(copied) if not (root / source).exists()] == []


def test_only_the_worker_image_has_torch_and_no_image_runs_as_root(stages: dict[str, str]) -> None:
    assert [name for name, text in stages.items() if "install torch" in text] == ["worker"]
    for name in set(stages) - {"build"}:
        assert re.findall(r"^USER (\w+)", stages[name], flags=re.MULTILINE)[-1] == "batchery"


def test_a_build_without_a_target_makes_the_worker_image(stages: dict[str, str]) -> None:
    assert list(stages)[-1] == "worker"


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_the_scaler_reads_the_keys_of_waiting_and_of_claimed_calls(manifests: dict[str, dict[str, Any]]) -> None:
    spec = manifests["ScaledObject"]["spec"]
    keys = {trigger["name"]: trigger["metadata"]["listName"] for trigger in spec["triggers"]}
    queue = Queue("celery")
    assert keys == {"waiting": queue.lists[0], "leased": queue.unacked}
    assert spec["advanced"]["scalingModifiers"]["formula"] == " + ".join(keys)
    assert spec["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]


def test_a_pod_is_given_the_time_to_drain(manifests: dict[str, dict[str, Any]]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > WorkerOptions().drain_timeout_s


def test_probes_run_the_health_command(manifests: dict[str, dict[str, Any]], redis_url: str, root: Path) -> None:
    [container] = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe, code in (("startupProbe", 1), ("livenessProbe", 0)):
        command = container[probe]["exec"]["command"]
        away = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
        assert finished(command, folder=root, env=away).returncode == code, probe
