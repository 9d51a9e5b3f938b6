"""The program in docs/archive.md unpacks an object of the bucket with ordinary libraries alone, and notices damage."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from blake3 import blake3

from amberblob.manifest import ChunkRef
from archive.frames import PIECE_BYTES, encode_frame
from archive.packs import HEADER, Item, PackWriter

PAGE = Path(__file__).parents[3] / "docs" / "archive.md"
BLOB = "01KAJ5XQ4T7S9C0M2B8D3E6F1G"


def a_pack(contents: list[bytes]) -> bytes:
    writer, parts = PackWriter(), [HEADER]
    for place, content in enumerate(contents):
        chunk = ChunkRef(blake3(content).hexdigest(), len(content))
        frame = encode_frame(chunk.id, content)
        writer.add(frame)
        writer.enter(Item(chunk=chunk, slot=3, blob_id=BLOB, path="a/ü", version=2, index=place))
        parts += frame.parts
    return b"".join([*parts, writer.finish()])


def unpack(pack: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    (program,) = re.findall(r"```python\n(# unpack\.py.*?)```", PAGE.read_text(), re.DOTALL)
    command = [sys.executable, "-I", "-c", program, str(pack), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, encoding="utf-8")


def test_the_program_of_the_guide_unpacks_a_pack(tmp_path: Path):
    contents = [b"small", b"text " * 200_000, blake3(b"noise").digest(PIECE_BYTES + 7)]
    pack = tmp_path / "of.pack"
    pack.write_bytes(a_pack(contents))
    done = unpack(pack, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert b"".join(file.read_bytes() for file in sorted((tmp_path / "out" / BLOB).iterdir())) == b"".join(contents)
    assert done.stdout.splitlines()[1] == f"{BLOB} 1 version 2 of a/ü"


def test_it_notices_damage(tmp_path: Path):
    pack = tmp_path / "of.pack"
    data = bytearray(a_pack([blake3(b"noise").digest(5000)]))
    data[len(HEADER) + 2000] ^= 1
    pack.write_bytes(data)
    assert "a/ü: damaged" in unpack(pack, tmp_path / "out").stderr
    pack.write_bytes(data[:-5])
    assert "is it whole?" in unpack(pack, tmp_path / "out").stderr
