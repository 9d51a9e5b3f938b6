"""An object of the archive is never deleted while any copy has, or can still get, a row of it (rfc/0016, "Deleting from the bucket")."""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence

import pytest

from amberblob.errors import ArchiveUnavailable, NotReady, PeerError, PeerUnreachable
from amberblob.wire import Done, Reply, Request
from amberblob.wire_archive import Condemned, CondemnObjects, ReprieveObjects
from archive.state import Part
from node.archive.collection import Action, Answer, Ask, Finish, ObjectCollection, ReadNodes, WriteAsking, WriteDecided
from node.archive.collector import Collector
from node.archive.condemned import CondemnedObjects
from tests.unit.node.archive.condemning_world import MemoryState, World

WORLDS = int(os.environ.get("AMBERBLOB_CONDEMNING_WORLDS", "30"))


@pytest.mark.parametrize("seed", range(WORLDS))
async def test_nothing_that_is_needed_is_deleted(seed):
    world = World(seed)
    await world.run(250)


async def test_the_worlds_do_delete():
    deleted = 0
    for seed in range(6):
        world = World(1000 + seed)
        await world.run(250)
        deleted += len(world.deleted)
    assert deleted > 5


# ---- the decisions

X, Y = (f"packs/1970/01/01/{number:026d}.pack" for number in (1, 2))


def yes(marks: str = "f", *, refused: Sequence[str] = ()) -> Answer:
    return Answer(frozenset(refused), marks)


def asked(machine: ObjectCollection) -> Action:
    assert machine.begin() == WriteAsking((X, Y))
    return machine.written()


def test_all_are_asked_twice_and_then_it_is_deleted():
    machine = ObjectCollection("a", (X, Y), {"a", "b"})
    assert asked(machine) == Ask(("a", "b"), (X, Y))
    assert machine.answered({"a": yes("fa"), "b": yes("fb")}) == ReadNodes()
    assert machine.nodes_read({"a", "b"}) == Ask(("a", "b"), (X, Y))
    assert machine.answered({"a": yes("fa"), "b": yes("fb")}) == WriteDecided((X, Y))
    assert machine.written() == Finish(decided=(X, Y), reprieved=(), nodes=("a", "b"))


def test_what_one_refuses_is_left_and_reprieved_everywhere():
    machine = ObjectCollection("a", (X, Y), {"a", "b"})
    asked(machine)
    assert machine.answered({"a": yes(), "b": yes(refused=[Y])}) == ReadNodes()
    assert machine.nodes_read({"a", "b"}) == Ask(("a", "b"), (X,))
    assert machine.answered({"a": yes(), "b": yes()}) == WriteDecided((X,))
    assert machine.written() == Finish(decided=(X,), reprieved=(Y,), nodes=("a", "b"), refused=((Y, "b"),))


def test_one_that_refuses_the_second_time_is_heard():
    machine = ObjectCollection("a", (X, Y), {"a"})
    asked(machine)
    machine.answered({"a": yes()})
    machine.nodes_read({"a"})
    assert machine.answered({"a": yes(refused=[X, Y])}) == Finish(
        decided=(), reprieved=(X, Y), nodes=("a",), refused=((X, "a"), (Y, "a"))
    )


def test_nodes_that_came_meanwhile_are_asked_and_then_looked_for_again():
    machine = ObjectCollection("a", (X, Y), {"a"})
    asked(machine)
    machine.answered({"a": yes("fa")})
    assert machine.nodes_read({"a", "c"}) == Ask(("c",), (X, Y))
    assert machine.answered({"c": yes("fc")}) == ReadNodes()
    assert machine.nodes_read({"a", "c", "d"}) == Ask(("d",), (X, Y))
    assert machine.answered({"d": yes("fd")}) == ReadNodes()
    assert machine.nodes_read({"a", "d"}) == Ask(("a", "d"), (X, Y)), "one that left need not be asked again"


def lost(machine: ObjectCollection) -> Action:
    machine.answered({"a": yes("fa"), "b": yes("fb")})
    machine.nodes_read({"a", "b"})
    return machine.answered({"a": yes("fa"), "b": yes("another")})


def silent(machine: ObjectCollection) -> Action:
    return machine.answered({"a": yes(), "b": None})


def no_registry(machine: ObjectCollection) -> Action:
    machine.answered({"a": yes(), "b": yes()})
    return machine.nodes_read(None)


def removed(machine: ObjectCollection) -> Action:
    machine.answered({"a": yes(), "b": yes()})
    return machine.nodes_read({"b"})


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (lost, "b lost what it had promised"),
        (silent, "b gave no answer"),
        (no_registry, "registry did not tell"),
        (removed, "a is none of the cluster's nodes"),
    ],
)
def test_in_doubt_nothing_is_deleted(happens, why):
    machine = ObjectCollection("a", (X, Y), {"a", "b"})
    asked(machine)
    action = happens(machine)
    assert isinstance(action, Finish) and why in action.why
    assert (action.decided, action.reprieved, action.nodes) == ((), (X, Y), ("a", "b"))


