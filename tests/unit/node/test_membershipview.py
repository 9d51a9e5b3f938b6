"""What /cluster tells of slots on their way."""

from __future__ import annotations

import msgspec
import pytest

from amberblob.wire_repair import SlotHealth
from node.membershipview import membership_json, stage_of
from registry.moves import to_joint, with_learner
from registry.routes import ClusterInfo, Member, Membership, Move, NodeInfo, NodeState, Route, RouteTable

NODES = ("n1", "n2", "n3", "n4")


def route(slot: int = 0) -> Route:
    return Route(slot=slot, epoch=1, voters=tuple(Member(node, "d" + node) for node in NODES[:3]))


def move(*nodes: str, slot: int = 0) -> Move:
    return Move(slot=slot, generation=2, nodes=nodes)


def table(*routes: Route, moves: dict[int, Move], membership: Membership | None = None) -> RouteTable:
    cluster = ClusterInfo(
        cluster_id="c",
        name="c",
        slot_count=len(routes),
        replicas=3,
        chunk_bytes=1 << 20,
        format_version=1,
        created_at_ms=0,
    )
    nodes = {
        node: NodeInfo(
            node_id=node,
            disk_id="d" + node,
            zone="",
            host="",
            http_address="",
            peer_address="",
            capacity_bytes=1,
            version="0",
            started_at_ms=0,
        )
        for node in NODES
    }
    return RouteTable(cluster=cluster, routes=routes, nodes=nodes, moves=moves, membership=membership)


def health(slot: int, wanted_bytes: int) -> SlotHealth:
    return SlotHealth(
        slot=slot,
        root=bytes(32),
        objects=1,
        undecided=0,
        wanted=1,
        wanted_bytes=wanted_bytes,
        damaged=0,
        unsynced=True,
        compared_ms=0,
        scrubbed_ms=0,
    )


def test_stages():
    wanted = move("n1", "n2", "n4")
    learning = with_learner(route(), "n4", "i4")
    joint = to_joint(learning, wanted.nodes)

    def everybody(node: str) -> bool:
        return True

    def not_n4(node: str) -> bool:
        return node != "n4"

    assert stage_of(route(), wanted, everybody) == ("waiting", "")
    assert stage_of(route(), wanted, not_n4) == ("waiting", "n4 cannot be reached")
    assert stage_of(learning, wanted, everybody) == ("learning", "")
    assert stage_of(learning, wanted, not_n4) == ("learning", "n4 cannot be reached")
    assert stage_of(joint, wanted, not_n4) == ("joint", "n4 cannot be reached")
    assert stage_of(learning, move("n1", "n2", "n3"), everybody) == ("leaving", "")


def test_what_is_left():
    learning = with_learner(route(0), "n4", "i4")
    resting = msgspec.structs.replace(route(2), slot=2)
    membership = Membership(
        generation=2,
        nodes={"n1": NodeState.ACTIVE, "n3": NodeState.DRAINING, "n4": NodeState.ACTIVE},
        moves=5,
        action="join n4",
    )
    moves = {0: move("n1", "n2", "n4"), 1: move("n1", "n2", "n4", slot=1)}
    told = {"n4": {0: health(0, 500)}, "n3": {0: health(0, 10_000)}}
    found = membership_json(
        table(learning, route(1), resting, moves=moves, membership=membership),
        told,
        reachable=lambda node: True,
        rate_bytes_per_s=100.0,
    )
    assert found["nodes"] == {"n1": "active", "n2": "spare", "n3": "draining", "n4": "active"}
    assert found["action"] == "join n4"
    left = found["moves"]
    assert (left["total"], left["left"], left["stages"]) == (5, 2, {"learning": 1, "waiting": 1})
    assert left["bytes_left"] == 500, "what a voter lacks is not the move's"
    assert left["seconds_left"] == pytest.approx(5.0)
    assert [row["slot"] for row in left["slots"]] == [0, 1]


def test_before_the_first_change_the_nodes_of_routes_are_active():
    found = membership_json(table(route(), moves={}), {}, reachable=lambda node: True, rate_bytes_per_s=None)
    assert found["nodes"] == {"n1": "active", "n2": "active", "n3": "active", "n4": "spare"}
    assert found["moves"]["left"] == 0
    assert found["moves"]["seconds_left"] is None
