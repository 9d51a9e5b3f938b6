import msgspec
import pytest

from amberblob.errors import NotReady, RegistryUnavailable
from registry.cache import load_cache, save_cache
from registry.routes import (
    ClusterInfo,
    Member,
    NodeInfo,
    Route,
    RouteTable,
    advance,
    build_table,
    decode,
    encode,
)

A, B, C, D = (Member(name, f"disk-{name}") for name in "abcd")


def info(name: str, disk: str | None = None) -> NodeInfo:
    return NodeInfo(
        node_id=name,
        disk_id=disk or f"disk-{name}",
        zone="z",
        host="",
        http_address=f"{name}:7700",
        peer_address=f"{name}:7800",
        capacity_bytes=1,
        version="0",
        started_at_ms=0,
    )


def table(*epochs: int, voters=(A, B, C), nodes="abc", cluster_id="01") -> RouteTable:
    cluster = ClusterInfo(
        cluster_id=cluster_id,
        name="amberblob",
        slot_count=len(epochs),
        replicas=3,
        chunk_bytes=8,
        format_version=1,
        created_at_ms=0,
    )
    routes = tuple(Route(slot=slot, epoch=epoch, voters=voters) for slot, epoch in enumerate(epochs))
    return RouteTable(cluster=cluster, routes=routes, nodes={name: info(name) for name in nodes})


@pytest.mark.parametrize(("voters", "majority"), [((A,), 1), ((A, B), 2), ((A, B, C), 2), ((A, B, C, D), 3)])
def test_majority(voters, majority):
    route = Route(slot=0, epoch=1, voters=voters)
    assert (route.majority, route.next_majority) == (majority, 0)
    names = [voter.node for voter in voters]
    assert route.is_quorum(names[:majority])
    assert not route.is_quorum([*names[: majority - 1], "stranger"])


def test_a_joint_route_needs_both_majorities():
    route = Route(slot=0, epoch=2, voters=(A, B, C), state="joint", next_voters=(B, C, D))
    assert (route.majority, route.next_majority) == (2, 2)
    assert route.is_quorum({"b", "c"})
    assert not route.is_quorum({"a", "b"})
    assert route.all_nodes == ("a", "b", "c", "d")
    assert route.is_voter("d", "disk-d")


def test_another_disk_has_no_vote():
    route = Route(slot=0, epoch=1, voters=(A, B, C), learners=(D,))
    assert route.is_voter("a", "disk-a")
    assert not route.is_voter("a", "another disk")
    assert not route.is_voter("d", "disk-d")
    changed = msgspec.structs.replace(table(1), nodes={**table(1).nodes, "a": info("a", "new")})
    assert not changed.votes(0, "a")
    assert changed.votes(0, "b")
    assert not changed.votes(0, "stranger")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 0},
        {"slot": -1},
        {"voters": ()},
        {"voters": (A, A)},
        {"state": "joint"},
        {"next_voters": (A, B, C)},
    ],
)
def test_an_impossible_route_is_refused(wrong):
    with pytest.raises(ValueError):
        Route(**{"slot": 0, "epoch": 1, "voters": (A, B, C), **wrong})


def test_codec():
    for value in (table(1, 2), table(1).routes[0], info("a"), table(1).cluster):
        assert decode(encode(value), type(value), "here") == value
    assert decode(encode(table(1).routes[0])[:-1] + b',"later":1}', Route, "here") == table(1).routes[0]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"slot":0,"epoch":0,"voters":[{"node":"a","incarnation":"b"}]}', b"\xff"]
)
def test_what_cannot_be_read_is_told(data):
    with pytest.raises(RegistryUnavailable, match="amberblob/routes/00000"):
        decode(data, Route, "amberblob/routes/00000")


def test_a_table_is_complete_or_not_at_all():
    whole = table(1, 1)
    routes = dict(enumerate(whole.routes))
    assert build_table(whole.cluster, routes, whole.nodes) == whole
    del routes[0]
    assert build_table(whole.cluster, routes, whole.nodes) is None
    with pytest.raises(ValueError):
        RouteTable(cluster=whole.cluster, routes=whole.routes[:1], nodes={})


def test_lookups():
    t = table(*[1] * 16)
    assert t.route_of("some/path") is t.routes[t.slot_of("some/path")]
    assert t.slots_of("a") == tuple(range(16))
    assert t.slots_of("d") == ()
    assert t.node("a").peer_address == "a:7800"
    with pytest.raises(NotReady, match="Node d is not registered"):
        t.node("d")


def test_advance_never_goes_back():
    seen = table(3, 1, 2)
    read = table(2, 4, 2, voters=(A, B, D), nodes="abd")
    result = advance(seen, read)
    assert result.epochs() == (3, 4, 2)
    assert [route.voters[2] for route in result.routes] == [C, D, C]
    assert set(result.nodes) == set("abcd"), "a node that a kept route names stays known"
    assert advance(None, read) is read


def test_advance_refuses_another_cluster():
    with pytest.raises(RegistryUnavailable, match="cluster 02, this node belongs to 01"):
        advance(table(1), table(1, cluster_id="02"))


def test_cache(tmp_path):
    path = tmp_path / "routes.json"
    assert load_cache(path) is None
    save_cache(path, table(1))
    save_cache(path, table(2))
    assert load_cache(path) == table(2)
    assert [file.name for file in tmp_path.iterdir()] == ["routes.json"]
    path.write_bytes(b"{")
    assert load_cache(path) is None


def test_a_cache_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "routes.json"
    save_cache(path, table(1))
    (tmp_path / "routes.json.tmp").mkdir()
    with pytest.raises(OSError):
        save_cache(path, table(2))
    assert load_cache(path) == table(1)
