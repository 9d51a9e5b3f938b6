"""Kill it anywhere, open it again: what was acknowledged is there, what is half-written is not."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amberblob.errors import JournalCorrupt
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef
from amberblob.mutations import Accepted, EpochSeen, Reserved
from chunkstore import BlobState
from chunkstore.codec import FRAME_HEADER_BYTES
from chunkstore.fileops import FileOps
from chunkstore.segments import SegmentWriter, recover, scan_file, segment_numbers, segment_path


async def test_everything_is_there_after_a_clean_close(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    records = {f"p{n}": await kit.put(store, n % 7, f"p{n}") for n in range(50)}
    await store.durable(store.apply(Reserved(3, 4096)))
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert [(await store.load(n % 7, f"p{n}")).record for n in range(50)] == list(records.values())
    assert store.slot_state(3).promise_ceiling == 4096
    assert store.slots() == list(range(7)) and store.lost_slots == [] and store.incarnations() == {}
    assert len((await store.scan("", "", "", 100)).entries) == 50


@pytest.mark.parametrize("linger_s", [0.0, 60.0])
async def test_a_copy_taken_at_any_moment_has_all_that_was_acknowledged(kit, tmp_path: Path, linger_s: float):
    store = await kit.open(tmp_path / "d", linger_s=linger_s, segment_bytes=1 << 17)
    chance = random.Random(5)
    acknowledged: dict[str, int] = {}
    stop = False

    async def writer(number: int) -> None:
        count = 0
        while not stop:
            path = f"w{number}/{chance.randrange(20)}"
            record = await kit.put(store, number, path, bytes(chance.randrange(2000)))
            acknowledged[path] = record.revision
            count += 1

    writers = [asyncio.create_task(writer(number)) for number in range(6)]
    copies = []
    for number in range(5):
        await kit.until(lambda wanted=(number + 1) * 40: sum(acknowledged.values()) >= wanted)
        promised = dict(acknowledged)
        copies.append((promised, await kit.copy_still(store, tmp_path / f"copy{number}")))
    stop = True
    await asyncio.gather(*writers)
    for promised, folder in copies:
        again = await kit.open(folder)
        for path, revision in promised.items():
            slot = int(path[1])
            register = await again.load(slot, path)
            assert register.record is not None and register.record.revision >= revision
            rows = await again.rows(slot, path)
            assert len(rows) >= revision - (not register.chosen)
            assert (
                await again.read_chunk(slot, register.record.head.blob_id, register.record.head.chunks[0]) is not None
            )
        listed = {entry.path: entry for entry in (await again.scan("", "", "", 1000)).entries}
        assert set(promised) <= set(listed)
        await again.close()


_CHILD = """
import asyncio, sys
from pathlib import Path
from amberblob.ballot import Ballot
from amberblob.clock import *
from amberblob.ids import *
from amberblob.manifest import *
from amberblob.mutations import *
from chunkstore import DiskStore

async def main():
    randomness = SystemRandomness()
    mint = UlidMint(HybridClock(SystemClock().wall_ms), randomness).mint
    store = await DiskStore.open(Path(sys.argv[1]), cluster_id="c", node_id="n", clock=SystemClock(), randomness=randomness,
        reserve_bytes=0, segment_bytes=1 << 18, linger_s=0.01)
    async def worker(number):
        n = 0
        while True:
            n += 1
            path, body = f"{number}/{n}", b"x" * (n % 3000 + 1)
            chunk = ChunkRef(id=content_hash(body), len=len(body))
            head = Version(1, mint(), len(body), chunk.id, 1, "t", {}, (chunk,), None, 1, n % 10 != 0)
            if not head.inline:
                staging = await store.stage(number, head.blob_id, chunk_bytes=1 << 16, size=len(body))
                await staging.write(body)
                await staging.finish((chunk,), None)
            record = Record(1, "put", 1, head, ((1, 1),), (), 1, 0, None, (WriteMark("w", "put", 1, 1),))
            await store.load(number, path)
            ballot = Ballot(1, n, "n", head.blob_id)
            await store.durable(store.apply(Accepted(number, path, ballot, record, body if head.inline else None)))
            print(number, n, flush=True)
            store.apply(Chosen(number, path, ballot))
    await asyncio.gather(*[worker(number) for number in range(8)])
