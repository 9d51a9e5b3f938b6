"""Objects of another bucket as versions: chunks that name their source, few enough to be listed."""

from __future__ import annotations

import pytest

from amberblob.archives import import_id
from amberblob.ids import valid_hash
from amberblob.limits import CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, GIB, MANIFEST_INLINE_CHUNKS_MAX, MIB
from amberblob.manifest import decode_manifest
from archive.importing import chunk_bytes, import_etag, imported, is_of, is_same
from archive.targets.interface import Stored
from tests.unit.archive.export_kit import NOW_MS, Hand

URL = "s3://theirs/photos/a.jpg"


def stored(size: int, *, etag: str = "e1", modified_ms: int = NOW_MS - 5000) -> Stored:
    return Stored(name="photos/a.jpg", size_bytes=size, etag=etag, modified_ms=modified_ms)


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES_DEFAULT, CHUNK_BYTES_DEFAULT + 1, 512 * MIB + 1, 4 * GIB, 4 * GIB + 1, 5000 * GIB]
)
def test_chunks_cover_the_object_and_are_as_few_as_a_record_lists(size: int) -> None:
    made = imported(URL, stored(size), "a.jpg", blob_id=Hand().ulid(), now_ms=NOW_MS)
    draft, at = made.draft, 0
    for row in made.chunks:
        assert row.start == at and row.end - row.start == row.length > 0
        assert valid_hash(row.chunk_id) and row.foreign and row.verified and row.etag == "e1"
        at = row.end
    assert at == size == draft.size and draft.chunk_count == len(made.chunks)
    assert max((row.length for row in made.chunks), default=0) <= CHUNK_BYTES_MAX
    assert (made.manifest is not None) == (size > MANIFEST_INLINE_CHUNKS_MAX * CHUNK_BYTES_MAX)
    listed = decode_manifest(made.manifest) if made.manifest is not None else draft.chunks
    assert [chunk.id for chunk in listed] == [row.chunk_id for row in made.chunks]
    assert len({row.chunk_id for row in made.chunks}) == len(made.chunks)


def test_small_objects_have_chunks_as_usual() -> None:
    assert chunk_bytes(1) == chunk_bytes(512 * MIB) == CHUNK_BYTES_DEFAULT
    assert chunk_bytes(512 * MIB + 1) == 2 * CHUNK_BYTES_DEFAULT


def test_names_differ_with_the_source_its_etag_and_the_range() -> None:
    names = {
        import_id(URL, "e1", 0, 10),
        import_id(URL, "e2", 0, 10),
        import_id(URL + "x", "e1", 0, 10),
        import_id(URL, "e1", 0, 11),
        import_id(URL, "e1", 1, 10),
    }
    assert len(names) == 5
    # No two ways of dividing the same bytes: parts are told apart.
    assert import_id("s3://b/a", "b", 0, 1) != import_id("s3://b/ab", "", 0, 1)


def test_an_imported_etag_cannot_be_taken_for_a_hash() -> None:
    assert not valid_hash(import_etag(URL, "e1", 5))
    assert import_etag(URL, "e1", 5) != import_etag(URL, "e1", 6)


def test_type_and_time_come_from_the_name_and_the_source() -> None:
    draft = imported(URL, stored(5), "x/a.jpg", blob_id=Hand().ulid(), now_ms=NOW_MS).draft
    assert (draft.content_type, draft.created_at_ms) == ("image/jpeg", NOW_MS - 5000)
    later = imported(URL, stored(5, modified_ms=NOW_MS + 9), "x/blob", blob_id=Hand().ulid(), now_ms=NOW_MS).draft
    assert (later.content_type, later.created_at_ms) == ("application/octet-stream", NOW_MS)


def test_a_version_knows_what_it_is_of() -> None:
    draft = imported(URL, stored(5), "a", blob_id=Hand().ulid(), now_ms=NOW_MS).draft
    assert is_same(draft, URL, "e1") and not is_same(draft, URL, "e2") and not is_same(draft, URL + "x", "e1")
    assert is_of(draft, URL) and not is_of(draft, URL + "x")
