"""What no single value shows: keys against each other, and texts that must be addresses, ids or URLs."""

from __future__ import annotations

import re
from pathlib import Path

from amberblob.config.archive_checks import ArchiveChecks
from amberblob.config.complaint import Complaint
from amberblob.config.sections import (
    RATE_BYTES_PER_S_MIN,
    RESERVE_BYTES_MIN,
    SECRET_CHARS_MIN,
    ClusterSection,
    NodeConfig,
    RetentionSection,
    wants,
)
from amberblob.config.values import split_address
from amberblob.errors import ConfigError
from amberblob.ids import valid_node_id
from amberblob.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN

_REGISTRY_URL = re.compile(r"\A[a-z][a-z0-9+.-]*://\S+\Z")
_WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::"})


class Checks:
    """All checks of one configuration, read from ``path``."""

    def __init__(self, path: Path, complaint: Complaint) -> None:
        self._path = path
        self._error = complaint

    def check(self, config: NodeConfig) -> None:
        """Raises ConfigError at the first mistake."""
        self._addresses(config)
        self._cluster(config.cluster)
        self._rest(config)
        self._retention(config.retention)
        ArchiveChecks(self._error).check(config.archive, config.node.disk)

    def _addresses(self, config: NodeConfig) -> None:
        for section, values in (("http", config.http), ("peer", config.peer)):
            for key, value in (("listen", values.listen), ("advertise", values.advertise)):
                if not value and key == "advertise":
                    continue
                try:
                    host, _ = split_address(value)
                except ValueError as error:
                    raise self._error(section, key, value) from error
                if key == "advertise" and host in _WILDCARD_HOSTS:
                    raise self._error(section, key, value, "nobody can reach such an address; name this node's own")
            if not values.advertise and split_address(values.listen)[0] in _WILDCARD_HOSTS:
                raise self._error(
                    section,
                    "listen",
                    values.listen,
                    f"others cannot reach such an address; set [{section}] advertise too",
                )
        if config.http.listen == config.peer.listen:
            raise self._error(
                "peer", "listen", config.peer.listen, "is [http] listen too; peers need a port of their own"
            )

    def _cluster(self, cluster: ClusterSection) -> None:
        if not valid_node_id(cluster.name):
            raise self._error("cluster", "name", cluster.name)
        if not cluster.secret:
            raise ConfigError(
                f"{self._path}: [cluster] secret or secret_file is missing: wants {wants('cluster', 'secret')}."
            )
        if len(cluster.secret.reveal()) < SECRET_CHARS_MIN:
            raise self._error("cluster", "secret", cluster.secret)
        if not _REGISTRY_URL.match(cluster.registry):
            raise self._error("cluster", "registry", cluster.registry)
        if cluster.slot_count & (cluster.slot_count - 1):
            raise self._error("cluster", "slot_count", cluster.slot_count)
        for key, quorum in (("write_quorum", cluster.write_quorum), ("read_quorum", cluster.read_quorum)):
            if 0 < quorum < cluster.majority:
                raise self._error(
                    "cluster",
                    key,
                    quorum,
                    f"wants at least {cluster.majority}, the majority of {cluster.replicas} replicas: two smaller "
                    "quorums need not overlap, and an acknowledged write could be lost",
                )
            if quorum > cluster.replicas:
                raise self._error(
                    "cluster",
                    key,
                    quorum,
                    f"wants at most {cluster.replicas}, the number of replicas: more never answer",
                )
        self._bootstrap(cluster)

    def _bootstrap(self, cluster: ClusterSection) -> None:
        nodes = cluster.bootstrap_nodes
        for node in nodes:
            if not valid_node_id(node):
                raise self._error(
                    "cluster", "bootstrap_nodes", nodes, f"{node!r} is no node id: wants {wants('node', 'id')}"
                )
        if len(set(nodes)) != len(nodes):
            raise self._error("cluster", "bootstrap_nodes", nodes, "a node is named twice")

    def _rest(self, config: NodeConfig) -> None:
        if not valid_node_id(config.node.id):
            raise self._error("node", "id", config.node.id)
        chunk_size = config.storage.chunk_size
        if not CHUNK_BYTES_MIN <= chunk_size <= CHUNK_BYTES_MAX:
            raise self._error("storage", "chunk_size", chunk_size)
        if config.storage.reserve < RESERVE_BYTES_MIN:
            raise self._error("storage", "reserve", config.storage.reserve)
        if config.limits.peer_timeout_s > config.limits.request_timeout_s:
            raise self._error(
                "limits",
                "peer_timeout_s",
                config.limits.peer_timeout_s,
                f"wants at most request_timeout_s ({config.limits.request_timeout_s:g})",
            )
        for key in ("scrub_bytes_per_s", "busy_bytes_per_s"):
            if (rate := getattr(config.repair, key)) < RATE_BYTES_PER_S_MIN:
                raise self._error("repair", key, rate)

    def _retention(self, retention: RetentionSection) -> None:
        prefixes = [rule.prefix for rule in retention.rules]
        for prefix in prefixes:
            if prefixes.count(prefix) > 1:
                raise self._error("retention", "rules", prefixes, f"prefix {prefix!r} has two rules")