# ---- a node that is asked


class Rows:
    """A store whose answers can be held back."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.looking = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    def slots(self) -> list[int]:
        return [3, 9]

    async def archive_named(self, slot: int, target_paths: Sequence[str]) -> set[str]:
        found = {name for name in target_paths if slot == 9 and name in self.names}
        self.looking.set()
        await self.go.wait()
        return found


class Asked:
    """A node with its notes, and who was removed."""

    def __init__(self) -> None:
        self.world = World(0)
        self.rows, self.state, self.removed = Rows(), MemoryState(self.world), {"gone"}
        self.condemned = self.again()

    def again(self) -> CondemnedObjects:
        self.condemned = CondemnedObjects(self.rows, self.state, lambda name: name in self.removed)  # type: ignore[arg-type]
        return self.condemned


@pytest.fixture
async def node():
    return Asked()


async def test_an_object_with_rows_is_refused_and_another_is_barred_for_good(node):
    assert not node.condemned.bars(X)
    node.rows.names.add(Y)
    refused, marks = await node.condemned.condemn([X, Y], "n1/1")
    assert refused == (Y,) and marks == node.state.identity
    assert node.condemned.bars(X) and not node.condemned.bars(Y)
    again = node.again()
    assert again.bars(X) and not again.bars(Y) and len(again) == 1


async def test_no_row_comes_in_between_the_look_and_the_mark(node):
    node.rows.go.clear()
    answer = asyncio.create_task(node.condemned.condemn([X], "n1/1"))
    await node.rows.looking.wait()
    assert node.condemned.bars(X) and not node.condemned.bars(Y)
    node.rows.go.set()
    assert (await answer)[0] == ()
    assert node.condemned.bars(X)


async def test_a_question_that_fails_bars_nothing(node):

    async def broken(slot: int, names: Sequence[str]) -> set[str]:
        raise OSError("broken")

    node.rows.archive_named = broken
    with pytest.raises(OSError, match="broken"):
        await node.condemned.condemn([X], "n1/1")
    assert not node.condemned.bars(X) and not node.state.kept


async def test_rows_that_are_on_their_way_from_here_count(node):
    await node.condemned.condemn([Y], "n1/1")
    with node.condemned.using([X, Y]) as may:
        assert may == {X}
        with node.condemned.using([X]):
            pass
        assert (await node.condemned.condemn([X], "n1/2"))[0] == (X,)
    assert (await node.condemned.condemn([X], "n1/2"))[0] == ()


async def test_tokens_of_nodes_that_are_gone_do_not_count(node):
    await node.condemned.condemn([X], "n1/1")
    await node.condemned.condemn([X, Y], "n2/1")
    node.removed.add("n2")
    assert node.condemned.bars(X) and not node.condemned.bars(Y)
    node.removed.add("n1")
    assert not node.condemned.bars(X)

    def unknown(name: str) -> bool:
        raise NotReady("no routes yet")

    blind = CondemnedObjects(node.rows, node.state, unknown)
    assert blind.bars(X) and blind.bars(Y) and not blind.bars("packs/other")


async def test_a_node_that_is_forgotten_leaves_no_token(node):
    """Else rows of what it had asked about would be refused here for ever: nobody is left to reprieve it."""
    await node.condemned.condemn([X], "n1/1")
    await node.condemned.condemn([X, Y], "n2/1")
    await node.condemned.let_go()
    node.removed.add("n2")
    await node.condemned.let_go()
    node.removed.discard("n2")
    assert node.condemned.bars(X) and not node.condemned.bars(Y)
    again = node.again()
    assert again.bars(X) and not again.bars(Y) and len(again) == 1


async def test_a_node_that_is_taken_to_be_gone_is_refused(node):
    """It may have come back, and asks twice: rows may not be taken in between since its token does not count here yet."""
    refused, marks = await node.condemned.condemn([X], "gone/1")
    assert refused == (X,) and marks == node.state.identity and not node.state.kept
    node.removed.clear()
    assert not node.condemned.bars(X)
    assert (await node.condemned.condemn([X], "gone/1"))[0] == ()
    assert node.condemned.bars(X)


async def test_only_the_last_token_frees_an_object(node):
    await node.condemned.condemn([X, Y], "n1/1")
    await node.condemned.condemn([X], "n2/1")
    await node.condemned.reprieve([], "n1/1")
    assert node.condemned.bars(X) and not node.condemned.bars(Y)
    await node.condemned.reprieve([X], "n2/1")
    assert not node.condemned.bars(X) and not node.state.kept


async def test_a_question_that_comes_after_its_reprieve_is_refused(node):
    await node.condemned.reprieve([X], "n1/1")
    assert (await node.condemned.condemn([X, Y], "n1/1"))[0] == (X,)
    assert not node.condemned.bars(X)
    assert (await node.condemned.condemn([X], "n1/2"))[0] == ()


@pytest.mark.parametrize("name", ["meta/cluster/x", "s3://bucket/key", "packs/x", "", "chunks/../x"])
async def test_what_is_no_object_of_chunks_is_never_promised(node, name):
    assert (await node.condemned.condemn([name], "n1/1"))[0] == (name,)
    assert not node.state.kept


# ---- the node that collects


class Others:
    """Other nodes, as one node sees them that collects."""

    def __init__(self) -> None:
        self.world = World(0)
        self.state = MemoryState(self.world)
        self.log: list[tuple[str, ...]] = []
        self.down: set[str] = set()
        self.refuse: set[str] = set()
        self.broken = False
        self.files = {"n1": "f1", "n2": "f2"}
        self.collector = Collector(
            node="n1", mint=lambda: self.world.fresh("run"), state=self.state,  # type: ignore[arg-type]
            known_nodes=lambda: {"n1", "n2"}, newest_nodes=self.newest, ask=self.ask, delete=self.delete,
        )  # fmt: skip

    async def newest(self) -> set[str]:
        self.log.append(("newest",))
        return {"n1", "n2"}

    async def ask(self, nodes: Iterable[str], request: Request) -> Mapping[str, Reply | PeerError]:
        replies: dict[str, Reply | PeerError] = {}
        for node in nodes:
            if node in self.down:
                replies[node] = PeerUnreachable(node)
                continue
            assert isinstance(request, CondemnObjects | ReprieveObjects)
            self.log.append((type(request).__name__, node, *request.names))
            if isinstance(request, CondemnObjects):
                replies[node] = Condemned(refused=tuple(self.refuse) if node == "n2" else (), marks=self.files[node])
            else:
                replies[node] = Done()
        return replies

    async def delete(self, names: Sequence[str]) -> None:
        if self.broken:
            raise ArchiveUnavailable("the bucket is away")
        self.log.append(("delete", *names))

    def parts(self) -> set[tuple[str, Part]]:
        return {(name, part) for name, _, part in self.state.kept}


@pytest.fixture
async def others():
    return Others()


async def test_it_deletes_what_nobody_refers_to(others):
    others.refuse = {Y}
    outcome = await others.collector.collect([X, Y])
    assert (outcome.deleted, dict(outcome.refused), outcome.why) == ((X,), {Y: "n2"}, "")
    assert ("delete", X) in others.log
    assert others.log[-2:] == [("ReprieveObjects", "n1", Y), ("ReprieveObjects", "n2", Y)]
    assert not others.state.kept and await others.collector.go_on() == []


async def test_it_writes_down_whom_it_asks_before_it_asks(others):
    real = others.ask

    async def ask(nodes, request):
        if isinstance(request, CondemnObjects):
            assert others.parts() == {(X, Part.ASKING)}
        return await real(nodes, request)

    others.collector._ask = ask
    assert (await others.collector.collect([X])).deleted == (X,)


async def test_a_node_that_is_away_saves_everything_and_is_reprieved_later(others):
    others.down = {"n2"}
    outcome = await others.collector.collect([X])
    assert outcome.deleted == () and outcome.why == "n2 gave no answer"
    assert others.parts() == {(X, Part.ASKING)}
    assert "n2 did not answer" in (await others.collector.go_on())[0]
    others.down = set()
    assert await others.collector.go_on() == []
    assert ("ReprieveObjects", "n2", X) in others.log and not others.state.kept
    assert not any(entry[0] == "delete" for entry in others.log)


async def test_what_was_decided_is_deleted_however_late_and_never_reprieved(others):
    others.broken = True
    outcome = await others.collector.collect([X])
    assert outcome.deleted == () and "the bucket is away" in outcome.why
    assert others.parts() == {(X, Part.DECIDED)}
    assert "the bucket is away" in (await others.collector.go_on())[0]
    others.broken = False
    assert await others.collector.go_on() == []
    assert ("delete", X) in others.log and not others.state.kept
    assert not any(entry[0] == "ReprieveObjects" for entry in others.log)


async def test_marks_that_were_lost_meanwhile_save_everything(others):
    real = others.newest

    async def newest():
        others.files["n2"] = "another file"
        return await real()

    others.collector._newest_nodes = newest
    outcome = await others.collector.collect([X])
    assert outcome.deleted == () and "n2 lost" in outcome.why
    assert ("ReprieveObjects", "n2", X) in others.log and not others.state.kept


async def test_an_answer_without_the_name_of_its_file_does_not_count(others):
    others.files["n2"] = ""
    assert (await others.collector.collect([X])).why == "n2 gave no answer"
