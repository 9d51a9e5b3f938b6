"""Real nodes for the nemesis, three or more: their peers behind proxies, their disks small if that is permitted."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter

from tests.cluster.harness import HOST, Cluster, free_ports
from tests.nemesis import mounts
from tests.nemesis.proxy import Network, Way

LIMITS = {"request_timeout_s": 3.0, "peer_timeout_s": 1.0, "shutdown_timeout_s": 2.0}


class NemesisCluster(Cluster):
    """``nodes``: those beyond three hold nothing before they are joined. ``small_disks``: a tmpfs for each node; :attr:`small_disks` tells whether it could be had."""

    def __init__(self, *, nodes: int = 3, small_disks: bool = False) -> None:
        super().__init__(limits=LIMITS, slot_count=16, log_level="info")
        while len(self.nodes) < nodes:
            self.add_node()
        ports = free_ports(len(self.nodes))
        self.names = [node.name for node in self.nodes]
        self.network = Network(
            {node.name: node.peer_port for node in self.nodes}, dict(zip(self.names, ports, strict=True))
        )
        self.small_disks = small_disks
        for node, port in zip(self.nodes, ports, strict=True):
            node.settings["peer"]["advertise"] = f"{HOST}:{port}"
            node.write_config()
            if small_disks and not mounts.mount_disk(node.disk):
                self.small_disks = False
        self.mounted = [node.disk for node in self.nodes] if self.small_disks else []

    async def open(self) -> None:
        """Start everything and wait until it is ready."""
        await self.network.open()
        self.start_all()
        await self.wait_ready()

    def end(self, *, keep: bool) -> None:
        """End every process; remove the folder, or leave it with whatever the disks hold."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        if keep:
            for disk in self.mounted:
                with contextlib.suppress(OSError, shutil.Error):
                    shutil.copytree(disk, disk.with_name("disk-at-the-end"))
        for disk in self.mounted:
            mounts.unmount_disk(disk)
        self.mounted = []
        if not keep:
            self.close()

    def ended_by_themselves(self) -> list[str]:
        """Nodes that should run and do not."""
        return [
            f"{node.name} ended by itself with {node.process.returncode}"
            for node in self.nodes
            if node.process is not None and node.process.poll() is not None
        ]

    def log_errors(self) -> tuple[Counter[str], list[str]]:
        """What the nodes logged as errors, by event; and those that nobody foresaw: with a traceback."""
        events: Counter[str] = Counter()
        tracebacks: list[str] = []
        for index, node in enumerate(self.nodes):
            for line in self.log_text(index).splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    # A line that SIGKILL cut off, or the interpreter's own words.
                    if "Traceback" in line:
                        tracebacks.append(f"{node.name} logged a traceback")
                    continue
                if entry.get("level") in ("error", "critical"):
                    events[entry.get("event", "")] += 1
                if "exception" in entry:
                    tracebacks.append(f"{node.name} at {entry.get('timestamp')}: {str(entry)[-1500:]}")
        return events, tracebacks

    # -- whom a fault concerns

    def out_of(self, index: int) -> frozenset[Way]:
        """The ways on which a node's bytes leave it."""
        name = self.names[index]
        return frozenset((name, other) for other in self.names if other != name)

    def into(self, index: int) -> frozenset[Way]:
        return frozenset((there, here) for here, there in self.out_of(index))

    def between(self, first: int, second: int) -> frozenset[Way]:
        names = self.names[first], self.names[second]
        return frozenset((names, names[::-1]))

    def all_ways(self) -> frozenset[Way]:
        return frozenset((one, other) for one in self.names for other in self.names if one != other)
