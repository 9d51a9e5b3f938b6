"""What the contract tests of the stores share: the stores, and records to put into them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from msgspec.structs import replace

from amberblob.ballot import Ballot
from amberblob.clock import HybridClock, SeededRandomness, SystemClock
from amberblob.digests import BUCKETS, DIGEST_BYTES, DIGEST_MODULUS, bucket_of, digest_bytes, record_term, row_term
from amberblob.ids import UlidMint, content_hash
from amberblob.limits import MIB
from amberblob.manifest import ChunkRef, Op, Range, Record, Version, WriteMark, merge_ranges
from amberblob.mutations import Accepted, Chosen, Installed
from amberblob.wire_repair import PathItem
from chunkstore import DiskStore, MemoryStore, ReplicaStore

NOW = 1_700_000_000_123
SLOT = 7

_mint = UlidMint(HybridClock(SystemClock().wall_ms), SeededRandomness(1))
mint = _mint.mint


async def _disk(folder: Path) -> ReplicaStore:
    return await DiskStore.open(
        folder / "disk",
        cluster_id="c",
        node_id="n",
        clock=SystemClock(),
        randomness=SeededRandomness(2),
        reserve_bytes=0,
    )


async def _memory(folder: Path) -> ReplicaStore:
    return MemoryStore(mint(), wall_ms=SystemClock().wall_ms)


MAKERS: dict[str, Callable[[Path], Awaitable[ReplicaStore]]] = {"disk": _disk, "memory": _memory}


def ballot(counter: int) -> Ballot:
    return Ballot(1, counter, "node-1", f"attempt-{counter}")


def version(number: int, body: bytes = b"body", *, inline: bool = True) -> Version:
    chunk = ChunkRef(id=content_hash(body), len=len(body))
    return Version(
        number, mint(), len(body), chunk.id, NOW + number, "text/plain", {"k": "v"}, (chunk,), None, 1, inline
    )


def put(number: int, *, revision: int | None = None, before: Record | None = None, body: bytes = b"body") -> Record:
    """A put of version ``number`` upon ``before``."""
    head = version(number, body)
    at = revision or (before.revision + 1 if before else 1)
    live = (*(before.live if before else ()), (number, number))
    marks = (*(before.writes if before else ()), WriteMark(f"w{at}", "put", number, NOW + at))[-8:]
    return Record(
        at, "put", number, head, live, (), NOW + at, before.deleted_at_ms if before else 0,
        before.added if before else None, marks,
    )  # fmt: skip


def change(op: Op, before: Record, *, head: Version | None, live: tuple[tuple[int, int], ...]) -> Record:
    """A delete or restore upon ``before``."""
    at = before.revision + 1
    marks = (*before.writes, WriteMark(f"w{at}", op, head.version if head else 0, NOW + at))[-8:]
    return Record(
        at, op, before.version_max, head, live, before.live, NOW + at, NOW + at if op != "restore" else before.deleted_at_ms,
        before.added, marks,
    )  # fmt: skip


async def choose(
    store: ReplicaStore, path: str, record: Record, counter: int, *, slot: int = SLOT, body: bytes = b"body"
) -> None:
    """The record is accepted and chosen; ``body`` is that of an inline version."""
    await store.load(slot, path)
    inline = body if record.added is not None and record.added.inline else None
    store.apply(Accepted(slot, path, ballot(counter), record, inline))
    await store.durable(store.apply(Chosen(slot, path, ballot(counter))))


async def stage(
    store: ReplicaStore, blob_id: str, parts: list[bytes], *, slot: int = SLOT, manifest: bytes | None = None
):
    chunks = tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts)
    staging = await store.stage(slot, blob_id, chunk_bytes=max(len(parts[0]), 1), size=sum(map(len, parts)))
    for part in parts:
        await staging.write(part)
    await staging.finish(chunks, manifest)
    return chunks


def expire(before: Record, *gone: Range) -> Record:
    """An expiry of these versions upon ``before``."""
    at = before.revision + 1
    return Record(
        at, "expire", before.version_max, before.head, before.live, (), NOW + at, before.deleted_at_ms, before.added,
        (*before.writes, WriteMark(f"w{at}", "expire", 0, NOW + at))[-8:], merge_ranges((*before.expired, *gone)),
    )  # fmt: skip


def body_of(number: int, size: int = 0) -> bytes:
    """A body that no other number has, of at least ``size`` bytes."""
    return f"body {number} ".encode().ljust(size, b".")


def file_put(number: int, body: bytes, *, before: Record | None = None) -> Record:
    """As :func:`put`, of a body that is a file."""
    record = put(number, before=before, body=body)
    assert record.head is not None
    return replace(record, head=replace(record.head, inline=False))


def head_of(record: Record) -> Version:
    """The newest live version, which there is."""
    assert record.head is not None
    return record.head


async def choose_file(store: ReplicaStore, path: str, record: Record, body: bytes, counter: int) -> None:
    """A put whose bytes were staged becomes chosen."""
    await stage(store, head_of(record).blob_id, [body])
    await choose(store, path, record, counter)


async def digest_of_rows(store: ReplicaStore, path: str) -> int:
    """A path's digest, made from what the store answers about it."""
    register = await store.load(SLOT, path)
    terms = [row_term(path, row.version) for row in await store.rows(SLOT, path, limit=100_000)]
    if register.chosen and register.record is not None:
        terms.append(record_term(path, register.record))
    return sum(terms) % DIGEST_MODULUS


async def sums_of_rows(store: ReplicaStore, paths: Iterable[str]) -> bytes:
    """The bucket digests, made from what the store answers about these paths."""
    sums = [0] * BUCKETS
    for path in paths:
        sums[bucket_of(path)] += await digest_of_rows(store, path)
    return b"".join(digest_bytes(total % DIGEST_MODULUS) for total in sums)


async def root(store: ReplicaStore) -> bytes:
    """The slot's digest with all that was applied."""
    await store.settle([SLOT])
    return store.tally(SLOT).root


def installed(item: PathItem, *, replaced: bool = False) -> Installed:
    """What another store tells of a path, as a repair takes it over."""
    ballot_of = item.ballot if item.chosen else None
    return Installed(SLOT, item.path, ballot_of, item.record, item.rows, item.writes, replaced)


async def pull(target: ReplicaStore, source: ReplicaStore, *, size_bytes: int = MIB) -> int:
    """Take over all that ``source`` has and ``target`` lacks or has otherwise; how many paths that was."""
    mine, theirs = await target.bucket_sums(SLOT), await source.bucket_sums(SLOT)
    parts = [slice(at, at + DIGEST_BYTES) for at in range(0, len(mine), DIGEST_BYTES)]
    known = await target.fingerprints(SLOT, [at for at, part in enumerate(parts) if mine[part] != theirs[part]])
    after: str | None = ""
    count = 0
    while after is not None:
        items, after = await source.items_differing(SLOT, known, after, size_bytes)
        count += len(items)
        for item in items:
            await target.load(SLOT, item.path)
            await target.durable(target.apply(installed(item)))
            below = item.more_below
            while below is not None:
                (more,) = await source.items(SLOT, [item.path], below=below)
                await target.durable(target.apply(installed(more)))
                below = more.more_below
    return count


async def bring_expiry(store: ReplicaStore, path: str, before: Record, gone: Range, counter: int) -> None:
    """These versions expire, and no record names them any more."""
    record = expire(before, gone)
    live = tuple(one for one in before.live if one != gone)
    await choose(store, path, replace(record, live=live, previous=None), counter)
