"""What a seed draws before anything happens: how large the world is, how it is used, and what goes wrong in it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from sim.archiveshape import FAULTS_OF_ARCHIVES, ArchiveShape

FAULTS = (
    "kill",
    "kill all",
    "power cut",
    "power cut all",
    "restart",
    "pause",
    "isolate",
    "cut one way",
    "split",
    "slow node",
    "slow disk",
    "full disk",
    "sync error",
    "clock jump",
    "bit rot",
    "database damage",
    "bad network",
)

FAULTS_OF_COPIES = ("new disk", "registry down")
"""Drawn after all others, so that the worlds of older seeds stay what they were but for these."""

FAULTS_OF_MEMBERS = ("join", "drain", "replace", "remove", "two operators", "killed in joint")
"""Drawn after those. What operators do to the set of nodes, and who dies of it; worlds that know one of these have nodes to spare."""

ARCHIVES = 0.25
"""The part of all worlds in which an archive is at work. Drawn after all that."""

ARCHIVE_OPERATIONS_MAX = 120
"""Of the clients in such a world: there is more to do beside them."""

COURSE_S_MIN = 12.0
"""How long they take for them at least, about."""


OPEN_DATABASES_MAX = 8
"""More than a node has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Everything about a world that is not the course of events.

    Attributes:
        faults: the kinds that this world knows; one comes about every ``fault_gap_s``.
        retries: how many tries a client gives a write.
        think_s: a client's mean pause between operations.
        staged: the part of all bodies that are too large to travel in messages.
        routes_late_s: how late a node hears of a change of the routes, on average.
        expires: superseded and deleted versions are collected after ``keep_s``, and the stubs of deleted paths. Then clients
            do nothing that needs old versions: what they would be told is a matter of time.
        spares: nodes that hold nothing at first.
        move_lost_s: after which silence a new member is given up.
        archive: None: there is none.
    """

    nodes: int
    replicas: int
    slots: int
    write_quorum: int
    read_quorum: int
    clients: int
    operations: int
    paths: int
    liked: str
    staged: float
    think_s: float
    retries: int
    conditional: float
    faults: tuple[str, ...]
    fault_gap_s: float
    fault_s: float
    loss: float
    doubling: float
    latency_s: float
    spikes: float
    disk_latency_s: float
    strict_disk: bool
    registers_clean_max: int
    open_databases_max: int
    linger_s: float
    body_cache_bytes: int
    follow_every_s: float
    compare_every_s: float
    scrub_s: float
    routes_late_s: float
    expires: bool
    keep_s: float
    keep_versions: int
    spares: int = 0
    move_lost_s: float = 60.0
    archive: ArchiveShape | None = None

    @classmethod
    def draw(cls, random: Random, operations: int) -> Shape:
        """The shape of a seed's world."""
        nodes = random.choice((3, 3, 3, 3, 4, 5))
        replicas = 5 if nodes == 5 and random.random() < 0.5 else 3
        majority = replicas // 2 + 1
        known = tuple(fault for fault in FAULTS if random.random() < 0.45) or (random.choice(FAULTS),)
        # A copy whose database was lost does not vote again before it is rebuilt: nobody may be wanted whom there is not.
        votes = replicas - ("database damage" in known)
        shape = cls(
            nodes=nodes,
            replicas=replicas,
            slots=random.choice((1, 2, 4)),
            write_quorum=majority if random.random() < 0.8 else random.randint(majority, votes),
            read_quorum=0 if random.random() < 0.9 else random.randint(majority, votes),
            clients=random.choice((2, 4, 8)),
            operations=operations,
            paths=random.choice((1, 3, 6, 12)),
            liked=random.choice(("put", "delete", "restore", "read", "mixed")),
            staged=random.choice((0.0, 0.05, 0.25)),
            think_s=random.choice((0.02, 0.2, 0.8)),
            retries=random.choice((1, 3, 5)),
            conditional=random.choice((0.1, 0.3, 0.6)),
            faults=known,
            fault_gap_s=random.choice((0.3, 1.5, 5.0)),
            fault_s=random.choice((0.1, 2.0, 12.0)),
            loss=random.choice((0.0, 0.0, 0.01, 0.1)),
            doubling=random.choice((0.0, 0.0, 0.05)),
            latency_s=random.choice((0.0003, 0.002, 0.02)),
            spikes=random.choice((0.0, 0.0, 0.03)),
            disk_latency_s=random.choice((0.0002, 0.002, 0.01)),
            strict_disk=random.random() < 0.5,
            registers_clean_max=random.choice((1, 8, 1000)),
            open_databases_max=random.choice((1, 2, OPEN_DATABASES_MAX)),
            linger_s=random.choice((0.05, 1.0, 8.0)),
            body_cache_bytes=random.choice((0, 5_000, 1 << 20)),
            follow_every_s=random.choice((2.0, 5.0)),
            compare_every_s=random.choice((10.0, 30.0)),
            scrub_s=random.choice((60.0, 600.0)),
            routes_late_s=random.choice((0.01, 0.3, 3.0)),
            expires=random.random() < 0.3,
            keep_s=random.choice((0.0, 0.0, 2.0)),
            keep_versions=random.choice((0, 0, 1, 2)),
        )
        more = tuple(fault for fault in FAULTS_OF_COPIES if random.random() < 0.3)
        if "new disk" in more:
            votes = replicas - 1
        members = tuple(fault for fault in FAULTS_OF_MEMBERS if random.random() < 0.3)
        spares, move_lost_s = random.choice((1, 1, 2)), random.choice((5.0, 15.0, 60.0))
        of_archive: tuple[str, ...] = ()
        archive = None
        if random.random() < ARCHIVES:
            of_archive = tuple(fault for fault in FAULTS_OF_ARCHIVES if random.random() < 0.4)
            archive = ArchiveShape.draw(random)
            operations = min(operations, ARCHIVE_OPERATIONS_MAX)
            shape = replace(
                shape,
                staged=max(shape.staged, 0.15),
                # A job takes seconds: where the clients are through before, or machines do little but start, it comes to nothing.
                think_s=max(shape.think_s, COURSE_S_MIN * shape.clients / operations),
                fault_gap_s=max(shape.fault_gap_s, 0.8, shape.fault_s / 4),
            )
        return replace(
            shape,
            faults=(*known, *more, *members, *of_archive),
            archive=archive,
            operations=operations,
            spares=spares if members else 0,
            move_lost_s=move_lost_s,
            write_quorum=min(shape.write_quorum, votes),
            read_quorum=min(shape.read_quorum, votes),
            # In a third of the worlds a node that has all slots closes some database for each that it opens. With fewer open, or in
            # more worlds, that would be half of the time of all worlds for nothing new.
            open_databases_max=max(1, shape.slots - 1) if shape.open_databases_max == 1 else OPEN_DATABASES_MAX,
        )

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return "/".join(value) if isinstance(value, tuple) else str(value)

        return " ".join(f"{item.name}={shown(getattr(self, item.name))}" for item in fields(self))


KINDS = {
    "put": {"put": 8, "delete": 1, "delete-version": 1, "restore": 1, "read": 3, "read-version": 1, "read-all": 1},
    "delete": {"put": 4, "delete": 3, "delete-version": 3, "restore": 1, "read": 3, "read-version": 1, "read-all": 1},
    "restore": {"put": 4, "delete": 3, "delete-version": 2, "restore": 5, "read": 3, "read-version": 1, "read-all": 1},
    "read": {"put": 4, "delete": 1, "delete-version": 0, "restore": 0, "read": 7, "read-version": 1, "read-all": 1},
    "expiring": {"put": 5, "delete": 3, "read": 5},
    "mixed": {"put": 5, "delete": 1, "delete-version": 1, "restore": 1, "read": 3, "read-version": 1, "read-all": 1},
}
