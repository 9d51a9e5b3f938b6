"""The memory store's part in scrub and garbage collection."""

from __future__ import annotations

from amberblob.digests import BUCKETS, DIGEST_MODULUS, bucket_of
from amberblob.ids import ulid_time_ms
from chunkstore.interface import CheckedPage, History
from chunkstore.memory_repair import MemoryRepair
from chunkstore.memory_state import MemorySlot, PathState, true_digest
from chunkstore.overlay import Intent


class MemoryUpkeep(MemoryRepair):
    """See the interface for every method."""

    # -- scrub

    async def check_page(self, slot: int, after: str, limit: int) -> CheckedPage:
        at = self._look(slot)
        ahead = sorted(path for path in {*at.known_paths(after), *at.digests} if path > after)
        here, wrong = ahead[:limit], []
        for path in here:
            register, known = self._register(at, path), at.paths.get(path) or PathState()
            rows = [version for version, _ in known.rows.values()]
            if true_digest(path, register, rows) != at.digests.get(path, 0):
                wrong.append(path)
            else:
                known.bury()
        versions = tuple(
            (path, version) for path in here if path in at.paths for version in at.paths[path].newest_first()
        )
        return CheckedPage(next_after=here[-1] if len(ahead) > limit else None, wrong=tuple(wrong), versions=versions)

    async def check_sums(self, slot: int) -> bool:
        at = self._look(slot)
        sums = [0] * BUCKETS
        for path, digest in at.digests.items():
            bucket = bucket_of(path)
            sums[bucket] = (sums[bucket] + digest) % DIGEST_MODULUS
        right, at.sums = sums == at.sums, sums
        return right

    async def orphans(self, slot: int, older_than_ms: int) -> list[str]:
        at = self._look(slot)
        if self._is_being_filled(at):
            return []
        return sorted(
            blob_id for blob_id in {*at.files, *at.bodies, *at.waiting}
            if ulid_time_ms(blob_id) < older_than_ms
            and at.intents.get(blob_id, (None, 0))[0] not in (Intent.STAGED, Intent.ARCHIVED)
            and blob_id not in at.garbage and at.referred(blob_id) is None
        )  # fmt: skip

    def _is_being_filled(self, at: MemorySlot) -> bool:
        """Whether the database was lost and its rows are not all back: then nothing says what belongs here."""
        return at.state.incarnation != self.disk_id and not at.state.synced_epoch

    async def memo(self, slot: int, name: str) -> str:
        return self._look(slot).memos.get(name, "")

    async def set_memo(self, slot: int, name: str, text: str) -> None:
        self._raise_if_failed()
        self._slot(slot).memos[name] = text

    # -- garbage

    async def histories(self, slot: int, after: str, limit: int) -> tuple[list[History], str | None]:
        at = self._look(slot)
        found: list[History] = []
        for path in (path for path in at.known_paths(after) if path in at.digests):
            rows = at.paths[path].rows
            if len(rows) == 1 and all(dead_at is None for _, dead_at in rows.values()):
                continue
            if len(found) == limit:
                return found, found[-1].path
            register = self._register(at, path)
            found.append(
                History(
                    path=path,
                    record=register.record if register.chosen else None,
                    rows=tuple((n, rows[n][0].created_at_ms, rows[n][1]) for n in sorted(rows)),
                )
            )
        return found, None

    async def sweep_garbage(self, slot: int, limit: int) -> int:
        at = self._look(slot)
        if not at.garbage:
            return 0
        self._raise_if_failed()
        count = 0
        for blob_id in list(at.garbage)[:limit]:
            del at.garbage[blob_id]
            if at.referred(blob_id) is None:
                self._remove(at, blob_id)
                count += 1
        return count

    @staticmethod
    def _remove(at: MemorySlot, blob_id: str) -> None:
        at.bodies.pop(blob_id, None)
        at.corrupt.discard(blob_id)
        at.files.pop(blob_id, None)
        at.incomplete.discard(blob_id)
        at.intents.pop(blob_id, None)
        at.wanted.pop(blob_id, None)

    async def forget_writes(self, slot: int, older_than_ms: int, limit: int) -> int:
        at = self._look(slot)
        count = 0
        for path, known in at.paths.items():
            record = self._register(at, path).record
            kept = {mark.write_id for mark in record.writes} if record is not None else set()
            old = [
                write_id for write_id, mark in known.writes.items()
                if mark.at_ms < older_than_ms and write_id not in kept
            ][: limit - count]  # fmt: skip
            for write_id in old:
                del known.writes[write_id]
            count += len(old)
        return count
