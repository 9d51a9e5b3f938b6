"""What a job of the archive is: the request, how far a node is with it, and what carries it out.

A job runs on every node of the cluster, each for its part (mostly: for the slots that it looks after). It may be stopped and
goes on after a restart where it was, as its :class:`Progress` is written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import msgspec

from amberblob.archivejobs import JobKind, JobWanted
from amberblob.wire_repair import bitmap_of, slots_in
from archive.savings import RuleSavings

JobState = Literal["running", "done", "failed", "stopped"]

PROBLEMS_MAX = 20
"""Of one job and node, the first ones; :attr:`JobStatus.failures` counts all."""
PROBLEMS_LISTED = 3
"""Of them where many jobs are told at once: what a node tells of all of them has to fit into one frame."""
TEXT_CHARS_MAX = 1000
"""Of a problem or a detail; what is longer is cut."""


class JobRequest(JobWanted, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What is to be done: what somebody wanted, once a node took it. Nodes tell it to each other and may know more fields than this one.

    Attributes:
        job: ULID.
        asked_at_ms: epoch milliseconds.
        warnings: what whoever asked was told before (:mod:`node.archive.forewarned`).
    """

    job: str
    asked_at_ms: int = 0
    warnings: tuple[str, ...] = ()

    @classmethod
    def taken(cls, wanted: JobWanted, *, job: str, asked_at_ms: int, warnings: tuple[str, ...] = ()) -> JobRequest:
        """The request that a wanted job becomes under this id."""
        more = {"job": job, "asked_at_ms": asked_at_ms, "warnings": warnings}
        return cls(**{**msgspec.structs.asdict(wanted), **more})


class JobStatus(msgspec.Struct, kw_only=True):
    """How far a node is with its part.

    Attributes:
        slots_total, slots_done: of a job that goes slot by slot, on this node.
        bytes_total: what it found to do so far, 0: not known; bytes_done: of that.
        counts: what it did, by name (``objects``, ``chunks``, ``bytes_sent``, ``evicted_bytes``, ...); each only grows.
        failures: what it could not do and left; problems: the first of them, as texts.
        detail: one line: what it does now, or why it ended.
        notes: what it needs to go on after a restart; opaque.
        done_slots: the slots that it is through with.
        savings: of a dry run, what each rule would move and free on this node.
        all_done: this node has seen that every slot of the job was done by somebody, and that the other nodes' parts had ended well: whoever
            is away has nothing left to do, or to tell.
    """

    request: JobRequest
    node: str
    state: JobState = "running"
    began_ms: int = 0
    ended_ms: int = 0
    slots_total: int = 0
    slots_done: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    counts: dict[str, int] = {}
    failures: int = 0
    problems: list[str] = []
    detail: str = ""
    notes: dict[str, str] = {}
    done_slots: list[int] = []
    savings: list[RuleSavings] = []
    all_done: bool = False


ELSEWHERE = "elsewhere"
"""The note of the slots that other nodes have done."""


class Progress:
    """What a running job tells. ``saved`` is set by who writes it down.

    Attributes:
        status: as it is now.
        changed: whether something changed since it was last written down.
    """

    def __init__(self, status: JobStatus) -> None:
        self.status = status
        self.changed = True
        self._done = set(status.done_slots)
        self._elsewhere = set(slots_in(bytes.fromhex(status.notes.get(ELSEWHERE, ""))))

    def add(self, **counts: int) -> None:
        """Count what was done."""
        for name, count in counts.items():
            self.status.counts[name] = self.status.counts.get(name, 0) + count
        self.changed = True

    def bytes(self, *, total: int = 0, done: int = 0) -> None:
        """Found so many more bytes to do, or done."""
        self.status.bytes_total += total
        self.status.bytes_done += done
        self.changed = True

    def problem(self, text: str, *, count: int = 1) -> None:
        """Something could not be done, or ``count`` things for the same reason, and was left."""
        text = _cut(text)
        self.status.failures += count
        if len(self.status.problems) < PROBLEMS_MAX and text not in self.status.problems:
            self.status.problems.append(text)
        self.changed = True

    def say(self, detail: str) -> None:
        """What it does now."""
        self.status.detail = _cut(detail)
        self.changed = True

    def is_done(self, slot: int) -> bool:
        """Whether the job is through with the slot, on this node or another."""
        return slot in self._done or slot in self._elsewhere

    def done_elsewhere(self, slots: Iterable[int]) -> None:
        """Other nodes told that they are through with these."""
        self._elsewhere.update(slots)
        self.set_note(ELSEWHERE, bitmap_of(self._elsewhere).hex())

    def slot_done(self, slot: int) -> None:
        """The job is through with the slot."""
        if slot not in self._done:
            self._done.add(slot)
            self.status.done_slots.append(slot)
            self.status.slots_done = len(self.status.done_slots)
            self.changed = True

    def note(self, name: str) -> str:
        """What was noted before a restart; empty: nothing."""
        return self.status.notes.get(name, "")

    def set_note(self, name: str, text: str) -> None:
        """Note it; it is written down within a second or so: a note may be lost, so what it says is done must be harmless to do again."""
        self.status.notes[name] = text
        self.changed = True


class JobWork(Protocol):
    """Carries one kind of job out on this node."""

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Do this node's part; returns when there is nothing left of it.

        Cancelled when the job is stopped or the node ends. What cannot be done for one object is a :meth:`Progress.problem`, and the
        job goes on with the rest. Raises: ArchiveError or another AmberError when nothing of it can be done; it is then ``failed``.
        """
        ...


Scope = Literal["slots", "copies", "one"]
"""Whose work a job is. slots: of each slot, of the node that looks after it, and another takes it over when that one dies. copies: of every
node, for each of its own copies. one: of one node for all."""

SCOPES: Mapping[JobKind, Scope] = {
    "run": "slots",
    "verify": "slots",
    "restore": "copies",
    "gc": "copies",
    "export": "slots",
    "recover": "one",
    "import": "one",
}


SCHEDULED = "scheduled"
"""The option of jobs that a node began by itself: only its own part, while every other node begins its own."""


def told(status: JobStatus, *, slots: bool) -> JobStatus:
    """What others are told of it: not its notes; its slots, and all of its problems, only if this one is asked for."""
    if slots:
        return msgspec.structs.replace(status, notes={})
    return msgspec.structs.replace(status, notes={}, done_slots=[], problems=status.problems[:PROBLEMS_LISTED])


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 1]}…"
