"""Inline bodies in memory, and callbacks of what is durable."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.ballot import Ballot
from amberblob.errors import ChunkCorrupt, ChunkMissing, DiskFailed
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.mutations import Accepted, Chosen, Reserved
from chunkstore import BlobState, journal
from chunkstore.bodycache import BodyCache
from chunkstore.slotdb import SlotDatabase


@given(
    st.integers(0, 5000),
    st.lists(st.tuples(st.sampled_from(["put", "drop", "drop-slot", "get"]), st.integers(0, 12), st.integers(0, 900))),
)
def test_the_cache_says_what_was_put_and_stays_in_its_bounds(bound: int, steps: list[tuple[str, int, int]]):
    cache = BodyCache(bound)
    truth: dict[tuple[int, str], bytes] = {}
    for what, number, size in steps:
        blob = (number % 3, str(number))
        if what == "put":
            truth[blob] = bytes([number]) * size
            cache.put(blob, truth[blob])
        elif what == "drop":
            truth.pop(blob, None)
            cache.drop(blob)
        elif what == "drop-slot":
            truth = {at: body for at, body in truth.items() if at[0] != blob[0]}
            cache.drop_slot(blob[0])
        assert cache.size_bytes <= bound
        assert cache.get(blob) in (truth.get(blob), None)
    assert cache.size_bytes == sum(len(body) + 400 for body in cache._bodies.values())


async def test_a_body_is_in_memory_from_apply_on_and_after_it_was_applied(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    record, ballot = kit.record(b"what it holds"), kit.ballot()
    head = record.head
    store.apply(Accepted(0, "p", ballot, record, b"what it holds"))
    assert store.peek_body(0, head.blob_id) == b"what it holds"
    assert store.peek_body(1, head.blob_id) is None
    await store.durable(store.apply(Reserved(0, 1)))
    await kit.until(lambda: not store._core.overlay.unapplied_bytes)
    assert store.peek_body(0, head.blob_id) == b"what it holds"
    monkeypatch.setattr(SlotDatabase, "body", None)  # nobody asks it
    assert await store.read_chunk(0, head.blob_id, head.chunks[0]) == b"what it holds"
    assert store.peek_body(0, kit.mint()) is None


async def test_a_body_comes_into_memory_when_it_was_read_and_verified(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    head = (await kit.put(store, 0, "p", b"good bytes")).head
    bad = (await kit.put(store, 0, "q", b"bad bytes!")).head
    await store.close()
    with sqlite3.connect(tmp_path / "d/slots/0/meta.sqlite3") as connection:
        connection.execute("UPDATE inline_bodies SET body = ? WHERE blob_id = ?", (b"bad-bytes!", bad.blob_id))
    connection.close()
    store = await kit.open(tmp_path / "d")
    assert store.peek_body(0, head.blob_id) is None
    assert await store.read_chunk(0, head.blob_id, head.chunks[0]) == b"good bytes"
    assert store.peek_body(0, head.blob_id) == b"good bytes"
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(0, bad.blob_id, bad.chunks[0])
    assert store.peek_body(0, bad.blob_id) is None
    with pytest.raises(ChunkMissing):
        await store.read_chunk(0, bad.blob_id, bad.chunks[0])
    await store.install_chunk(0, bad, bad.chunks[0], b"bad bytes!")
    assert store.peek_body(0, bad.blob_id) == b"bad bytes!"


async def test_what_is_in_memory_only_is_no_copy(kit, tmp_path: Path):
    """The database lost its bodies: repair must see that, and memory forgets them with the slot."""
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    head = (await kit.put(store, 0, "p", b"the body")).head
    await kit.until(lambda: not store._core.overlay.unapplied_bytes)
    await store._core.ask(0, lambda database: database.connection.execute("DELETE FROM inline_bodies"))
    assert store.peek_body(0, head.blob_id) == b"the body"
    assert await store.missing_chunks(0, head, head.chunks) == list(head.chunks)
    await store._core._database.call(lambda: store._pool.retire(0, "a test"))
    await kit.until(lambda: store.peek_body(0, head.blob_id) is None)


async def test_a_wrong_id_for_a_body_in_memory_never_gets_it(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    head = (await kit.put(store, 0, "p", b"the body")).head
    other = kit.record(b"no body!").head
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(0, head.blob_id, other.chunks[0])


async def test_a_discarded_blob_is_forgotten(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    head = (await kit.put(store, 0, "p", b"the body")).head
    cache = store._core.overlay.verified
    orphan = kit.mint()
    cache.put((0, orphan), b"whatever")
    await store.discard(0, orphan)
    assert store.peek_body(0, orphan) is None
    await store.discard(0, head.blob_id)  # referred to: stays
    assert store.peek_body(0, head.blob_id) == b"the body"


# ---- callbacks


async def test_when_durable_calls_back_at_once_or_later(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    told: list[object] = []
    store.when_durable(0, told.append)
    assert told == [None]
    position = store.apply(Reserved(0, 5))
    store.when_durable(position, lambda error: told.append(("later", error)))
    assert told == [None]
    await kit.until(lambda: len(told) == 2)
    assert told[1] == ("later", None)
    store.when_durable(position, told.append)
    assert told[2] is None


async def test_a_callback_may_apply_and_wait_again_and_a_bad_one_harms_nobody(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    mistakes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mistakes.append(context["exception"]))
    told: list[object] = []

    def bad(error: object) -> None:
        raise ZeroDivisionError

    def again(error: object) -> None:
        store.when_durable(store.apply(Reserved(0, 6)), told.append)

    position = store.apply(Reserved(0, 5))
    for callback in (bad, again, told.append):
        store.when_durable(position, callback)
    await kit.until(lambda: told == [None, None])
    assert [type(one) for one in mistakes] == [ZeroDivisionError]


async def test_when_durable_tells_of_failure_and_close(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    told: list[object] = []
    position = store.apply(Reserved(0, 5))
    faulty.errors["fdatasync"] = OSError(errno.EIO, "Input/output error")
    store.when_durable(position, told.append)
    await kit.until(lambda: bool(told))
    assert isinstance(told[0], DiskFailed)
    store.when_durable(position, told.append)
    assert isinstance(told[1], DiskFailed)
    await store.close()
    store.when_durable(position, told.append)
    assert isinstance(told[2], DiskFailed)

    store = await kit.open(tmp_path / "e")
    position = store.apply(Reserved(0, 5))
    store.when_durable(position, told.append)
    await store.close()
    assert told[3] is None
    store.when_durable(position, told.append)
    assert isinstance(told[4], DiskFailed)


async def test_what_nobody_waits_for_is_not_synced_by_itself(kit, tmp_path: Path, faulty, monkeypatch):
    monkeypatch.setattr(journal, "LAZY_S", 3600.0)
    store = await kit.open(tmp_path / "d", ops=faulty)
    faulty.calls.clear()
    for number in range(10):
        record, ballot = kit.record(), kit.ballot()
        await store.durable(store.apply(Accepted(0, f"p{number}", ballot, record, b"body")))
        store.apply(Chosen(0, f"p{number}", ballot))
        # The mark is true whatever becomes of it: whoever reads the register waits for nothing.
        assert store.position(0, f"p{number}") == 0
        await store.durable(store.position(0, f"p{number}"))
    await asyncio.sleep(0.05)
    assert faulty.calls.count("fdatasync") == 10
    assert store.counts() == {"journal_syncs": 10, "journal_entries": 19}
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert all([(await store.load(0, f"p{number}")).chosen for number in range(10)])


async def test_what_nobody_waits_for_is_written_in_the_end(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    faulty.calls.clear()
    position = store.apply(Reserved(0, 5))
    await kit.until(lambda: store._core.journal.durable_position == position)
    assert faulty.calls.count("fdatasync") == 1


async def test_a_record_that_was_installed_as_chosen_is_waited_for(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await store.load(0, "p")
    position = store.apply(Chosen(0, "p", kit.ballot(), kit.record()))
    assert store.position(0, "p") == position
    ballot = kit.ballot()
    position = store.apply(Accepted(0, "p", ballot, kit.record(), b"body"))
    store.apply(Chosen(0, "p", ballot))
    assert store.position(0, "p") == position


async def test_when_durable_waits_for_databases_that_are_behind(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", unapplied_bytes_max=10_000, linger_s=0.3)
    told: list[object] = []
    go_on = threading.Event()
    behind = store._core._database.call(lambda: go_on.wait(60))
    for number in range(20):
        position = store.apply(Accepted(0, f"p{number}", kit.ballot(), kit.record(), bytes(1000)))
    store.when_durable(position, told.append)
    await kit.until(lambda: store._core.journal.durable_position >= position)
    assert told == []
    go_on.set()
    await behind
    await kit.until(lambda: bool(told))
    assert told == [None]
    assert store._core.overlay.unapplied_bytes <= 10_000


async def test_a_body_that_is_put_back_counts_once_it_is_on_the_disk(kit, tmp_path):
    """Whoever accepts a record because its bytes are here says so at once: they must survive a power cut."""
    store = await kit.open(tmp_path / "d")
    body, blob_id = b"abc", "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    chunk = ChunkRef(content_hash(body), len(body))
    version = Version(
        version=1, blob_id=blob_id, size=3, etag=chunk.id, created_at_ms=1, content_type="t", meta={}, chunks=(chunk,),
        chunk_count=1, inline=True,
    )  # fmt: skip
    record = Record(
        revision=1, op="put", version_max=1, head=version, live=((1, 1),), taken=(), changed_at_ms=1, deleted_at_ms=0,
        previous=None, writes=(WriteMark("w", "put", 1, 1),),
    )  # fmt: skip
    await store.durable(store.apply(Chosen(3, "p", Ballot(1, 1, "n", "A"), record)))
    task = asyncio.create_task(store.install_chunk(3, version, chunk, body))
    await asyncio.sleep(0)
    assert await store.blob_state(3, blob_id) is BlobState.DURABLE
    core = store._core
    assert core.overlay.blob_position(3, blob_id) <= core.journal.durable_position
    await task
