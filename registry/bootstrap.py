"""How a cluster comes to be, and how a node enters it. Three steps, because the disk comes between them:

1. :func:`ensure_cluster` gets or makes the cluster's identity. Now the disk can be formatted, or recognised.
2. :func:`register_node` tells the registry who this node is and which disk it has.
3. :func:`ensure_routes` waits for the routes; the first time, any of the bootstrap nodes makes them.

Every step may race with other nodes and may be broken off at any point and done again. The race for the first
routes is decided by one compare-and-set: the **plan** names the nodes (and disks) that they are laid out over. From
a plan the routes follow by computation, so it matters to nobody who writes them, nor in how many transactions: a
65,536-slot cluster does not fit in one.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
import structlog

from amberblob.errors import ConfigError, NotReady, RegistryUnavailable
from registry.interface import TRANSACTION_OPS_MAX, CompareAndSet, Registry, Snapshot
from registry.keys import Keys
from registry.placement import place
from registry.routes import (
    FORMAT_VERSION_OLDEST,
    ClusterInfo,
    Liveness,
    Membership,
    NodeInfo,
    NodeState,
    Route,
    RouteTable,
    decode,
    encode,
    unknown_format,
)
from registry.snapshot import table_of
from registry.trust import RegistryRefused, check_cluster

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """What the configuration says of the cluster. Sizes in bytes."""

    name: str
    slot_count: int
    replicas: int
    chunk_bytes: int
    bootstrap_nodes: tuple[str, ...] = ()


class Arrival(enum.Enum):
    """How a node's registration went."""

    NEW = "new"
    """The node was not known."""
    KNOWN = "known"
    """The node was known with this disk (addresses and the like are brought up to date)."""
    NEW_DISK = "new-disk"
    """The node was known with another disk. The routes may still name the old one: this node has no vote in them until
    it has them name its new copies (:mod:`registry.readmit`), and those were filled from the others."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What :func:`register_node` did. ``previous`` is what was registered before, if anything."""

    info: NodeInfo
    arrival: Arrival
    previous: NodeInfo | None

    def __str__(self) -> str:
        if self.arrival is not Arrival.NEW_DISK or self.previous is None:
            return f"node {self.info.node_id} registered ({self.arrival.value})"
        return (
            f"node {self.info.node_id} had disk {self.previous.disk_id} and now has disk {self.info.disk_id}: "
            "its copies begin blank and have no vote until they were filled from the other nodes"
        )


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the first routes are laid out over."""

    nodes: tuple[NodeInfo, ...]


async def ensure_cluster(
    registry: Registry,
    settings: ClusterSettings,
    *,
    mint: Callable[[], str],
    now_ms: int,
    known_cluster_id: str | None = None,
) -> ClusterInfo:
    """The cluster called ``settings.name``; made now if the registry does not have it.

    Args:
        mint: makes the ULID of a new cluster.
        now_ms: since the Unix epoch.
        known_cluster_id: of the disk, when it belongs to a cluster already. Then none is made: a registry that
            lost its cluster is to be restored, not begun anew. (Whether the ids agree is the disk's to check.)

    Raises:
        RegistryUnavailable: it cannot be reached.
        RegistryRefused: it has no cluster, although the disk belongs to one.
        ConfigError: slot count or replicas are not what the cluster was made with, or its format is not known.
    """
    key = Keys(settings.name).cluster
    entry = await registry.get(key)
    if entry is None:
        if known_cluster_id is not None:
            raise RegistryRefused(
                f"The registry has no cluster {settings.name!r}, but this disk belongs to cluster {known_cluster_id}. "
                "Restore the registry from its backup, or correct [cluster] registry and name."
            )
        cluster = ClusterInfo(
            cluster_id=mint(),
            name=settings.name,
            slot_count=settings.slot_count,
            replicas=settings.replicas,
            chunk_bytes=settings.chunk_bytes,
            format_version=FORMAT_VERSION_OLDEST,
            created_at_ms=now_ms,
        )
        if await registry.compare_and_set(key, 0, encode(cluster)) is not None:
            _log.info("cluster created", cluster_id=cluster.cluster_id, name=cluster.name)
            return cluster
        entry = await registry.get(key)
        if entry is None:
            raise RegistryUnavailable(f"The registry lost {key} just after another node made it: try again.")
    cluster = decode(entry.value, ClusterInfo, key)
    _check_settings(cluster, settings)
    return cluster


def _check_settings(cluster: ClusterInfo, settings: ClusterSettings) -> None:
    if (unknown := unknown_format(cluster)) is not None:
        raise ConfigError(unknown)
    for name, wanted, is_ in (
        ("slot_count", settings.slot_count, cluster.slot_count),
        ("replicas", settings.replicas, cluster.replicas),
    ):
        if wanted != is_:
            raise ConfigError(
                f"[cluster] {name} = {wanted}: cluster {cluster.name!r} was made with {is_}, which cannot be changed "
                f"here; set it to {is_}."
            )
    if settings.chunk_bytes != cluster.chunk_bytes:
        _log.warning("chunk size is the cluster's", configured=settings.chunk_bytes, cluster=cluster.chunk_bytes)


async def register_node(
    registry: Registry,
    cluster: ClusterInfo,
    me: NodeInfo,
    *,
    arriving: Callable[[], Awaitable[None]] | None = None,
    takeover_timeout_s: float = 30.0,
) -> Registration:
    """Tell the registry who this node is. A node that has another disk than before is told apart; see Registration.

    A node id that is alive with another disk is waited for: either its former process has just died, then its
    lease runs out, or two machines are configured alike.

    Args:
        arriving: called before a node is written that the registry does not know: it comes for the first time, or it was
            removed and comes back, perhaps in the same life, since its id was freed.

    Raises:
        ConfigError: the node was removed from the cluster, or the id stays in use by another disk for ``takeover_timeout_s``.
        RegistryUnavailable: it cannot be reached.
        RegistryRefused: it does not hold this cluster.
    """
    await check_cluster(registry, cluster)
    keys = Keys(cluster.name)
    key = keys.node(me.node_id)
    wanted = await registry.get(keys.membership)
    if wanted is not None:
        _check_not_removed(decode(wanted.value, Membership, keys.membership), me.node_id)
    while True:
        entry = await registry.get(key)
        previous = decode(entry.value, NodeInfo, key) if entry else None
        if previous == me:
            break
        if previous is not None and previous.disk_id != me.disk_id:
            await _wait_until_left(registry, keys, me, takeover_timeout_s)
        if previous is None and arriving is not None:
            await arriving()
        if await registry.compare_and_set(key, entry.revision if entry else 0, encode(me)) is not None:
            break
    registration = Registration(me, _arrival(me, previous), previous)
    log = _log.warning if registration.arrival is Arrival.NEW_DISK else _log.info
    log("node registered", what=str(registration))
    return registration


def _check_not_removed(membership: Membership, node: str) -> None:
    if membership.nodes.get(node) is NodeState.REMOVED:
        raise ConfigError(
            f"[node] id = {node!r}: this node was removed from the cluster, and its copies were given to others. Give it a new id and an "
            f"empty disk, start it and join it; or have the cluster forget the id (amberblob cluster forget {node}) first."
        )


def _arrival(me: NodeInfo, previous: NodeInfo | None) -> Arrival:
    if previous is None:
        return Arrival.NEW
    return Arrival.KNOWN if previous.disk_id == me.disk_id else Arrival.NEW_DISK


async def _wait_until_left(registry: Registry, keys: Keys, me: NodeInfo, timeout_s: float) -> None:
    """Returns once nobody with another disk is alive under the node's id."""
    key = keys.alive_node(me.node_id)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                snapshot = await registry.range(key)
                holder = next((entry for entry in snapshot.entries if entry.key == key), None)
                if holder is None or decode(holder.value, Liveness, key).disk_id == me.disk_id:
                    return
                async with aclosing(registry.watch(key, snapshot.revision + 1)) as changes:
                    async for _ in changes:
                        break
    except TimeoutError:
        raise ConfigError(
            f"[node] id = {me.node_id!r}: another node with this id and another disk is alive in cluster "
            f"{keys.name!r}. Give each node an id of its own."
        ) from None


async def ensure_routes(
    registry: Registry, cluster: ClusterInfo, settings: ClusterSettings, *, timeout_s: float
) -> RouteTable:
    """The route table; made now if there is none and every node of ``settings.bootstrap_nodes`` is registered.

    A node without bootstrap nodes makes no routes, it waits for them.

    Raises:
        NotReady: ``timeout_s`` is over; the detail names who is missing.
        RegistryUnavailable: it cannot be reached.
    """
    keys = Keys(cluster.name)
    waiting_for = "the cluster's routes"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                snapshot = await registry.range(keys.root)
                table = table_of(snapshot, keys)
                if table is not None:
                    return table
                if await _make_progress(registry, cluster, settings, snapshot):
                    continue
                waiting_for = _waiting_for(settings, snapshot, keys)
                _log.info("waiting to make the first routes", waiting_for=waiting_for)
                async with aclosing(registry.watch(keys.root, snapshot.revision + 1)) as changes:
                    async for _ in changes:
                        break
    except TimeoutError:
        raise NotReady(
            f"No routes after {timeout_s:g} s: waiting for {waiting_for}. Start them, or correct "
            "[cluster] bootstrap_nodes."
        ) from None


async def _make_progress(
    registry: Registry, cluster: ClusterInfo, settings: ClusterSettings, snapshot: Snapshot
) -> bool:
    """Make the plan if it can be made; carry out the plan if there is one. False: there is only waiting to do."""
    keys = Keys(cluster.name)
    by_key = {entry.key: entry.value for entry in snapshot.entries}
    if keys.plan in by_key:
        await _carry_out(registry, cluster, _decode_plan(by_key[keys.plan], keys.plan), present=by_key.keys())
        return True
    if not settings.bootstrap_nodes or _missing(settings, snapshot, keys):
        return False
    wanted = sorted(set(settings.bootstrap_nodes))
    nodes = tuple(decode(by_key[keys.node(node)], NodeInfo, keys.node(node)) for node in wanted)
    if await registry.compare_and_set(keys.plan, 0, msgspec.json.encode(_Plan(nodes=nodes))) is not None:
        _log.info("first routes planned", nodes=wanted, slot_count=cluster.slot_count)
        if len(nodes) < cluster.replicas:
            _log.warning(
                "FEWER NODES THAN COPIES: each object has as many copies as there are nodes; join nodes to have more",
                nodes=len(nodes),
                replicas=cluster.replicas,
            )
    return True


async def _carry_out(registry: Registry, cluster: ClusterInfo, plan: _Plan, present: Collection[str]) -> None:
    """Create the routes that are not there. A batch that meets another node's work is left to the next look."""
    keys = Keys(cluster.name)
    routes: list[Route] = [
        route
        for route in place(plan.nodes, cluster.slot_count, cluster.replicas)
        if keys.route(route.slot) not in present
    ]
    for start in range(0, len(routes), TRANSACTION_OPS_MAX):
        batch = routes[start : start + TRANSACTION_OPS_MAX]
        await registry.transact(
            [CompareAndSet(key=keys.route(route.slot), expected_revision=0, value=encode(route)) for route in batch]
        )


def _missing(settings: ClusterSettings, snapshot: Snapshot, keys: Keys) -> list[str]:
    present = {entry.key for entry in snapshot.entries}
    return sorted(node for node in set(settings.bootstrap_nodes) if keys.node(node) not in present)


def _waiting_for(settings: ClusterSettings, snapshot: Snapshot, keys: Keys) -> str:
    missing = _missing(settings, snapshot, keys)
    if missing:
        return "the registration of " + ", ".join(missing)
    return "a bootstrap node to make them (this node's bootstrap_nodes is empty)"


def _decode_plan(data: bytes, key: str) -> _Plan:
    try:
        return msgspec.json.decode(data, type=_Plan)
    except (msgspec.DecodeError, ValueError) as error:
        raise RegistryUnavailable(f"{key} does not hold a valid plan: {error}") from error
