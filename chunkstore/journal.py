"""Group commit: one thread that writes and syncs whatever waits, as one batch.

The event loop puts entries into a queue and goes on; while one batch is being synced the next one gathers.
After the first error nothing is written again: the kernel may have dropped the pages that it failed to write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from amberblob.ballot import Register
from amberblob.errors import DiskFailed
from amberblob.limits import MIB
from chunkstore.applier import DurableBatch
from chunkstore.codec import Batch, Entry
from chunkstore.fileops import FAILED_REMEDY
from chunkstore.segments import SegmentWriter
from chunkstore.threads import Signals, Threads

_log = structlog.get_logger(__name__)

LAZY_S = 0.25
"""How long an entry that nobody waits for may stay unwritten, unless a batch that somebody waits for takes it along.

That costs nobody anything: until it is durable nobody was told of it. What is mostly so is the mark that a record is
chosen. A crash that forgets it leaves the record accepted and undecided, and the next one who meets it finishes it.
"""

SYNC_S_MAX = 30.0
"""A write with its sync that takes longer is taken for one that never ends: the disk has failed."""

_LOOKS = 10
_JOIN_S = 1.0
_BATCH_BYTES_MAX = 8 * MIB


Told = Callable[[DiskFailed | None], None]
"""Called with None once something is durable, or with the error when it never will be."""


class Journal:
    """The loop's side of the journal, and its thread.

    Args:
        next_position: of the first entry.
        on_durable: called on the loop with each batch once it is synced, in order.
        on_failed: called on the loop once, with the reason.
    """

    def __init__(
        self, writer: SegmentWriter, next_position: int, on_durable: Callable[[DurableBatch], None],
        on_failed: Callable[[str], None], threads: Threads,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[int, Entry, int, Register | None]] = deque()
        self._wake: Signals = threads.signals()
        self._woken = False
        self._wanted = 0
        self._taken = next_position - 1
        self._lazy: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._batches = 0
        self._writing = 0
        self._seen = (0, 0)
        self._hung = False
        self._ended = False
        self._waiters: list[tuple[int, Told]] = []
        self.next_position = next_position
        self.durable_position = next_position - 1
        self.failed: str | None = None
        self.batches = 0
        """How many were written, each with one sync."""
        self.entries = 0
        """How many those held."""
        self._thread = threads.start("amber-journal", self._run)

    # -- the loop's side

    def append(self, entry: Entry, size_bytes: int, register: Register | None) -> int:
        """Queue an entry; returns its position. It is written soon, or at once when somebody waits for it.

        ``register`` is what the entry makes of its register, if that is known; it travels along unwritten.
        """
        position = self.next_position
        self.next_position = position + 1
        self._queue.append((position, entry, size_bytes, register))
        if self._lazy is None and not self._woken:
            self._lazy = self._loop.call_later(LAZY_S, self.flush)
        return position

    def flush(self) -> None:
        """Write what is queued as soon as the disk is free."""
        self._want(self.next_position - 1)

    def _want(self, position: int) -> None:
        """Have everything up to ``position`` written. What came in behind it goes along or waits in its own time."""
        self._wanted = max(self._wanted, position)
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._queue and not self._woken:
            self._woken = True
            self._wake.put(True)
            if self._watch is None:
                self._watch = self._loop.call_later(SYNC_S_MAX / _LOOKS, self._look)

    def _look(self) -> None:
        """See whether the thread is still at the same batch; after as many looks as are allowed the disk has failed.

        Looks are counted rather than time, so that a process that was stopped for a while does not fail its disk.
        """
        self._watch = None
        writing = self._writing
        if self.failed is not None or self._ended or not (writing or self._woken):
            return
        batch, looks = self._seen
        looks = looks + 1 if writing and writing == batch else 0
        self._seen = (writing, looks)
        if looks >= _LOOKS:
            self._hung = True
            self.fail(f"a write to the journal has not ended for {SYNC_S_MAX:.0f} s: the disk hangs. {FAILED_REMEDY}")
            return
        self._watch = self._loop.call_later(SYNC_S_MAX / _LOOKS, self._look)

    def when_durable(self, position: int, callback: Told) -> None:
        """Call back once everything up to ``position`` is synced; at once if it is, or never will be."""
        if position <= self.durable_position:
            callback(None)
        elif self.failed is not None or self._ended:
            callback(DiskFailed(self.failed or CLOSED))
        else:
            assert position < self.next_position, "nobody can wait for what was not applied"
            self._waiters.append((position, callback))
            self._want(position)

    def tell(self, callback: Told, error: DiskFailed | None) -> None:
        """One waiter's own mistake is not the others' business."""
        try:
            callback(error)
        except Exception as mistake:
            self._loop.call_exception_handler({"message": "a waiter of the journal failed", "exception": mistake})

    def raise_if_failed(self) -> None:
        """Raise DiskFailed if the disk takes no more writes."""
        if self.failed is not None:
            raise DiskFailed(self.failed)

    def fail(self, why: str) -> None:
        """Take no more entries, and tell everybody who waits. On the loop."""
        if self.failed is not None:
            return
        self.failed = why
        self._on_failed(why)
        self._refuse_waiters(why)

    def _refuse_waiters(self, why: str) -> None:
        waiters, self._waiters = self._waiters, []
        for _, callback in waiters:
            self.tell(callback, DiskFailed(why))

    def _written(self, batch: DurableBatch, more: bool) -> None:
        self._woken = more
        if self.failed is not None:
            return
        self.durable_position = batch.entries[-1][0]
        self.batches += 1
        self.entries += len(batch.entries)
        self._on_durable(batch)
        durable, waiters = self.durable_position, self._waiters
        # Callbacks may add waiters, and may make the disk fail.
        self._waiters = [waiter for waiter in waiters if waiter[0] > durable]
        for position, callback in waiters:
            if position <= durable:
                self.tell(callback, None)
        if self._queue and not self._woken:
            # Came in after the thread had looked: at once if somebody waits, else in its own time.
            if self._waiters:
                self.flush()
            elif self._lazy is None:
                self._lazy = self._loop.call_later(LAZY_S, self.flush)

    async def close(self) -> None:
        """Write what is queued and end the thread; one that hangs in a write is left behind."""
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        self._wanted = self.next_position
        self._wake.put(False)
        while self._thread.is_alive() and not self._hung:
            if self._writing and self._watch is None:
                self._look()
            await asyncio.to_thread(self._thread.join, _JOIN_S)
        # The thread's last callbacks are queued before this coroutine goes on.
        await asyncio.sleep(0)
        self._ended = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._refuse_waiters(CLOSED)
        if not self._thread.is_alive():
            self._writer.close()

    # -- the thread's side

    def _take(self) -> DurableBatch | None:
        entries: Batch = []
        registers: list[Register | None] = []
        size = 0
        while size < _BATCH_BYTES_MAX:
            try:
                position, entry, size_bytes, register = self._queue.popleft()
            except IndexError:
                break
            entries.append((position, entry))
            registers.append(register)
            self._taken = position
            size += size_bytes
        return DurableBatch(0, entries, registers, size) if entries else None

    def _post(self, callback: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *values)
        except RuntimeError:
            _log.warning("journal-loop-gone", action="the event loop was closed before the disk")

    def _run(self) -> None:
        going = True
        while going:
            going = self._wake.get()
            wrote, more = False, True
            while more and (batch := self._take()):
                self._batches += 1
                self._writing = self._batches
                try:
                    self._writer.append(batch.entries)
                except Exception as error:
                    if not isinstance(error, OSError):
                        _log.exception("journal-thread-died")
                    self._post(self.fail, f"the journal cannot be written: {error!r}. {FAILED_REMEDY}")
                    return
                finally:
                    self._writing = 0
                if self._hung:
                    # The disk was given up meanwhile; nobody is told, and nothing is written again.
                    return
                wrote = True
                batch.segment = self._writer.number
                more = self._taken < self._wanted
                self._post(self._written, batch, more)
            if not wrote:
                self._post(self._idle)

    def _idle(self) -> None:
        """The thread was woken and found that it had written everything before."""
        self._woken = False
        self.flush()


CLOSED = "the disk was closed: the node is stopping, or the store was closed before its users."
