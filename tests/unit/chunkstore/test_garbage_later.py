"""Garbage of which memory still knows something is removed by a later sweep, not forgotten."""

from __future__ import annotations

from pathlib import Path

from amberblob.mutations import Chosen
from chunkstore import BlobState, DiskStore
from chunkstore.overlay import Intent
from tests.contract.chunkstore.kit import MAKERS, SLOT, ballot, choose_file, expire, file_put, head_of


async def test_what_memory_still_refers_to_stays_on_the_list(tmp_path: Path, monkeypatch) -> None:
    store = await MAKERS["disk"](tmp_path)
    assert isinstance(store, DiskStore)
    try:
        first = file_put(1, b"first")
        await choose_file(store, "p", first, b"first", 1)
        second = file_put(2, b"second", before=first)
        await choose_file(store, "p", second, b"second", 2)
        await store.durable(store.apply(Chosen(SLOT, "p", ballot(3), expire(second, (1, 1)))))
        await store.settle([SLOT])
        gone = head_of(first).blob_id
        overlay = store._core.overlay
        real = overlay.intent
        # The databases are ahead of memory for a moment, each time that they were written.
        monkeypatch.setattr(
            overlay, "intent", lambda slot, blob_id: Intent.REFERENCED if blob_id == gone else real(slot, blob_id)
        )
        assert await store.sweep_garbage(SLOT, 10) == 0
        monkeypatch.setattr(overlay, "intent", real)
        assert await store.blob_state(SLOT, gone) is BlobState.DURABLE
        assert await store.sweep_garbage(SLOT, 10) == 1
        assert await store.blob_state(SLOT, gone) is BlobState.ABSENT
        assert await store.blob_state(SLOT, head_of(second).blob_id) is BlobState.DURABLE
        assert await store.sweep_garbage(SLOT, 10) == 0
    finally:
        await store.close()
