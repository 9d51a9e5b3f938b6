"""What a later version wrote is refused with a word that helps, and stays as it is."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import zlib
from pathlib import Path

import pytest

from amberblob.errors import DiskMismatch, JournalCorrupt
from chunkstore import codec
from chunkstore.doctor import examine
from tests.unit.chunkstore.test_codec import SALT, frames, header, judge, segment


def with_format(head: bytes, checked: int, at: str, version: int, seed: int = 0) -> bytes:
    """A header of another format, with the checksum that it then has."""
    block = bytearray(head)
    offset, code = (8, "<H") if at == "segment" else (4, "<B")
    struct.pack_into(code, block, offset, version)
    struct.pack_into("<I", block, checked, zlib.crc32(block[:checked], seed))
    return bytes(block)


def later_frame(number: int, version: int = 2) -> bytes:
    [frame] = frames(number, 1)
    return with_format(frame, codec.FRAME_HEADER_BYTES - 4, "frame", version, zlib.crc32(SALT))


def later_segment(first: int, version: int = 2) -> bytes:
    checked = struct.calcsize("<8sHH26s16sQQI") - 4
    return with_format(header(first), checked, "segment", version)


@pytest.mark.parametrize("version", [0, 2, 200])
def test_a_journal_of_another_format_is_not_called_damaged(version: int):
    for data in (later_segment(1, version) + bytes(4096), later_segment(1, version) + b"".join(frames(1, 2))):
        with pytest.raises(DiskMismatch, match=f"format {version}, and this version of AmberBlob knows format 1"):
            judge(data)
    with pytest.raises(DiskMismatch, match="start the version that wrote it"):
        judge(segment(1, 2), later_segment(3, version) + bytes(4096))


def test_a_last_batch_of_a_later_format_is_not_cut_as_a_torn_tail():
    data = header() + b"".join(frames(1, 2)) + later_frame(3) + bytes(4096)
    with pytest.raises(DiskMismatch, match=f"byte {len(header()) + len(b''.join(frames(1, 2)))}: has format 2"):
        judge(data)


def test_damage_that_looks_like_a_format_is_damage():
    torn = bytearray(header() + b"".join(frames(1, 2)) + bytes(4096))
    at = len(header()) + len(frames(1, 1)[0])
    torn[at + 4] = 2  # the checksum does not agree
    assert judge(bytes(torn)).cuts
    broken = bytearray(segment(1, 2))
    broken[8] = 2
    with pytest.raises(JournalCorrupt):
        judge(bytes(broken))


def digests(disk: Path) -> dict[str, str]:
    files = (path for path in disk.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_a_disk_whose_journal_is_later(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "a")
    await store.close()
    last = max((tmp_path / "d/journal").glob("*.log"))
    data = last.read_bytes()
    checked = struct.calcsize("<8sHH26s16sQQI") - 4
    last.write_bytes(with_format(data, checked, "segment", 2))
    before = digests(tmp_path / "d")
    with pytest.raises(DiskMismatch, match="format 2"):
        await kit.open(tmp_path / "d")
    assert digests(tmp_path / "d") == before
    assert any("format 2" in finding.what for finding in examine(tmp_path / "d", deep=False).findings)
    last.write_bytes(data)
    assert (await (await kit.open(tmp_path / "d")).load(1, "a")).record is not None


async def test_a_slot_database_that_is_later_is_neither_lost_nor_put_aside(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "a")
    await kit.put(store, 2, "b")
    await store.close()
    database = tmp_path / "d/slots/1/meta.sqlite3"
    with sqlite3.connect(database) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version + 1}")
    connection.close()
    with pytest.raises(DiskMismatch, match=f"slots/1/meta.sqlite3 has schema version {version + 1}.*start the version"):
        await kit.open(tmp_path / "d")
    assert not list((tmp_path / "d/quarantine").glob("*"))
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (version + 1,)
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    again = await kit.open(tmp_path / "d")
    assert again.disk_id == store.disk_id
    assert (await again.load(1, "a")).record is not None
