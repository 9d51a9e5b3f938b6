"""Room on the disk: a reserve below which bytes are refused, and ballast that is dropped when even that is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from amberblob.errors import DiskFull
from amberblob.limits import MIB
from chunkstore.fileops import FileOps
from chunkstore.threads import Threads

_log = structlog.get_logger(__name__)

RESERVE_BYTES_DEFAULT = 256 * MIB
BALLAST_BYTES_MAX = 16 * MIB
BALLAST_NAME = "ballast"
_FRESH_S = 0.5


class SpaceGuard:
    """Watches the free room of the file system. Methods may be called from any thread.

    Args:
        reserve_bytes: new bytes are refused when less than this would stay free.
        monotonic_s: seconds; the free room is asked for at most every half second.
    """

    def __init__(
        self,
        disk: Path,
        ops: FileOps,
        reserve_bytes: int,
        monotonic_s: Callable[[], float],
        threads: Threads,
    ) -> None:
        self._disk = disk
        self._ops = ops
        self._reserve_bytes = reserve_bytes
        self._monotonic_s = monotonic_s
        self._ballast_bytes = min(BALLAST_BYTES_MAX, reserve_bytes // 4)
        self._lock = threads.lock()
        self._asked_s = float("-inf")
        self._free_bytes = 0

    def free_bytes(self, *, fresh: bool = False) -> int:
        """Free room in bytes, at most half a second old."""
        now = self._monotonic_s()
        if fresh or now - self._asked_s >= _FRESH_S:
            self._free_bytes = self._ops.free_bytes(self._disk)
            self._asked_s = now
        return self._free_bytes

    @property
    def full(self) -> bool:
        """Whether the free room is below the reserve."""
        return self.free_bytes() < self._reserve_bytes

    def require(self, size_bytes: int) -> None:
        """Raise DiskFull if the reserve would be touched after ``size_bytes`` more."""
        free = self.free_bytes()
        if free - size_bytes < self._reserve_bytes:
            raise self.refusal(f"{size_bytes} bytes were to be written")

    def refusal(self, why: str) -> DiskFull:
        """The error that says that the disk is full."""
        free = self.free_bytes()
        return DiskFull(
            f"{self._disk} has {free // MIB} MiB free, {self._reserve_bytes // MIB} MiB are kept in reserve, and "
            f"{why}. Free space, add a disk or a node, or lower the reserve.",
            extra={"free_bytes": free, "reserve_bytes": self._reserve_bytes},
        )

    def release_ballast(self) -> bool:
        """Drop the ballast so that what must go through does; False if there was none."""
        path = self._disk / BALLAST_NAME
        with self._lock:
            try:
                os.unlink(path)
            except FileNotFoundError:
                return False
            self._asked_s = float("-inf")
        _log.warning("ballast-dropped", disk=str(self._disk), action="the disk is full: free space or add a disk")
        return True

    def ensure_ballast(self) -> None:
        """Make the ballast if there is room for it beyond the reserve. Blocks for a moment."""
        path = self._disk / BALLAST_NAME
        with self._lock:
            if not self._ballast_bytes or path.exists():
                return
            if self.free_bytes(fresh=True) < self._reserve_bytes + self._ballast_bytes:
                return
            with contextlib.suppress(OSError):
                fd = self._ops.create(path)
                try:
                    self._ops.allocate(fd, self._ballast_bytes)
                except OSError:
                    self._ops.unlink(path)
                finally:
                    os.close(fd)
