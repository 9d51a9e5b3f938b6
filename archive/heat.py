"""When a blob was last read on this node, to the minute: what evicting goes by."""

from __future__ import annotations

from collections.abc import Iterable

HEAT_MAX = 200_000
MINUTE_MS = 60_000


class Heat:
    """Blobs and the minute in which each was last read here.

    Reading is on the way of every GET: :meth:`read` is one store into a dict; the minute comes from :meth:`tick`, which is to be called every
    half minute or so. Two generations bound it: when the younger is full it takes the place of the elder, so at least the last ``limit / 2``
    blobs are known, and at most ``limit``. One that was forgotten counts as not read since it was made.
    """

    def __init__(self, now_ms: int, *, limit: int = HEAT_MAX) -> None:
        self._half = max(1, limit // 2)
        self._minute = now_ms // MINUTE_MS
        self._young: dict[str, int] = {}
        self._elder: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._young) + sum(blob_id not in self._young for blob_id in self._elder)

    def read(self, blob_id: str) -> None:
        """Somebody reads it now."""
        self._young[blob_id] = self._minute
        if len(self._young) >= self._half:
            self._elder, self._young = self._young, {}

    def tick(self, now_ms: int) -> None:
        """It is ``now_ms`` (epoch milliseconds). If the clock went back, what was read later than that was read now."""
        minute = now_ms // MINUTE_MS
        if minute < self._minute:
            for generation in (self._young, self._elder):
                for blob_id, seen in generation.items():
                    if seen > minute:
                        generation[blob_id] = minute
        self._minute = minute

    def last_read_ms(self, blob_id: str, created_at_ms: int) -> int:
        """When it was read last, at the latest; a blob that nobody is known to have read: when it was made."""
        minute = self._young.get(blob_id)
        if minute is None:
            minute = self._elder.get(blob_id)
        return created_at_ms if minute is None else max(created_at_ms, minute * MINUTE_MS)

    @property
    def minute(self) -> int:
        """The minute since 1970 that reads are noted under now."""
        return self._minute

    def since(self, minute: int) -> list[tuple[str, int]]:
        """Blobs that were read in that minute or later, to be written down: of what was written down up to a minute, that minute again."""
        found = {blob_id: seen for blob_id, seen in self._elder.items() if seen >= minute}
        found.update((blob_id, seen) for blob_id, seen in self._young.items() if seen >= minute)
        return list(found.items())

    def load(self, known: Iterable[tuple[str, int]]) -> None:
        """What was written down before a restart, the latest first; what was read since goes before it."""
        for blob_id, minute in known:
            if len(self._elder) >= self._half:
                break
            self._elder.setdefault(blob_id, min(minute, self._minute))
