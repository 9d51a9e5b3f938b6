"""The demonstration's own judgement: it must find a difference, and only where there is one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from demo.data import (
    Difference,
    Failed,
    Record,
    SourceFile,
    build_archive,
    compare,
    edition_of,
    first_difference,
    original,
    rewritten,
    scan_tree,
)


async def _pieces(*pieces):
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    ("left", "right", "at"),
    [
        (b"", b"", 0),
        (b"abc", b"abd", 2),
        (b"abc", b"xbc", 0),
        (b"ab", b"abc", 2),
        (b"a" * 999 + b"b", b"a" * 1000, 999),
    ],
)
def test_first_difference(left, right, at):
    assert first_difference(left, right) == at
    assert first_difference(right, left) == at


async def test_same_bytes_are_no_difference():
    assert await compare("x", _pieces(b"he", b"llo"), io.BytesIO(b"hello")) == 5
    assert await compare("x", _pieces(), io.BytesIO(b"")) == 0
    assert await compare("x", _pieces(b"hel"), io.BytesIO(b"hello"), 3) == 3


@pytest.mark.parametrize(
    ("pieces", "offset", "found"),
    [((b"he", b"lXo"), 3, "Xo"), ((b"he",), 2, "the end"), ((b"hello", b"!"), 5, "!"), ((b"hello!",), 5, "!")],
)
async def test_the_first_difference_is_named(pieces, offset, found):
    with pytest.raises(Difference) as caught:
        await compare("some/path", _pieces(*pieces), io.BytesIO(b"hello"))
    assert caught.value.offset == offset
    assert "some/path" in str(caught.value) and found in str(caught.value)


def test_scan_takes_regular_files_only(tmp_path: Path):
    for name in ("b.py", "a/x.py", "a/__pycache__/x.pyc", "site-packages/y.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to("b.py")
    tree = scan_tree(tmp_path, "t")
    assert [source.name for source in tree.files] == ["t/a/x.py", "t/b.py"]
    assert tree.skipped == 1


def test_the_archive_is_large_enough_and_sound(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    for number in range(3):
        (tmp_path / "tree" / str(number)).write_bytes(bytes([number]) * 700)
    tree = scan_tree(tmp_path / "tree", "t")
    targets = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for target in targets:
        *_, size_bytes = build_archive(tree, target, 20_000)
        assert size_bytes == target.stat().st_size >= 20_000
    assert targets[0].read_bytes() == targets[1].read_bytes()
    with tarfile.open(targets[0]) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names)) > 3


def test_a_record_knows_its_versions(tmp_path: Path):
    file = tmp_path / "f"
    file.write_bytes(b"one")
    record = Record(source=SourceFile(name="t/f", file=file, size_bytes=3))
    record.stored(1, edition_of(original(record.source), is_rewritten=False))
    record.stored(2, edition_of(rewritten(record.source), is_rewritten=True))
    with record.open(1) as first, record.open(2) as second:
        assert first.read() == b"one"
        assert second.read().endswith(b"eno")
    assert record.source_unchanged(1)
    with pytest.raises(Failed, match="version 2 before"):
        record.stored(2, record.versions[2])
    file.write_bytes(b"two")
    assert not record.source_unchanged(1)
