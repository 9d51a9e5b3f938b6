"""Clients: they ask any node, repeat elsewhere what got no answer, and write down what they were told."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from amberblob.errors import (
    AmberError,
    ArchiveUnavailable,
    DiskFull,
    InsufficientStorage,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
    VersionConflict,
)
from amberblob.ids import content_hash
from amberblob.limits import INLINE_BYTES_MAX
from node.http.writes import outcome_of
from node.objects.service import Objects
from node.protocol.operations import NO_CONDITIONS, Conditions
from node.service import ObjectView, PutOptions
from sim.history import READS, Call, Seen
from sim.machine import Machine
from sim.shape import KINDS

if TYPE_CHECKING:
    from sim.world import World

T = TypeVar("T")

PATIENCE_S = 15.0
"""As the real client: longer than a node works on a request, so that a repeated write never meets its first try."""

SHARED = 2
"""How many contents large bodies share."""

NOTHING_APPLIED = (NotReady, QuorumUnavailable, InsufficientStorage, DiskFull, ArchiveUnavailable)


class Violation(AssertionError):
    """A promise was broken."""


class NotServing(Exception):
    """Nobody listens there: certainly nothing happened."""


class NoAnswer(Exception):
    """The node went away, or the client lost its patience: something may have happened."""


@dataclass
class Library:
    """What the clients of a world have in common: every content ever sent, and what is known to exist.

    Attributes:
        shares: large bodies have chunks in common, which come again after a while: an archive has each once.
    """

    random: Random
    shares: bool = False
    contents: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def content(self, number: int, staged: float, shared: bytes | None = None) -> bytes:
        """A body of its own for each put; ``shared``: 8 bytes that the first chunk of a large one repeats."""
        random = self.random
        mark = b"%08d" % number
        if random.random() < staged:
            size = INLINE_BYTES_MAX + random.choice((1, 40_000, 140_000))
        else:
            size = random.choice((8, 60, 900, 5_000))
        body = mark + mark * (size // 8)
        body = body[:size] if size >= 8 else mark
        if self.shares and size > INLINE_BYTES_MAX:
            # The rest, of 8 bytes at least, makes it another one.
            shared = shared or b"shared%02d" % (number % SHARED)
            body = shared * (INLINE_BYTES_MAX // 8) + mark + body[INLINE_BYTES_MAX + 8 :]
        self.contents[content_hash(body)] = body
        return body

    def some_version(self, path: str) -> int:
        """One that exists, most of the time."""
        known = self.versions.get(path)
        return self.random.choice(known)[0] if known and self.random.random() < 0.9 else self.random.randint(1, 9)

    def conditions(self, path: str) -> Conditions:
        """A condition that may hold or not."""
        random = self.random
        etags = [etag for _, etag in self.versions.get(path, [])[-3:]]
        return random.choice(
            (
                Conditions(absent=True),
                Conditions(etags=("*",)),
                Conditions(version=random.choice((0, self.some_version(path)))),
                Conditions(etags=tuple(random.sample(etags, min(2, len(etags)))) or ("*",)),
                Conditions(version=self.some_version(path)),
            )
        )


class Client:
    """One client. Belongs to no node's process."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random

    async def run(self) -> None:
        """Do operations until there are enough."""
        world, random = self._world, self._random
        while world.operations_left > 0:
            world.operations_left -= 1
            await asyncio.sleep(random.expovariate(1.0) * world.shape.think_s)
            await self.perform(self.draw())

    def draw(self) -> Call:
        """The next operation."""
        world, random, shape = self._world, self._random, self._world.shape
        weights = KINDS["expiring" if shape.expires else shape.liked]
        kind = random.choices(list(weights), list(weights.values()))[0]
        number = len(world.calls) + 1
        path = f"p{random.randrange(shape.paths)}"
        call = Call(number, path, kind, world.loop.time())
        if kind in ("delete-version", "read-version") or (kind == "restore" and random.random() < 0.5):
            call.version = world.library.some_version(path)
        if kind not in READS:
            call.write_id = f"w{world.seed}-{number}"
            if random.random() < shape.conditional and kind in ("put", "delete", "restore"):
                call.conditions = world.library.conditions(path)
                if shape.expires and call.conditions.version is not None:
                    call.conditions = Conditions(absent=True)
            if kind == "put" and random.random() < 0.05 and not shape.expires:
                call.version = random.randint(1, 40)
        world.calls.append(call)
        return call

    # -- one operation

    async def perform(self, call: Call, *, staged: float | None = None, shared: bytes | None = None) -> None:
        """All tries of one operation; ``staged``: how likely a body is large, else than in the world, and what then is in its first chunk."""
        world = self._world
        staged = world.shape.staged if staged is None else staged
        body = world.library.content(call.number, staged, shared) if call.kind == "put" else b""
        if call.kind == "put":
            call.content = content_hash(body)
        call.invoked = world.loop.time()
        while True:
            call.tries += 1
            machine = self._random.choice(world.machines)
            told = await self._try(call, machine, body)
            call.story += (f"{machine.name}: {told}",)
            if call.result is not None or call.tries >= world.shape.retries:
                break
            await asyncio.sleep(self._random.random() * 0.5 * call.tries)
        if call.result is None:
            call.void = not call.doubtful
        else:
            call.ended = world.loop.time()
            if call.kind == "put" and call.result[0] == "ok":
                world.library.versions.setdefault(call.path, []).append((call.result[1], call.content))
        world.note(f"client {call}")

    async def _try(self, call: Call, machine: Machine, body: bytes) -> str:
        try:
            call.result = await self.at(machine, lambda objects: self._ask(objects, call, body))
            return "answered"
        except NotServing:
            return "not serving"
        except (NoAnswer, OutcomeUnknown) as error:
            call.doubtful = call.kind not in READS
            return type(error).__name__
        except PreconditionFailed:
            call.result = (412,)
        except VersionConflict as error:
            if error.code == "write-id-reused":
                raise Violation(f"{call} was told that its write id was used for something else") from error
            call.result = (409,)
        except NotFound:
            call.result = (404,)
        except NOTHING_APPLIED as error:
            return error.code
        except AmberError as error:
            if call.kind not in READS:
                # What outcome_of lets through besides those above would be a 5xx that says nothing.
                raise Violation(f"{call} was answered {error!r}") from error
            return error.code
        return str(call.result)

    async def _ask(self, objects: Objects, call: Call, body: bytes) -> tuple[Any, ...]:
        """What the node's HTTP layer does with the request."""
        if call.kind in READS:
            return await self._look(objects, call)
        repeat = call.doubtful
        path, version, conditions, write_id = call.path, call.version, call.conditions, call.write_id
        match call.kind:
            case "put":
                options = PutOptions(
                    size=len(body),
                    content_type="text/plain",
                    meta={},
                    version=version,
                    conditions=conditions,
                    digests=(),
                    write_id=write_id,
                    repeat=repeat,
                )
                view = await outcome_of(objects.put(path, pieces(body), options), repeat=repeat)
                if view.version.etag != call.content:
                    raise Violation(f"{call} was told the etag {view.version.etag}")
                return ("ok", view.version.version)
            case "restore":
                restoring = objects.restore(
                    path, version=version, conditions=conditions, write_id=write_id, repeat=repeat
                )
                view = await outcome_of(restoring, repeat=repeat)
                return ("done", view.version.version)
            case _:
                deleting = objects.delete(
                    path, version=version, conditions=conditions, write_id=write_id, repeat=repeat
                )
                await outcome_of(deleting, repeat=repeat)
                return ("ok",)

    async def _look(self, objects: Objects, call: Call) -> tuple[Any, ...]:
        try:
            match call.kind:
                case "read":
                    view = await objects.lookup(call.path, version=None, at_ms=None, consistency="strong")
                    if self._random.random() < 0.6:
                        await self.read_bytes(objects, view)
                    return ("read", Seen(view.version.version, view.version.etag))
                case "read-version":
                    view = await objects.lookup(call.path, version=call.version, at_ms=None, consistency="strong")
                    return ("read", (view.version.etag, view.tombstoned_at_ms is None))
                case _:
                    rows = [
                        (view.version.version, view.version.etag, view.tombstoned_at_ms is None)
                        for view in await objects.versions(call.path)
                    ]
                    head = next(((number, etag) for number, etag, live in rows if live), (0, None))
                    return ("read", (Seen(*head), tuple(rows)))
        except NotFound:
            match call.kind:
                case "read":
                    return ("read", Seen(0))
                case "read-version":
                    return ("read", None)
                case _:
                    return ("read", (Seen(0), ()))

    async def read_bytes(self, objects: Objects, view: ObjectView) -> None:
        """Read a version's bytes; they must be what somebody once sent under that etag."""
        size = view.version.size
        data = b"".join([bytes(part) async for part in objects.read(view, 0, size)])
        if data != self._world.library.contents.get(view.version.etag):
            raise Violation(
                f"{view.path}@{view.version.version} was served with {len(data)} bytes of hash {content_hash(data)}, "
                f"and its etag is {view.version.etag}"
            )
        self._world.fired["bytes read"] += 1

    async def at(self, machine: Machine, ask: Callable[[Objects], Coroutine[Any, Any, T]]) -> T:
        """Have a node do something, as a request that comes in there.

        Raises: NotServing, NoAnswer; else whatever the node answers.
        """
        world, random = self._world, self._random
        loop = world.loop
        await asyncio.sleep(world.shape.latency_s * random.random())
        process, parts = machine.process, machine.parts
        if process is None or parts is None or not machine.serving:
            raise NotServing
        answered: asyncio.Future[T] = loop.create_future()
        begun_s = math.inf

        async def beginning() -> T:
            nonlocal begun_s
            begun_s = loop.time()
            return await ask(parts.objects)

        task = loop.create_task(beginning(), context=process.context())
        task.add_done_callback(lambda done: _pass_on(done, answered), context=contextvars.Context())

        def died() -> None:
            if not answered.done():
                answered.set_exception(NoAnswer(f"{process.name} died"))

        key = id(task)
        process.on_death[key] = died
        try:
            async with asyncio.timeout(PATIENCE_S):
                result = await answered
        except TimeoutError:
            world.fired["client gave up"] += 1
            # A node that stood still at first has not begun, or so late that it may be at it still: a client that repeats its
            # write must not meet that try, and can only rely on the connection that it closed.
            if random.random() < 0.5 or loop.time() < begun_s + machine.settings.request_timeout_s:
                task.cancel()
            raise NoAnswer("no answer") from None
        finally:
            process.on_death.pop(key, None)
        if random.random() < 0.01:
            world.fired["lost answer"] += 1
            raise NoAnswer("the answer was lost")
        await asyncio.sleep(world.shape.latency_s * random.random())
        return result


def _pass_on(done: asyncio.Task[T], answered: asyncio.Future[T]) -> None:
    if done.cancelled():
        return
    error = done.exception()
    if answered.done():
        return
    if error is not None:
        answered.set_exception(error)
    else:
        answered.set_result(done.result())


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body as it comes in."""
    for at in range(0, len(body), 60_000):
        await asyncio.sleep(0)
        yield body[at : at + 60_000]


__all__ = ["NO_CONDITIONS", "Client", "Library", "NoAnswer", "NotServing", "Violation"]
