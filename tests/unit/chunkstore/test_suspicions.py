"""What a suspicious reader of the disk's part in healing thought of: each of these went wrong once, or could have."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from amberblob.errors import DiskFailed, DiskFull
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.mutations import Chosen, Installed
from chunkstore import DiskStore
from chunkstore.doctor import examine
from tests.unit.chunkstore.disk_faults import FaultyOps

SLOT = 3


def _version(kit, number: int, body: bytes = b"body", *, inline: bool = True) -> Version:
    chunk = ChunkRef(id=content_hash(body), len=len(body))
    return Version(number, kit.mint(), len(body), chunk.id, 1000 + number, "t", {}, (chunk,), None, 1, inline)


async def _execute(store: DiskStore, *statements: str) -> None:
    def run(database) -> None:
        with database.transaction():
            for statement in statements:
                assert database.connection.execute(statement).rowcount > 0, statement

    await store.settle([SLOT])
    await store._core.ask(SLOT, run)


# ---- rows that cannot be read


@pytest.mark.parametrize("rot", ["created_at = 'never'", "meta = '['", "chunks = 'no json'"])
async def test_a_row_that_cannot_be_read_and_is_not_replaced_yet_stops_nobody(kit, tmp_path: Path, rot: str):
    """A long history comes in pages: the page that mends the damaged row may be a later one."""
    store = await kit.open(tmp_path / "d")
    rows = tuple(_version(kit, number) for number in range(1, 7))
    await store.durable(store.apply(Installed(SLOT, "p", None, None, rows)))
    await store.settle([SLOT])
    sums = await store.bucket_sums(SLOT)
    await _execute(store, f"UPDATE blobs SET {rot} WHERE version = 2")
    assert (await store.check_page(SLOT, "", 10)).wrong == ("p",)
    await store.durable(store.apply(Installed(SLOT, "p", None, None, rows[3:], (), True)))
    await store.settle([SLOT])
    assert store.failed is None and store.lost_slots == []
    assert (await store.check_page(SLOT, "", 10)).wrong == ("p",), "it is not right yet"
    await store.durable(store.apply(Installed(SLOT, "p", None, None, rows[:3], (), True)))
    assert (await store.check_page(SLOT, "", 10)).wrong == ()
    assert await store.bucket_sums(SLOT) == sums
    assert await store.check_sums(SLOT)


@pytest.mark.parametrize("rot", ["created_at = 'never'", "meta = '['"])
async def test_digests_are_made_beside_a_row_that_cannot_be_read(kit, tmp_path: Path, rot: str):
    """An old disk is upgraded, and one of its rows rotted long ago."""
    store = await kit.open(tmp_path / "d")
    for path in ("a", "b"):
        await kit.put(store, SLOT, path)
    await store.settle([SLOT])
    await _execute(
        store,
        f"UPDATE blobs SET {rot} WHERE path = 'a'",
        "DELETE FROM bucket_sums",
        "UPDATE registers SET digest = NULL",
    )
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert store.lost_slots == [], "the other paths go on"
    assert store.tally(SLOT).objects == 2
    assert (await store.check_page(SLOT, "", 10)).wrong == ("a",)


@pytest.mark.parametrize("rot", ["created_at = 'never'", "meta = '['", "chunks = 'no json'"])
@pytest.mark.parametrize("deep", [False, True])
async def test_doctor_names_a_row_that_cannot_be_read(kit, tmp_path: Path, rot: str, deep: bool):
    store = await kit.open(tmp_path / "d")
    for path in ("a", "b"):
        await kit.put(store, SLOT, path)
    await _execute(store, f"UPDATE blobs SET {rot} WHERE path = 'a'")
    # The digest is made anew of what can be read.
    await store.durable(store.apply(Installed(SLOT, "a", None, None, (_version(kit, 2),), (), True)))
    await store.close()
    told = [finding for finding in examine(tmp_path / "d", deep=deep).findings if finding.severity == "error"]
    if deep or "chunks" in rot:
        assert any("cannot be read" in finding.what for finding in told), told


# ---- bytes


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed)])
async def test_the_folders_of_a_slot_are_made_by_a_thread_and_their_errors_are_told(
    kit, tmp_path: Path, number: int, kind: type[Exception]
):
    class Folders(FaultyOps):
        threads: set[str] = set()

        def make_dirs(self, path: Path) -> None:
            if path.name in ("blobs", "staging"):
                self.threads.add(threading.current_thread().name)
                if self.broken.get("folders"):
                    raise OSError(self.broken["folders"][1], "made up")
            super().make_dirs(path)

    ops = Folders()
    store = await kit.open(tmp_path / "d", ops=ops)
    body = b"a body"
    version = _version(kit, 1, body, inline=False)
    await store.durable(store.apply(Installed(SLOT, "p", None, None, (version,))))
    ops.broken["folders"] = ("", number)
    with pytest.raises(kind):
        await store.install_blobs(SLOT, [(version, body)])
    ops.broken.clear()
    assert threading.main_thread().name not in ops.threads
    assert len(await store.wanted(SLOT, 10)) == 1
    if kind is DiskFull:
        await store.install_blobs(SLOT, [(version, body)])
        assert await store.wanted(SLOT, 10) == []


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed)])
async def test_a_question_to_a_new_slot_whose_folder_cannot_be_made_tells_of_the_disk(
    kit, tmp_path: Path, number: int, kind: type[Exception]
):
    """And after an I/O error nothing is written there any more: a folder whose name was not synced must not be used (seed 8004173 of the worlds)."""

    class Folders(FaultyOps):
        def fsync_dir(self, path: Path) -> None:
            if self.broken.get("folders") and path.name == "slots":
                raise OSError(self.broken["folders"][1], "made up")
            super().fsync_dir(path)

    ops = Folders()
    store = await kit.open(tmp_path / "d", ops=ops, linger_s=60.0)
    await store.durable(store.apply(Installed(SLOT, "p", None, None, (_version(kit, 1),))))
    ops.broken["folders"] = ("", number)
    with pytest.raises(kind):
        await store.rows(SLOT, "q")
    assert not (tmp_path / "d" / "slots" / str(SLOT)).exists(), "it would pass for a durable one"
    ops.broken.clear()
    if kind is DiskFull:
        assert not await store.rows(SLOT, "q") and len(await store.rows(SLOT, "p")) == 1 and store.failed is None
    else:
        await kit.until(lambda: store.failed is not None)
        assert "cannot be made" in str(store.failed)


async def test_what_an_old_disk_never_got_is_wanted_after_the_upgrade(kit, tmp_path: Path):
    """Software before the digests called a blob REFERENCED when it heard of the record, whether or not the bytes came."""
    store = await kit.open(tmp_path / "d")
    there, missing = b"these are here", b"and these never came"
    versions = {path: _version(kit, 1, body, inline=False) for path, body in (("there", there), ("missing", missing))}
    chunks = await kit.stage(store, SLOT, versions["there"].blob_id, there)
    assert chunks == versions["there"].chunks
    for path, version in versions.items():
        record = Record(1, "put", 1, version, ((1, 1),), (), 5, 0, None, (WriteMark("w", "put", 1, 5),))
        await store.durable(store.apply(Chosen(SLOT, path, kit.ballot(), record)))
    await store.settle([SLOT])
    assert await store._core.ask(SLOT, lambda d: d.blob_facts(versions["missing"].blob_id).intent) == "REFERENCED"
    await _execute(store, "DELETE FROM wanted", "DELETE FROM bucket_sums")
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert [one.version for one in await store.wanted(SLOT, 10)] == [versions["missing"]]
    assert (store.tally(SLOT).wanted, store.tally(SLOT).wanted_bytes) == (1, len(missing))
