"""The judgement of a world: progress after the healing, and that nothing of what was promised is missing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from amberblob.errors import AmberError, NotReady, OutcomeUnknown
from archive.policy import Policy
from sim.agreement import agree
from sim.archivejudge import judge_archive
from sim.clients import Client, NoAnswer, NotServing, Violation
from sim.history import Call, Seen
from sim.linearizability import search
from sim.specification import ANY_VERSION

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.world import World

READABLE_S = 120.0
"""Within this virtual time every version can be read through a node, whether its bytes are on a disk or in the archive."""


class WrongHistory(Violation):
    """Of one path; the story tells of that one only."""

    def __init__(self, path: str, text: str, until_s: float | None = None) -> None:
        super().__init__(text)
        self.path = path
        self.until_s = until_s
        """What began later has nothing to do with it."""


def without_numbers(call: Call) -> Call:
    """The call with what is not told by versions that come and go: whether there is a head, and its content.

    Numbers jump when stubs are forgotten, and the rows of old versions vanish at their time.
    """
    result = call.result
    if result is not None:
        match call.kind:
            case "put" | "delete":
                result = ("done",) if result[0] == "ok" else result[:1]
            case "read" | "read-all":
                head = result[1] if call.kind == "read" else result[1][0]
                result = ("read", Seen(ANY_VERSION if head.version else 0, head.etag))
    return replace(call, kind="read" if call.kind == "read-all" else call.kind, result=result)


async def judge(world: World) -> None:
    """Wait for progress, then check everything. Raises: Violation."""
    from sim.world import PROGRESS_S

    began = world.loop.time()
    try:
        async with asyncio.timeout(PROGRESS_S):
            await _all_serve(world)
            for number, path in enumerate(_paths(world)):
                count = len(world.machines)
                # Each path is written through one node and read through all; each node writes some.
                for step in range(count):
                    await _works(world, world.machines[(number + step) % count], path, writes=step == 0)
    except TimeoutError:
        waiting = {machine.name: machine.error for machine in world.machines if not machine.serving}
        raise Violation(
            f"no progress within {PROGRESS_S:g} s after everything was healed; not serving: {waiting}"
        ) from None
    world.event(f"everything works {world.loop.time() - began:.1f} s after the healing")
    await agree(world)
    if world.archivists is not None:
        await world.archivists.finale()
        await judge_archive(world)
        for machine in world.machines:
            await _everything_is_readable(world, machine)
    await _listings(world)
    await _rows(world)
    for machine in world.machines:
        machine.count()
    for machine in world.machines:
        judge_losses(machine)
    for path in _paths(world):
        _history(world, path)


def judge_losses(machine: Machine) -> None:
    """A database is given up for damage only where there was damage; at the end of every life. Raises: Violation."""
    if lost := machine.unexplained_losses():
        raise Violation(f"{machine.name} gave up the databases of slots {lost} although nobody damaged them")


def _paths(world: World) -> list[str]:
    return sorted({call.path for call in world.calls})


async def _all_serve(world: World) -> None:
    while not all(machine.serving and machine.store and not machine.store.failed for machine in world.machines):
        await asyncio.sleep(0.1)


async def _works(world: World, machine: Machine, path: str, *, writes: bool, every: bool = False) -> None:
    """A write, perhaps, and a read of everything, through this node; ``every``: of the bytes of every version as well."""
    client = Client(world, world.library.random)
    if writes:
        number = len(world.calls) + 1
        put = Call(number, path, "put", world.loop.time(), write_id=f"w{world.seed}-{number}")
        world.calls.append(put)
        await _until_answered(world, client, put, machine)
    look = Call(-len(world.calls), path, "read-all", world.loop.time())
    world.calls.append(look)
    await _until_answered(world, client, look, machine)
    assert look.result is not None
    for number, etag, live in look.result[1][1]:
        if live and (((writes or every) and not world.shape.expires) or number == look.result[1][0].version):
            await _bytes(world, client, machine, path, number, etag)


async def _everything_is_readable(world: World, machine: Machine) -> None:
    """Of each path what is live is read through this node, once more."""
    try:
        async with asyncio.timeout(READABLE_S):
            for path in _paths(world):
                await _works(world, machine, path, writes=False, every=True)
    except TimeoutError:
        raise Violation(f"not everything is readable through {machine.name} once the archive was judged") from None


async def _until_answered(world: World, client: Client, call: Call, machine: Machine) -> None:
    """Ask this one node until it answers; the next one, if it was struck off and says that it does not take such a PUT any more."""
    from amberblob.ids import content_hash

    body = world.library.content(call.number, 0.0) if call.kind == "put" else b""
    if call.kind == "put":
        call.content = content_hash(body)
    while call.result is None:
        call.tries += 1
        told = await client._try(call, machine, body)
        call.story += (f"{machine.name}: {told}",)
        if call.result is None:
            if told in _NOT_TAKEN and _takes_none_archived_first(world, machine, call):
                machine = world.machines[(world.machines.index(machine) + 1) % len(world.machines)]
            await asyncio.sleep(0.2)
    call.ended = world.loop.time()
    world.note(f"end {call}")
    if call.kind == "put" and call.result[0] != "ok":
        raise WrongHistory(call.path, f"a plain PUT through {machine.name} after the healing: {call}")


_NOT_TAKEN = (NotReady.code, OutcomeUnknown.__name__)
"""What a node says that does not take a PUT; the latter if an earlier try may have been applied."""


def _takes_none_archived_first(world: World, machine: Machine, call: Call) -> bool:
    """Whether it is a PUT that is archived first, and the node was struck off (rfc/0016, "Deleting from the bucket", 5)."""
    archive, table = world.shape.archive, world.table
    return (
        call.kind == "put"
        and archive is not None
        and Policy.of(archive.section()).write_through(call.path)
        and table is not None
        and machine.name not in table.nodes
    )


async def _bytes(world: World, client: Client, machine: Machine, path: str, number: int, etag: str) -> None:
    while True:
        try:
            view = await client.at(
                machine, lambda objects: objects.lookup(path, version=number, at_ms=None, consistency="strong")
            )
            if view.version.etag != etag:
                raise WrongHistory(
                    path, f"{path}@{number} has the etag {etag} in the list and {view.version.etag} alone"
                )
            await client.at(machine, partial(client.read_bytes, view=view))
            return
        except (NotServing, NoAnswer, AmberError):
            await asyncio.sleep(0.2)


async def _listings(world: World) -> None:
    """Each node lists exactly the paths that have a live head."""
    for machine in world.machines:
        client = Client(world, world.library.random)

        async def page(client: Client = client, machine: Machine = machine) -> Any:
            while True:
                try:
                    return await client.at(
                        machine,
                        lambda objects: objects.list(
                            prefix="", delimiter="", limit=1000, start="", tombstoned=False, at_ms=None
                        ),
                    )
                except (NotServing, NoAnswer, AmberError):
                    await asyncio.sleep(0.2)

        async with asyncio.timeout(60.0):
            listed = {item.path: (item.version, item.etag) for item in (await page()).objects}
        for path in _paths(world):
            last = [call for call in world.calls if call.path == path and call.number < 0][-1]
            assert last.result is not None
            rows = last.result[1][1]
            head = next(((number, etag) for number, etag, live in rows if live), None)
            if listed.get(path) != head:
                raise WrongHistory(path, f"{machine.name} lists {path} as {listed.get(path)}, and its head is {head}")


async def _rows(world: World) -> None:
    """No version of a path is two blobs, on whatever disk."""
    named: dict[tuple[str, int], tuple[str, str]] = {}
    for machine in world.machines:
        store = machine.store
        assert store is not None and world.table is not None
        for path in _paths(world):
            slot = world.table.slot_of(path)
            if slot not in store.slots():
                continue
            assert machine.process is not None
            asking = world.loop.create_task(store.rows(slot, path), context=machine.process.context())
            for row in await asking:
                blob_id, first = named.setdefault((path, row.version.version), (row.version.blob_id, machine.name))
                if blob_id != row.version.blob_id:
                    raise WrongHistory(
                        path,
                        f"{path}@{row.version.version} is blob {blob_id} on {first} and "
                        f"{row.version.blob_id} on {machine.name}",
                    )


def _history(world: World, path: str) -> None:
    calls = [call for call in world.calls if call.path == path]
    last = [call for call in calls if call.number < 0][-1]
    assert last.result is not None
    rows = {number: etag for number, etag, _ in last.result[1][1]}
    expires = world.shape.expires
    for call in calls:
        if call.kind == "put" and call.result is not None and call.result[0] == "ok":
            number = call.result[1]
            if rows.get(number, call.content if expires else None) != call.content:
                raise WrongHistory(
                    path, f"{path}@{number} was acknowledged as {call.content}, and at the end it is {rows.get(number)}"
                )
            world.fired["acknowledged versions"] += 1
    found = search([without_numbers(call) for call in calls] if expires else calls)
    world.fired["histories"] += 1
    if found.verdict is None:
        world.fired["searches given up"] += 1
    elif not found.verdict:
        until_s = found.stuck.ended if found.stuck is not None else None
        raise WrongHistory(path, f"no order of the operations explains what {found.stuck} was told", until_s)
