"""A cluster whose nodes reach each other through delaying proxies (:mod:`bench.delay`)."""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import tomli_w

from bench.cluster import NODES, Cluster, Node, free_ports
from bench.delay import DelayLine, delay_line
from bench.environment import HOST


class ProxiedCluster(Cluster):
    """As :class:`Cluster`, but started node by node: ``amberblob dev`` would write each peer's true address."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._exits = ExitStack()
        self._line: DelayLine | None = None

    @property
    def line(self) -> DelayLine:
        """What sets the delays."""
        assert self._line is not None, "the cluster was started"
        return self._line

    def _start(self) -> None:
        first = free_ports(3 * NODES)
        publics, peers, proxies = (range(first + turn * NODES, first + (turn + 1) * NODES) for turn in range(3))
        names = [f"node-{number}" for number in range(1, NODES + 1)]
        self.folder.mkdir(parents=True, exist_ok=True)
        secret = self.folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_urlsafe(32) + "\n")
        for name, public, peer, proxy in zip(names, publics, peers, proxies, strict=True):
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            document = {
                "node": {"id": name, "disk": "disk", "host": name},
                "http": {"listen": f"{HOST}:{public}", "advertise": f"{HOST}:{public}"},
                "peer": {"listen": f"{HOST}:{peer}", "advertise": f"{HOST}:{proxy}"},
                "cluster": {
                    "name": "bench",
                    "secret_file": "../secret",
                    "registry": "embedded://" + quote((self.folder / "registry.sqlite3").absolute().as_posix()),
                    "bootstrap_nodes": names,
                    "replicas": NODES,
                },
            }
            (folder / "node.toml").write_text(tomli_w.dumps(document))
        began = time.monotonic()
        behind = {proxy: (name, peer) for name, peer, proxy in zip(names, peers, proxies, strict=True)}
        self._line = self._exits.enter_context(delay_line(behind))
        self.nodes = [
            Node(number, public, self.folder / name, 0)
            for number, (name, public) in enumerate(zip(names, publics, strict=True), 1)
        ]
        for node in self.nodes:
            self.launch(node)
        for node in self.nodes:
            self.await_ready(node)
        self.start_s = time.monotonic() - began

    def stop(self) -> None:
        """End every process; the data stays."""
        super().stop()
        self._exits.close()
