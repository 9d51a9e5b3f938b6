"""Brings versions whose bytes are in the archive to the copies of a slot: their archive rows before the round, their own rows after it.

Used by whoever writes what was not uploaded here: ``recover`` and ``import`` (rfc/0016).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from amberblob.archives import ArchivedChunk
from amberblob.errors import PeerError, QuorumUnavailable
from amberblob.limits import FRAME_BYTES_MAX
from amberblob.manifest import Version, WriteMark
from amberblob.wire import Refused, Reply, StagedReply
from amberblob.wire_archive import ARCHIVED_LINES_MAX, InstallRows, StageArchived
from node.archive.ground import Ground
from node.protocol.quorum import Electorate

ASK_S = 30.0
"""How long a copy may take: it may have to fetch a manifest from the archive."""
MESSAGE_BYTES = FRAME_BYTES_MAX // 2


class Placing:
    """Asks the voters of slots."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def stage(
        self, electorate: Electorate, blob_id: str, chunks: Sequence[ArchivedChunk], *, manifest_id: str | None = None
    ) -> frozenset[str]:
        """Have the copies hold a blob by these rows, which are of all its chunks and verified; the nodes that do now, durably.

        Raises: QuorumUnavailable: they are no write quorum.
        """
        batches = list(by_size(chunks, ARCHIVED_LINES_MAX))
        held = frozenset(electorate.voters)
        for at, batch in enumerate(batches):
            last = at == len(batches) - 1
            request = StageArchived(
                slot=electorate.slot,
                epoch=electorate.epoch,
                blob_id=blob_id,
                chunks=batch,
                evicted=True,
                manifest_id=manifest_id if last else None,
            )
            with self._ground.facts.using({chunk.target_path for chunk in batch}):
                replies = await self._ground.ask_all(sorted(held), request, timeout_s=ASK_S)
            held = _counted(electorate, replies)
        return held

    async def install(
        self, electorate: Electorate, path: str, rows: Sequence[Version], writes: Sequence[WriteMark]
    ) -> None:
        """Have a write quorum know these older versions of a path whose record is chosen, durably.

        Raises: QuorumUnavailable: some voters may know them now, too few.
        """
        marks = tuple(writes)
        for batch in [*by_size(rows, ARCHIVED_LINES_MAX)] or [()]:
            request = InstallRows(slot=electorate.slot, epoch=electorate.epoch, path=path, rows=batch, writes=marks)
            replies = await self._ground.ask_all(sorted(electorate.voters), request, timeout_s=ASK_S)
            _counted(electorate, replies)
            marks = ()


def _counted(electorate: Electorate, replies: dict[str, Reply | PeerError]) -> frozenset[str]:
    """The nodes that did it. Raises: QuorumUnavailable."""
    done: set[str] = set()
    failures: dict[str, str] = {}
    for node, reply in replies.items():
        if isinstance(reply, StagedReply) and electorate.counts(node, reply.incarnation):
            done.add(node)
        elif isinstance(reply, PeerError):
            failures[node] = reply.detail
        elif isinstance(reply, Refused):
            failures[node] = f"refused: {reply.reason} {reply.detail}".rstrip()
        else:
            failures[node] = f"answered {type(reply).__name__}"
    if not electorate.is_write_quorum(done):
        wanted, got = electorate.writes_short(done)
        raise QuorumUnavailable.of(wanted, got, failures)
    return frozenset(done)


T = TypeVar("T", bound=msgspec.Struct)


def by_size(values: Iterable[T], count_max: int) -> Iterator[tuple[T, ...]]:
    """The same values in messages' worth."""
    batch: list[T] = []
    size = 0
    for value in values:
        more = len(msgspec.msgpack.encode(value))
        if batch and (len(batch) == count_max or size + more > MESSAGE_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(value)
        size += more
    if batch:
        yield tuple(batch)
