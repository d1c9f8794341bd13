"""What docker-compose.yml promises: no service in reach of the network, no secret in the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
VARIABLE = re.compile(r"\$\{(\w+)(:[-?][^}]*)?\}")
SECRET = re.compile(r"PASSWORD|AUTH|_URL$")


@pytest.fixture
def services() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = compose["services"]
    return found


def test_fleet_is_complete(services: dict[str, Any]) -> None:
    assert set(services) == {"redis", "postgres", "migrate", "worker", "dashboard"}
    for name in ("migrate", "worker", "dashboard"):
        assert {"FARM_BROKER_URL", "FARM_DATABASE_URL"} <= set(services[name]["environment"])
    for name in ("worker", "dashboard"):
        done = services[name]["depends_on"]["migrate"]["condition"]
        assert done == "service_completed_successfully"
    assert services["migrate"]["command"] == ["db", "upgrade"]
    assert services["migrate"]["restart"] == "no"


def test_ports_stay_on_this_machine(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service for service in services.values())


def test_broker_keeps_its_messages_and_asks_for_a_password(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert "REDIS_PASSWORD" in command[command.index("--requirepass") + 1]


def test_every_secret_comes_from_the_environment(services: dict[str, Any]) -> None:
    secrets = {
        f"{name}.{key}": str(value)
        for name, service in services.items()
        for key, value in service.get("environment", {}).items()
        if SECRET.search(key)
    }
    assert len(secrets) >= 8
    for where, value in secrets.items():
        variables = VARIABLE.findall(value)
        assert any(rule.startswith(":?") for _, rule in variables), where


def test_example_names_every_variable_and_holds_no_secret() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert {name for name, _ in VARIABLE.findall(text)} == set(example)
    assert not any(value for key, value in example.items() if SECRET.search(key))