asyncio.run(main())
"""


async def test_sigkill_loses_nothing_that_was_acknowledged(kit, tmp_path: Path):
    root = Path(__file__).parents[3]
    for round_number in range(3):
        disk = tmp_path / f"d{round_number}"
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(disk)],
            cwd=root,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert child.stdout is not None
        lines = []
        for line in child.stdout:
            if len(line.split()) == 2 and line.endswith(b"\n"):
                lines.append(line)
            if len(lines) == 400 + 333 * round_number:
                child.send_signal(signal.SIGKILL)
        child.wait()
        store = await kit.open(disk)
        assert len(lines) >= 400
        for line in lines:
            slot, n = map(int, line.split())
            register = await store.load(slot, f"{slot}/{n}")
            assert register.record is not None, line
            head = register.record.head
            assert await store.blob_state(slot, head.blob_id) is BlobState.DURABLE
            assert len(await store.read_chunk(slot, head.blob_id, head.chunks[0])) == n % 3000 + 1
        await store.close()


async def test_segments_rotate_are_checkpointed_and_go(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", segment_bytes=1 << 16)
    for n in range(60):
        await kit.put(store, n % 3, f"p{n}", bytes(8000))
    await kit.until(lambda: len(segment_numbers(tmp_path / "d/journal")) <= 2)
    assert segment_numbers(tmp_path / "d/journal")[-1] >= 7
    assert "slots_created = [\n    0,\n    1,\n    2,\n]" in (tmp_path / "d/disk.toml").read_text()
    assert (await store.load(1, "p1")).chosen
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert len((await again.scan("", "", "", 100)).entries) == 60


async def test_a_torn_tail_is_cut_and_writing_goes_on(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "a")
    folder = await kit.copy_still(store, tmp_path / "copy")
    path = segment_path(folder / "journal", segment_numbers(folder / "journal")[-1])
    data = bytearray(path.read_bytes())
    end = max(at for at in range(len(data)) if data[at]) + 1
    start = (end + 7) // 8 * 8
    data[start : start + 40] = b"\xabAJb" + bytes(range(36))
    path.write_bytes(data)
    for _ in range(3):
        again = await kit.open(folder)
        assert (await again.load(1, "a")).chosen
        record = await kit.put(again, 1, "b")
        await again.close()
    again = await kit.open(folder)
    assert (await again.load(1, "b")).record == record


async def test_corruption_in_the_middle_of_the_journal_is_said(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    await kit.put(store, 1, "a")
    folder = kit.copy(tmp_path / "d", tmp_path / "copy")
    await kit.put(store, 1, "b")
    folder = kit.copy(tmp_path / "d", tmp_path / "copy2")
    path = segment_path(folder / "journal", 1)
    data = bytearray(path.read_bytes())
    data[4096 + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalCorrupt, match=r"00000001\.log, byte 4096"):
        await kit.open(folder)
    with pytest.raises(JournalCorrupt):
        await kit.open(folder)


async def test_a_journal_that_vanished_is_said(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "a")
    await store.close()
    for path in (tmp_path / "d/journal").iterdir():
        path.unlink()
    with pytest.raises(JournalCorrupt, match="no journal"):
        await kit.open(tmp_path / "d")


async def test_databases_ahead_of_the_journal_are_said(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "a")
    old = kit.copy(tmp_path / "d", tmp_path / "old")
    for n in range(20):
        await kit.put(store, 1, f"b{n}")
    await store.close()
    for path in (tmp_path / "d/journal").iterdir():
        path.unlink()
    for path in (old / "journal").iterdir():
        path.rename(tmp_path / "d/journal" / path.name)
    with pytest.raises(JournalCorrupt, match="the journal ends"):
        await kit.open(tmp_path / "d")


async def test_leftovers_in_staging_go_at_start(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    staging = await store.stage(2, kit.mint(), chunk_bytes=1 << 16, size=None)
    await staging.write(bytes(1 << 20))
    folder = kit.copy(tmp_path / "d", tmp_path / "copy")
    assert list((folder / "slots/2/staging").iterdir())
    again = await kit.open(folder)
    assert not list((folder / "slots/2/staging").iterdir())
    await again.close()
    await staging.abort()
    assert not list((tmp_path / "d/slots/2/staging").iterdir())


async def test_a_kill_between_staged_and_rename_leaves_no_blob(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    blob_id, data = kit.mint(), b"x" * 1000
    staging = await store.stage(2, blob_id, chunk_bytes=1 << 16, size=1000)
    await staging.write(data)
    taken = []

    def take_copy(source: Path, target: Path) -> None:
        if target.parent.name == "blobs":
            taken.append(kit.copy(tmp_path / "d", tmp_path / "copy"))
        os.rename(source, target)

    faulty.rename = take_copy
    await staging.finish((ChunkRef(id=content_hash(data), len=1000),), None)
    assert await store.blob_state(2, blob_id) is BlobState.DURABLE
    again = await kit.open(taken[0])
    assert await again.blob_state(2, blob_id) is BlobState.ABSENT
    assert await again.sweep_staged(1 << 60, 10) == 1
    assert await again.blob_state(2, blob_id) is BlobState.ABORTED


async def test_staged_and_aborted_survive(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    staged, gone = kit.mint(), kit.mint()
    (chunk,) = await kit.stage(store, 2, staged, b"abc")
    await kit.stage(store, 2, gone, b"abc")
    await store.discard(2, gone)
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert await again.blob_state(2, staged) is BlobState.DURABLE
    assert await again.read_chunk(2, staged, chunk) == b"abc"
    assert await again.blob_state(2, gone) is BlobState.ABORTED
    assert await again.sweep_staged(1 << 60, 10) == 1


async def test_replay_twice_changes_nothing(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    for n in range(10):
        await kit.put(store, 1, f"p{n % 3}")
    query = "SELECT path, version, revision, op FROM commit_log ORDER BY seq"
    first = kit.copy(tmp_path / "d", tmp_path / "copy")
    again = await kit.open(first)
    await again.rows(1, "p0")
    log = kit.sql(first / "slots/1/meta.sqlite3", query)
    assert len(log) == 10
    # The journal of before with the databases of after.
    second = kit.copy(first, tmp_path / "copy2")
    third = await kit.open(second)
    await third.rows(1, "p0")
    assert kit.sql(second / "slots/1/meta.sqlite3", query) == log


async def test_positions_never_repeat(kit, tmp_path: Path):
    positions = []
    for _ in range(4):
        store = await kit.open(tmp_path / "d")
        positions.append(store.apply(EpochSeen(1, 1)))
        await store.durable(positions[-1])
        await store.close()
    assert positions == sorted(set(positions))


async def test_lazy_entries_are_written_without_anybody_waiting(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    record, ballot = kit.record(), kit.ballot()
    await store.load(1, "a")
    store.apply(Accepted(1, "a", ballot, record, b"body"))
    assert store.position(1, "a") > 0
    await kit.until(lambda: store.position(1, "a") == 0)


class PowerOps(FileOps):
    """Knows which bytes of the journal a power cut would leave: those that this process wrote and then synced.

    A sync without a write adds nothing, as after a sync that failed in the process before.
    """

    def __init__(self, journal: Path, durable: dict[str, bytes]) -> None:
        self.journal = journal
        self.durable = {name: bytearray(data) for name, data in durable.items()}
        self.pending: list[tuple[str, int, bytes]] = []
        self.before_create: list[dict[str, bytes]] = []

    def _name(self, fd: int) -> str | None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return path.name if path.parent == self.journal else None

    def create(self, path: Path) -> int:
        if path.parent == self.journal:
            self.before_create.append({name: bytes(data) for name, data in self.durable.items()})
        return super().create(path)

    def write_at(self, fd, buffers, offset):
        if (name := self._name(fd)) is not None:
            self.pending.append((name, offset, b"".join(buffers)))
        return super().write_at(fd, buffers, offset)

    def _synced(self, fd: int) -> None:
        name = self._name(fd)
        if name is None:
            return
        image = self.durable.setdefault(name, bytearray())
        image.extend(bytes(os.fstat(fd).st_size - len(image)))
        for written, offset, data in self.pending:
            if written == name:
                image[offset : offset + len(data)] = data
        self.pending = [item for item in self.pending if item[0] != name]

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self._synced(fd)

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self._synced(fd)


def _without_last_frame(folder: Path, number: int) -> bytes:
    """The segment as the disk has it when its last batch (or its header) was written and never synced."""
    data, scan = bytearray(segment_path(folder, number).read_bytes()), scan_file(folder, number)
    start = scan.frames[-1].payload_offset - FRAME_HEADER_BYTES if scan.frames else 0
    data[start : scan.stop] = bytes(scan.stop - start)
    return bytes(data)


async def _killed_before_the_sync(kit, tmp_path: Path) -> Path:
    """A disk with "a" acknowledged, and a batch with "b" and a promise that were written and not synced."""
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    await kit.put(store, 1, "a")
    before = kit.copy(tmp_path / "d", tmp_path / "before")
    store.apply(Reserved(1, 4096))
    await kit.put(store, 1, "b")
    # The databases of before with the journal of after: nothing is applied that is not durable.
    (before / "journal/00000001.log").write_bytes((tmp_path / "d/journal/00000001.log").read_bytes())
    return before


async def test_what_recovery_answers_from_survives_a_power_cut(kit, tmp_path: Path):
    folder = await _killed_before_the_sync(kit, tmp_path)
    journal = folder / "journal"
    bare = kit.copy(folder, tmp_path / "bare")
    ops = PowerOps(journal, {"00000001.log": _without_last_frame(journal, 1)})
    whole = segment_path(journal, 1).read_bytes()
    store = await kit.open(folder, ops=ops, linger_s=60.0)
    register = await store.load(1, "b")
    assert register.record is not None and store.slot_state(1).promise_ceiling == 4096
    (first,) = ops.before_create
    assert first["00000001.log"] == whole, "durable before a new segment is begun"
    for step in range(2):
        if step:
            await kit.put(store, 1, "c")
        cut = kit.copy(bare, tmp_path / f"cut{step}")
        for name, data in ops.durable.items():
            (cut / "journal" / name).write_bytes(data)
        again = await kit.open(cut)
        assert (await again.load(1, "b")).record == register.record
        assert (await again.load(1, "a")).chosen and (await again.load(1, "c")).chosen == bool(step)
        assert again.slot_state(1).promise_ceiling == 4096


async def test_every_kept_segment_is_made_durable(kit, tmp_path: Path):
    folder = await _killed_before_the_sync(kit, tmp_path)
    header = scan_file(folder / "journal", 1).header
    assert header is not None
    disk_id = header.disk_id
    # Two starts that got no further than a header. (A whole store might let a segment go while it is copied.)
    for _ in range(2):
        begun = recover(folder / "journal", disk_id, FileOps(), is_new=False)
        writer = SegmentWriter(begun, disk_id, FileOps(), os.urandom, lambda: False, segment_bytes=1 << 20)
        writer.begin(begun.next_position)
        writer.close()
    journal = folder / "journal"
    numbers = segment_numbers(journal)
    assert numbers == [1, 2, 3]
    ops = PowerOps(journal, {segment_path(journal, n).name: _without_last_frame(journal, n) for n in numbers})
    recovered = recover(journal, disk_id, ops, is_new=False)
    assert recovered.next_number == 4 and not ops.pending
    assert ops.durable == {path.name: path.read_bytes() for path in journal.iterdir()}


@pytest.mark.parametrize("call", ["write", "fsync"])
async def test_nothing_is_answered_when_the_journal_cannot_be_made_durable(kit, tmp_path: Path, faulty, call: str):
    folder = await _killed_before_the_sync(kit, tmp_path)
    faulty.errors[call] = OSError(5, "I/O error")
    with pytest.raises(OSError, match="I/O error"):
        await kit.open(folder, ops=faulty)
    assert segment_numbers(folder / "journal") == [1], "no new segment, so the end may still be torn"
    store = await kit.open(folder)
    assert (await store.load(1, "b")).record is not None


async def test_a_power_cut_while_the_end_is_written_again(kit, tmp_path: Path):
    folder = await _killed_before_the_sync(kit, tmp_path)
    whole = segment_path(folder / "journal", 1).read_bytes()
    bare = _without_last_frame(folder / "journal", 1)
    scan = scan_file(folder / "journal", 1)
    start = scan.frames[-1].payload_offset - FRAME_HEADER_BYTES
    for count, have in enumerate([0, 1, 20, 28, 60, scan.stop - start - 9, scan.stop - start]):
        cut = kit.copy(folder, tmp_path / f"cut{count}")
        at = start + have
        segment_path(cut / "journal", 1).write_bytes(whole[:at] + bare[at:])
        for _ in range(3):
            store = await kit.open(cut)
            assert (await store.load(1, "a")).chosen
            assert (await store.load(1, "b")).chosen == (at == scan.stop)
            await kit.put(store, 1, "c")
            await store.close()


async def test_an_end_that_changes_between_reading_and_rewriting_is_said(kit, tmp_path: Path):
    folder = await _killed_before_the_sync(kit, tmp_path)
    bare, scan = _without_last_frame(folder / "journal", 1), scan_file(folder / "journal", 1)
    assert scan.header is not None
    disk_id = scan.header.disk_id
    (folder / "journal/00000002.log").write_bytes(bytes(8192))

    class Evicting(FileOps):
        def unlink(self, path: Path) -> None:
            super().unlink(path)
            segment_path(folder / "journal", 1).write_bytes(bare)

    with pytest.raises(OSError, match="changed while it was read"):
        recover(folder / "journal", disk_id, Evicting(), is_new=False)
    recovered = recover(folder / "journal", disk_id, FileOps(), is_new=False)
    assert [len(kept.frames) for kept in recovered.scans] == [len(scan.frames) - 1]


async def test_a_start_after_an_unfinished_segment_leaves_no_gap(kit, tmp_path: Path):
    folder = await _killed_before_the_sync(kit, tmp_path)
    (folder / "journal/00000002.log").write_bytes(bytes(1 << 20))
    store = await kit.open(folder, linger_s=60.0)
    assert 2 in segment_numbers(folder / "journal") and 3 not in segment_numbers(folder / "journal")
    await kit.put(store, 1, "c")
    again = await kit.open(kit.copy(folder, tmp_path / "copy"))
    assert (await again.load(1, "b")).chosen and (await again.load(1, "c")).chosen
