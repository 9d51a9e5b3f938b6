"""How archive rows change, and what they cover. Pure; every implementation uses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from amberblob.archives import DAMAGED, ArchivedChunk, merge
from amberblob.ids import valid_hash
from amberblob.manifest import ChunkRef, Version
from amberblob.mutations import Archived

_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: what a DATETIME can hold."""
_INTEGER_MAX = 2**63 - 1


def is_sane(chunk: ArchivedChunk) -> bool:
    """Whether the tables can hold it. Others send it: what they cannot hold is passed over, and no disk fails for it."""
    return (
        0 <= chunk.start <= chunk.end <= _INTEGER_MAX
        and 0 <= chunk.length <= _INTEGER_MAX
        and 0 <= chunk.archived_at_ms <= _MS_MAX
        and DAMAGED <= chunk.state <= _INTEGER_MAX
        and bool(chunk.target_path)
        and valid_hash(chunk.chunk_id)
    )


def take(known: ArchivedChunk | None, told: ArchivedChunk, *, relied_on: bool) -> ArchivedChunk | None:
    """The row after it was told; None: it stays as it is.

    ``relied_on``: the blob is evicted. Then a verified row gives way to one of another place only if that is verified too: another's
    upload that was not read back must not take away what the copy lives by. (That one wins as soon as it is verified.)
    """
    after = merge(known, told)
    if after is known or after == known:
        return None
    if relied_on and known is not None and known.verified and not after.verified and after.location != known.location:
        return None
    return after


def revives(entry: Archived, told: Sequence[ArchivedChunk]) -> bool:
    """Whether a blob that was given up may be referred to after all: what stands for its bytes was read back, all of it.

    Somebody builds it anew from the archive, who stood still for longer than rows wait for their version. ``told``: what of the entry
    is sane.
    """
    return entry.evicted and 0 < len(told) == len(entry.chunks) and all(chunk.verified for chunk in told)


def ids_of(version: Version, chunks: Iterable[ChunkRef]) -> tuple[str, ...]:
    """What has to have a row so that a version can live by them: its chunks, each once, and its manifest."""
    ids = dict.fromkeys(chunk.id for chunk in chunks)
    if version.manifest_id is not None:
        ids[version.manifest_id] = None
    return tuple(ids)
