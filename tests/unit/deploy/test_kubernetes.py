"""deploy/kubernetes: against the schemas of Kubernetes, how the parts fit together, and what the nodes would make of it."""

from __future__ import annotations

import copy
import re
from typing import Any

import jsonschema
import pytest

from amberblob.config import load_config
from amberblob.errors import ConfigError
from node.http.routes import OPEN_RESOURCES
from tests.unit.deploy.kit import DEPLOY, STOP_S_MIN, as_a_node_reads_it, documents, schema

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OBJECTS = [(path.name, document) for path in FILES for document in documents(path)]
GROUPS = {"apps/v1": "apps.v1", "v1": "core.v1", "policy/v1": "policy.v1", "networking.k8s.io/v1": "networking.v1"}
SCHEMA = schema("kubernetes.json")


def one(kind: str, name: str) -> Any:
    [found] = [document for _, document in OBJECTS if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    return found


def mistakes(document: Any) -> list[str]:
    definition = f"io.k8s.api.{GROUPS[document['apiVersion']]}.{document['kind']}"
    validator = jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{definition}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize(
    "document", [document for _, document in OBJECTS], ids=[f"{name}-{made['kind']}" for name, made in OBJECTS]
)
def test_it_is_what_kubernetes_wants(document):
    assert mistakes(document) == []
    assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "amberblob"


def test_the_schema_finds_mistakes():
    wrong = copy.deepcopy(one("StatefulSet", "amberblob"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    wrong["spec"]["replicas"] = "three"
    assert len(mistakes(wrong)) == 2


def pod(name: str) -> Any:
    return one("StatefulSet", name)["spec"]["template"]["spec"]


def environment(name: str, index: int) -> dict[str, str]:
    """What Kubernetes puts into the environment of the pod with this number."""
    fields = {
        "metadata.name": f"{name}-{index}",
        "spec.nodeName": f"machine-{index}.example.net",
        "metadata.labels['topology.kubernetes.io/zone']": "" if index == 0 else f"zone-{index}",
    }
    made: dict[str, str] = {}
    for entry in pod(name)["containers"][0]["env"]:
        value = entry.get("value")
        text = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]] if value is None else value
        made[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: made[match[1]], text)
    return made


@pytest.mark.parametrize("index", range(3))
def test_each_node_reads_a_configuration_that_holds(tmp_path, index):
    stateful = one("StatefulSet", "amberblob")
    text = one("ConfigMap", "amberblob")["data"]["node.toml"]
    secrets = {f"/etc/amberblob/secrets/{key}": "s" * 64 for key in one("Secret", "amberblob")["stringData"]}
    config = as_a_node_reads_it(tmp_path, text, environment("amberblob", index), secrets)
    name = f"amberblob-{index}"
    assert config.node.id == name and config.node.host == f"machine-{index}.example.net"
    assert config.cluster.bootstrap_nodes == ("amberblob-0", "amberblob-1", "amberblob-2")
    assert len(config.cluster.bootstrap_nodes) == stateful["spec"]["replicas"]
    where = f"{name}.{stateful['spec']['serviceName']}.{stateful['metadata']['namespace']}.svc"
    assert (config.http.advertised, config.peer.advertised) == (f"{where}:7700", f"{where}:7800")
    ports = {port["name"]: port["containerPort"] for port in pod("amberblob")["containers"][0]["ports"]}
    assert ports == {"http": int(config.http.listen.split(":")[1]), "peer": int(config.peer.listen.split(":")[1])}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod("amberblob")["containers"][0]["volumeMounts"]}
    assert config.node.disk.is_relative_to(mounts["disk"])
    assert pod("amberblob")["terminationGracePeriodSeconds"] >= STOP_S_MIN > 4 * config.limits.shutdown_timeout_s


def test_nobody_starts_with_the_secret_of_the_example(tmp_path):
    given = one("Secret", "amberblob")["stringData"]
    files = {f"/etc/amberblob/secrets/{key}": value for key, value in given.items()}
    with pytest.raises(ConfigError, match="secret"):
        as_a_node_reads_it(
            tmp_path, one("ConfigMap", "amberblob")["data"]["node.toml"], environment("amberblob", 0), files
        )


def test_variables_of_services_are_no_keys(tmp_path):
    """enableServiceLinks is off; should somebody turn it on, Kubernetes' variables must not be taken for keys."""
    added = {"AMBERBLOB_SERVICE_HOST": "10.0.0.1", "AMBERBLOB_PORT_7700_TCP": "tcp://10.0.0.1:7700"}
    config = load_config(DEPLOY / "node.example.toml", added | {"AMBERBLOB_NODES_SERVICE_PORT": "1"})
    assert config.node.id == "node-1"


@pytest.mark.parametrize("name", ["amberblob", "etcd"])
def test_the_parts_fit_together(name):
    stateful = one("StatefulSet", name)
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == labels
    headless = one("Service", stateful["spec"]["serviceName"])
    assert headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"]
    budget = one("PodDisruptionBudget", name)["spec"]
    assert budget["maxUnavailable"] == 1
    affinity = pod(name)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["topologyKey"] for term in affinity] == ["kubernetes.io/hostname"]
    for selector in (
        headless["spec"]["selector"],
        budget["selector"]["matchLabels"],
        *(t["labelSelector"]["matchLabels"] for t in affinity),
    ):
        assert selector == labels
    # Those that wait for each other have to be started together.
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"
    volumes = {volume["name"] for volume in pod(name).get("volumes", [])}
    claims = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    for container in pod(name)["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes | claims
        names = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in names
        secure = container["securityContext"]
        assert secure["readOnlyRootFilesystem"] and not secure["allowPrivilegeEscalation"]
        assert secure["capabilities"] == {"drop": ["ALL"]}
        assert re.search(r":v?\d", container["image"]), "a certain version"
    assert pod(name)["securityContext"]["runAsNonRoot"] and pod(name)["securityContext"]["runAsUser"] > 0
    assert not pod(name)["automountServiceAccountToken"]


def test_probes_ask_what_they_are_for():
    [container] = pod("amberblob")["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {path.strip("/") for path in paths.values()} <= {resource.name.lower() for resource in OPEN_RESOURCES}


def test_volumes_and_the_registry_are_named_as_they_are():
    config = one("ConfigMap", "amberblob")["data"]["node.toml"]
    etcd = one("StatefulSet", "etcd")
    hosts = [f"etcd-{index}.{etcd['spec']['serviceName']}:2379" for index in range(etcd["spec"]["replicas"])]
    assert f'"etcd://{",".join(hosts)}"' in config
    volumes = {volume["name"]: volume for volume in pod("amberblob")["volumes"]}
    assert volumes["config"]["configMap"]["name"] == one("ConfigMap", "amberblob")["metadata"]["name"]
    assert volumes["secrets"]["secret"]["secretName"] == one("Secret", "amberblob")["metadata"]["name"]
    user = re.search(r"useradd --uid (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert user is not None and pod("amberblob")["securityContext"]["runAsUser"] == int(user[1])
