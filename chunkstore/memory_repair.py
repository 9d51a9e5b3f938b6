"""The memory store's part in comparing and mending."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from amberblob.digests import BUCKETS, DIGEST_MODULUS, SHORT_BYTES, bucket_of, digest_bytes, path_key
from amberblob.errors import DigestMismatch
from amberblob.ids import content_hash
from amberblob.manifest import Version
from amberblob.mutations import Staged
from amberblob.wire_repair import LogLine, PathItem
from chunkstore.interface import SlotTally, Wanted
from chunkstore.memory_base import MemoryBase
from chunkstore.memory_state import MemorySlot
from chunkstore.paging import ItemPage, item_of

_TRIM_MAX = 10_000


def _state_of(at: MemorySlot, path: str) -> bytes | None:
    """The short state of a path that has anything chosen."""
    digest = at.digests.get(path)
    return None if digest is None else digest_bytes(digest)[:SHORT_BYTES]


def _pairs(data: bytes) -> dict[bytes, bytes]:
    """Path keys and states that alternate."""
    step = 2 * SHORT_BYTES
    if len(data) % step:
        raise ValueError(f"{len(data)} bytes are no pairs of keys and states")
    return {data[i : i + SHORT_BYTES]: data[i + SHORT_BYTES : i + step] for i in range(0, len(data), step)}


class MemoryRepair(MemoryBase):
    """See the interface for every method."""

    # -- comparing

    def tally(self, slot: int) -> SlotTally:
        at = self._look(slot)
        return SlotTally(
            root=digest_bytes(sum(at.sums) % DIGEST_MODULUS),
            objects=sum(register.record is not None for register in at.registers.values()),
            wanted=len(at.wanted),
            wanted_bytes=sum(known.version.size for known in at.wanted.values()),
            damaged=sum(known.damaged for known in at.wanted.values()),
            log_head=at.log_cut + len(at.log),
            archive_head=at.archive_head,
            archived_rows=len(at.archive_seqs),
            archive_staged=sum(map(len, at.waiting.values())),
            evicted=sum(blob_id not in at.waiting for blob_id in at.evicted),
            evicted_bytes=sum(row[1].size for blob_id in at.evicted if (row := at.row_of(blob_id)) is not None),
        )

    async def settle(self, slots: Sequence[int]) -> None:
        self._raise_if_failed()

    async def bucket_sums(self, slot: int) -> bytes:
        return b"".join(digest_bytes(total) for total in self._look(slot).sums)

    async def fingerprints(self, slot: int, buckets: Sequence[int]) -> dict[int, bytes]:
        at = self._look(slot)
        found: dict[int, list[tuple[bytes, bytes]]] = {bucket: [] for bucket in buckets if 0 <= bucket < BUCKETS}
        for path in at.digests:
            state, pairs = _state_of(at, path), found.get(bucket_of(path))
            if pairs is not None and state is not None:
                pairs.append((path_key(path), state))
        return {bucket: b"".join(key + state for key, state in sorted(pairs)) for bucket, pairs in found.items()}

    def _item(self, at: MemorySlot, path: str, below: int | None = None) -> PathItem | None:
        known, register = at.paths.get(path), self._register(at, path)
        if register.accepted is None and (known is None or not known.rows):
            return None
        if known is None:
            return item_of(path, register, (), ())
        return item_of(path, register, known.newest_first(below), known.writes.values())

    async def items(self, slot: int, paths: Sequence[str], *, below: int | None = None) -> list[PathItem]:
        at = self._look(slot)
        found = (self._item(at, path, below) for path in sorted(set(paths)))
        return [item for item in found if item is not None]

    def _page(self, at: MemorySlot, paths: Iterable[str], size_bytes: int) -> tuple[list[PathItem], str | None]:
        page, last = ItemPage(size_bytes), ""
        for path in paths:
            item = self._item(at, path)
            if item is None:
                continue
            if not page.add(item):
                return page.items, last
            last = path
        return page.items, None

    async def items_differing(
        self, slot: int, known: Mapping[int, bytes], after: str, size_bytes: int
    ) -> tuple[list[PathItem], str | None]:
        at = self._look(slot)
        theirs = {bucket: _pairs(data) for bucket, data in known.items()}

        def differs(path: str) -> bool:
            states = theirs.get(bucket_of(path))
            return states is not None and states.get(path_key(path)) != _state_of(at, path)

        own = sorted(path for path in at.digests if path > after)
        return self._page(at, (path for path in own if differs(path)), size_bytes)

    async def items_after(self, slot: int, after: str, size_bytes: int) -> tuple[list[PathItem], str | None]:
        at = self._look(slot)
        return self._page(at, at.known_paths(after), size_bytes)

    async def log_lines(self, slot: int, after: int, limit: int) -> tuple[list[LogLine], bool]:
        at = self._look(slot)
        begin = max(after, at.log_cut)
        lines = at.log[begin - at.log_cut :][:limit]
        return [LogLine(begin + 1 + i, path, revision) for i, (path, revision) in enumerate(lines)], after < at.log_cut

    async def trim_log(self, slot: int, keep: int) -> int:
        at = self._look(slot)
        count = min(max(0, len(at.log) - keep), _TRIM_MAX)
        del at.log[:count]
        at.log_cut += count
        return count

    # -- mending

    async def wanted(self, slot: int, limit: int) -> list[Wanted]:
        known = self._look(slot).wanted.values()
        return sorted(known, key=lambda one: (one.version.size, one.path, one.version.version))[:limit]

    async def referred(self, slot: int, blob_id: str) -> tuple[str, Version] | None:
        for path, known in self._look(slot).paths.items():
            for version, _ in known.rows.values():
                if version.blob_id == blob_id:
                    return path, version
        return None

    async def set_wanted(self, slot: int, path: str, version: Version, *, damaged: bool) -> None:
        at = self._slots.get(slot)
        if at is None or not version.size or at.referred(version.blob_id) is None:
            return
        if version.blob_id not in at.evicted or not at.is_covered(version):
            at.want(path, version, damaged=damaged)

    async def not_whole(self, slot: int, versions: Sequence[Version]) -> list[Version]:
        evicted = self._look(slot).evicted

        def is_looked_at(version: Version) -> bool:
            return not version.inline or version.blob_id in evicted

        return [one for one in versions if not (is_looked_at(one) and await self.is_whole(slot, one))]

    async def is_whole(self, slot: int, version: Version) -> bool:
        at = self._slots.get(slot)
        if at is None:
            return version.size == 0
        if not at.is_whole(version):
            return version.blob_id in at.evicted and at.is_covered(version)
        if at.referred(version.blob_id) is not None:
            at.keep_whole(version)
        return True

    async def install_bodies(self, slot: int, bodies: Sequence[tuple[Version, bytes]]) -> None:
        assert all(version.inline for version, _ in bodies), "a file does not belong into the database"
        self._install_many(slot, bodies, self._keep_body)

    async def install_blobs(self, slot: int, blobs: Sequence[tuple[Version, bytes]]) -> None:
        assert not any(version.inline for version, _ in blobs), "an inline body is no file"
        self._install_many(slot, blobs, self._keep_blob)

    def _install_many(
        self, slot: int, given: Sequence[tuple[Version, bytes]], keep: Callable[[MemorySlot, Version, bytes], None]
    ) -> None:
        at = self._slot(slot)
        for version, data in given:
            self.guard()
            if len(version.chunks) != 1 or content_hash(data) != version.chunks[0].id:
                raise DigestMismatch(f"the bytes are not those of blob {version.blob_id}; they were not stored")
            if at.referred(version.blob_id) is None:
                continue  # it expired while its bytes were on their way
            keep(at, version, data)
            at.keep_whole(version)

    def _keep_body(self, at: MemorySlot, version: Version, data: bytes) -> None:
        at.bodies[version.blob_id] = data
        at.corrupt.discard(version.blob_id)

    def _keep_blob(self, at: MemorySlot, version: Version, data: bytes) -> None:
        self.apply(Staged(at.state.slot, version.blob_id, self._wall_ms(), True))
        at.files[version.blob_id] = {version.chunks[0].id: data}
        at.incomplete.discard(version.blob_id)
