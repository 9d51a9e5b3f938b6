"""What the node says of itself and of the cluster: readiness, ``GET /cluster``, gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from amberblob.errors import NotReady
from amberblob.metrics import Metrics
from chunkstore.interface import ReplicaStore
from node.health import ClusterHealth, Gathering
from node.healthgauges import HealthGauges
from node.healthview import heal_json, slots_json, unknown_heal_json
from node.http.times import rfc3339
from node.membership import ChangeMembership
from node.membershipview import membership_json, moving_slots
from node.protocol.quorum import Electorate
from node.routing import Routing
from node.service import MembershipAction, SlotsWanted
from node.transport.interface import Peers
from node.wholeness import view_cluster, view_slot
from node.workers.resolver import Resolver
from node.workers.runner import Runner
from registry.routes import RouteTable
from registry.view import RouteWatcher

IN_STEP_ROUNDS = 2
"""Copies that differ are taken to be in step if each was compared within so many rounds of comparing everything."""

SLOTS_AT_ONCE = 256
"""How many are judged before others have their turn on the loop: some ten milliseconds."""


class Status:
    """Implements :class:`node.service.NodeStatus`. ``phase`` says what start-up waits for; None once it is over.

    ``compare_every_s``: how often all copies are compared.
    """

    def __init__(
        self,
        *,
        node: str,
        routing: Routing,
        watcher: Callable[[], RouteWatcher | None],
        peers: Peers,
        store: ReplicaStore,
        resolver: Resolver,
        health: ClusterHealth,
        runner: Runner,
        membership: ChangeMembership,
        version: str,
        compare_every_s: float,
    ) -> None:
        self.phase: str | None = "the node is starting"
        self._node = node
        self._routing = routing
        self._watcher = watcher
        self._peers = peers
        self._store = store
        self._resolver = resolver
        self._health = health
        self._runner = runner
        self._membership = membership
        self._version = version
        self._in_step_ms = int(IN_STEP_ROUNDS * compare_every_s * 1000)

    def not_ready(self) -> str | None:
        """Why the node does not serve reads and writes; None when it does."""
        if self.phase is not None:
            return self.phase
        if self._store.failed is not None:
            return f"the disk takes no more writes: {self._store.failed}"
        try:
            electorates = self._routing.distinct_electorates()
            registered = self._routing.is_registered()
        except NotReady as error:
            return error.detail
        if not registered:
            return "this node was removed from the cluster: use the others, and stop it"
        for electorate in electorates:
            there = self._voting(electorate)
            if not (electorate.is_write_quorum(there) and electorate.is_read_quorum(there)):
                away = ", ".join(sorted(set(electorate.voters) - set(there)))
                wanted, got = max(
                    (electorate.writes_short(there), electorate.reads_short(there)), key=lambda pair: pair[0] - pair[1]
                )
                return f"{got} of the {wanted} replicas that are needed are reachable; waiting for {away}"
        return None

    def warning(self) -> str | None:
        """What is wrong although the node may serve reads and writes; None: nothing."""
        watcher = self._watcher()
        if watcher is None or watcher.registry_ok:
            return None
        what = (
            "is refused (empty, older than what was seen, or another cluster's)"
            if watcher.registry_refused
            else "is away"
        )
        return f"the registry {what}: membership stands still; see /cluster"

    def _voting(self, electorate: Electorate) -> list[str]:
        """The voters that are reachable with the copy that the route names, by what this node knows."""
        table, slot = self._routing.table(), electorate.slot
        return [
            node
            for node in electorate.voters
            if table.votes(slot, node)
            and self._peers.reachable(node)
            and not (node == self._node and self._is_mute(slot))
        ]

    def _is_mute(self, slot: int) -> bool:
        return self._routing.mute(self._store.slot_state(slot)) is not None

    async def cluster(self, *, slots: SlotsWanted = "", since_ms: int | None = None) -> dict[str, Any]:
        """The answer of ``GET /cluster``: this node's view, and what all nodes tell of their copies."""
        watcher = self._watcher()
        registry = {
            "ok": watcher.registry_ok if watcher else False,
            "refused": watcher.registry_refused if watcher else False,
            "error": watcher.registry_error if watcher else "not asked yet",
            "since_ms": watcher.registry_since_ms if watcher else 0,
        }
        reason = self.not_ready()
        me = {
            "node": self._node,
            "version": self._version,
            "ready": reason is None,
            "reason": reason,
            "disk": {
                "id": self._store.disk_id,
                "failed": self._store.failed,
                "full": self._store.full,
                "lost_slots": sorted(slot for slot in self._routing.own_votes() if self._is_mute(slot)),
            },
            "undecided": self._resolver.waiting,
            "workers": self._runner.status(),
        }
        try:
            table = self._routing.table()
            gathered = await self._health.gather()
            since_ms = max(0, gathered.at_ms - self._in_step_ms) if since_ms is None else since_ms
        except NotReady as error:
            heal = unknown_heal_json()
            return {"self": me, "registry": registry, "nodes": [], "slots": {}, "heal": heal, "detail": error.detail}
        return {
            "cluster_id": table.cluster.cluster_id,
            "name": table.cluster.name,
            "slot_count": table.slot_count,
            "replicas": table.cluster.replicas,
            "chunk_bytes": table.cluster.chunk_bytes,
            "epoch": max(table.epochs()),
            "self": me,
            "registry": registry,
            "nodes": [self._node_view(table, node, watcher) for node in sorted(table.nodes)],
            "zones": sorted({info.zone for info in table.nodes.values()}),
            "slots": self._slots(table),
            "membership": membership_json(
                table,
                {node: told.slots for node, told in gathered.nodes.items() if told is not None},
                reachable=self._peers.reachable,
                rate_bytes_per_s=gathered.rate_bytes_per_s,
            ),
            "heal": await _heal(table, gathered, slots=slots, since_ms=since_ms),
        }

    async def heal(self) -> dict[str, Any]:
        """The answer of ``POST /cluster/heal``: every node that can be reached compares its copies now. Raises: NotReady."""
        gathered = await self._health.gather(heal=True)
        return {
            "since": rfc3339(gathered.at_ms),
            "nodes": sorted(node for node, told in gathered.nodes.items() if told is not None),
            "silent_nodes": sorted(node for node, told in gathered.nodes.items() if told is None),
        }

    async def change_membership(
        self, action: MembershipAction, nodes: tuple[str, ...], *, dry_run: bool, force: bool
    ) -> dict[str, Any]:
        """The answer of ``POST /cluster/membership``: see :class:`node.membership.MembershipChanges`."""
        return await self._membership(action, nodes, dry_run=dry_run, force=force)

    def _node_view(self, table: RouteTable, node: str, watcher: RouteWatcher | None) -> dict[str, Any]:
        info = table.nodes[node]
        mine = table.slots_of(node)
        return {
            "node": node,
            "wanted": "spare" if (state := table.state_of(node)) is None else state.value,
            "zone": info.zone,
            "host": info.host,
            "http": info.http_address,
            "peer": info.peer_address,
            "version": info.version,
            "started_at_ms": info.started_at_ms,
            "reachable": self._peers.reachable(node),
            # Who is alive is asked of the registry: while it is away nobody knows.
            "alive": node in watcher.alive if watcher is not None and watcher.registry_ok else None,
            "disk": {"id": info.disk_id, "capacity_bytes": info.capacity_bytes},
            "slots": len(mine),
            "votes": sum(table.votes(slot, node) and not (node == self._node and self._is_mute(slot)) for slot in mine),
        }

    def _slots(self, table: RouteTable) -> dict[str, Any]:
        """Slots by who can be reached: all voters, a majority (degraded; of both sets while it moves), or fewer.

        It says nothing of their content.
        """
        counts = {"reachable": 0, "degraded": 0, "unavailable": 0, "joint": 0}
        for route in table.routes:
            electorate = self._routing.electorate(route.slot)
            there = self._voting(electorate)
            if len(there) == len(electorate.voters):
                counts["reachable"] += 1
            elif electorate.is_majority(there):
                counts["degraded"] += 1
            else:
                counts["unavailable"] += 1
            counts["joint"] += route.state == "joint"
        return {"total": table.slot_count, **counts}

    def _registry_ok(self) -> bool:
        watcher = self._watcher()
        return watcher is not None and watcher.registry_ok

    def _registry_refused(self) -> bool:
        watcher = self._watcher()
        return watcher is not None and watcher.registry_refused

    def _moves_left(self) -> int:
        try:
            table = self._routing.table()
        except NotReady:
            return 0
        return len(moving_slots(table))

    def add_gauges(self, metrics: Metrics) -> None:
        """Show the node's own numbers on ``/metrics``."""
        for name, text, read in (
            ("amberblob_ready", "1 while the node serves reads and writes.", lambda: self.not_ready() is None),
            ("amberblob_registry_ok", "1 while the node follows the registry.", self._registry_ok),
            (
                "amberblob_registry_refused",
                "1 while the registry answers and is not trusted: it shows less than was seen, or is another cluster's.",
                self._registry_refused,
            ),
            (
                "amberblob_moves_left",
                "Slots that are on their way to other nodes, by this node's routes.",
                self._moves_left,
            ),
            ("amberblob_disk_failed", "1 once the disk takes no more writes.", lambda: self._store.failed is not None),
            ("amberblob_disk_full", "1 while the disk refuses new bytes.", lambda: self._store.full),
            (
                "amberblob_undecided",
                "Records accepted here and not known to be chosen.",
                lambda: self._resolver.waiting,
            ),
        ):
            metrics.gauge(name, text).set_function(read)
        metrics.registry.register(HealthGauges(self._health.own))
        for count in self._store.counts():
            text = f"Counted by the disk since the node started: {count.replace('_', ' ')}."
            metrics.counted(f"amberblob_{count}", text, partial(self._count_of_disk, count))

    def _count_of_disk(self, name: str) -> int:
        return self._store.counts()[name]


async def _heal(table: RouteTable, gathered: Gathering, *, slots: SlotsWanted, since_ms: int) -> dict[str, Any]:
    """What the nodes told, judged."""
    known = {node: told.slots for node, told in gathered.nodes.items() if told is not None}
    views = []
    for route in table.routes:
        views.append(
            view_slot(
                route,
                {node: slots.get(route.slot) for node, slots in known.items()},
                since_ms=since_ms,
                replicas=table.cluster.replicas,
            )
        )
        if len(views) % SLOTS_AT_ONCE == 0:
            await asyncio.sleep(0)
    silent = gathered.nodes.keys() - known.keys()
    full = [node for node, told in gathered.nodes.items() if told is not None and told.full]
    view = view_cluster(views, rate_bytes_per_s=gathered.rate_bytes_per_s, silent=silent, full=full)
    heal = heal_json(view, at_ms=gathered.at_ms, since_ms=since_ms)
    if slots:
        heal["by_slot"] = slots_json(one for one in views if slots == "1" or one.state != "whole" or not one.compared)
    return heal
