"""deploy/compose: against the specification's schema, and what the nodes would make of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from amberblob.config import load_config
from tests.unit.deploy.kit import DEPLOY, STOP_S_MIN, as_a_node_reads_it, documents, schema, seconds

FOLDER = DEPLOY / "compose"
NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def compose() -> Any:
    [document] = documents(FOLDER / "compose.yaml")
    return document


def test_it_is_what_the_specification_wants(compose):
    validator = jsonschema.Draft202012Validator(schema("compose-spec.json"))
    assert [error.message for error in validator.iter_errors(compose)] == []


def test_the_schema_finds_mistakes(compose):
    validator = jsonschema.Draft202012Validator(schema("compose-spec.json"))
    wrong = {**compose, "services": {**compose["services"], "node-1": {"image": "x", "restrat": "always"}}}
    assert "restrat" in next(validator.iter_errors(wrong)).message


@pytest.mark.parametrize("name", NODES)
def test_each_node_reads_a_configuration_that_holds(compose, name, tmp_path):
    service = compose["services"][name]
    secrets = {f"/run/secrets/{secret}": "s" * 64 for secret in service["secrets"]}
    config = as_a_node_reads_it(tmp_path, (DEPLOY / "container.toml").read_text(), service["environment"], secrets)
    assert config.node.id == service["hostname"] == name
    assert config.cluster.bootstrap_nodes == NODES
    assert config.cluster.secret.reveal() == config.http.token.reveal() == "s" * 64
    assert config.cluster.registry == "etcd://etcd:2379"
    assert (config.http.advertised, config.peer.advertised) == (f"{name}:7700", f"{name}:7800")
    [volume] = service["volumes"]
    source, target = volume.split(":")
    assert source in compose["volumes"] and config.node.disk.is_relative_to(target)
    assert seconds(service["stop_grace_period"]) >= STOP_S_MIN > 4 * config.limits.shutdown_timeout_s


def test_nodes_share_nothing_that_they_must_not(compose):
    services = [compose["services"][name] for name in NODES]
    for what in ("volumes", "ports"):
        used = [entry for service in services for entry in service[what]]
        assert len(set(used)) == len(used)
    for service in services:
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert not any(port.endswith(":7800") for port in service["ports"]), "the nodes' port stays inside"


def test_everything_is_watched_and_started_again(compose):
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert "healthcheck" in service or ("\nHEALTHCHECK " in dockerfile and name in NODES), name
        assert not service["image"].endswith(":latest") and ":" in service["image"]
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and "healthcheck" in compose["services"][other]


def test_secrets_are_files_that_are_made_and_never_written_down(compose, tmp_path):
    for service in compose["services"].values():
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        for name in service.get("environment", {}):
            assert not re.search("SECRET$|TOKEN$|PASSWORD", name), f"{name}: give it as a file"
    script = tmp_path / "secrets.sh"
    script.write_text((FOLDER / "secrets.sh").read_text())
    for _ in range(2):
        subprocess.run(["sh", str(script)], check=True, timeout=30)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
        assert {f"secrets/{name}" for name in made} == {secret["file"] for secret in compose["secrets"].values()}
        first = made if _ == 0 else first  # noqa: F821
        assert made == first, "made once"
    assert len(made["cluster-secret"].strip()) == 64 and len(set(made.values())) == 3
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert (FOLDER / ".gitignore").read_text().split() == ["secrets/"]


def test_the_stand_in_for_the_archive_does_not_start_by_itself(compose):
    assert compose["services"]["s3"]["profiles"] == ["archive"]
    assert [name for name, service in compose["services"].items() if "profiles" in service] == ["s3"]


def test_the_example_of_all_keys_holds(tmp_path):
    assert load_config(DEPLOY / "node.example.toml", {}).node.id == "node-1"


def test_the_script_can_be_run():
    assert os.access(Path(FOLDER / "secrets.sh"), os.X_OK)
