"""What a path is, what each call does to it, and what a client may be told: the specification that histories are held to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amberblob.manifest import Record, covers
from node.protocol.operations import NO_CONDITIONS
from sim.history import Call, Seen

ANY_VERSION = -1
"""In a :class:`~sim.history.Seen`: a head there was, whatever its version."""


class Versions:
    """The versions of a path, oldest to newest, as a chain. Each chain exists once, so that ``is`` compares them."""

    __slots__ = ("before", "etag", "following", "number")

    def __init__(self, before: Versions | None = None, number: int = 0, etag: str = "") -> None:
        self.before = before
        self.number = number
        self.etag = etag
        self.following: dict[tuple[int, str], Versions] = {}

    def then(self, number: int, etag: str) -> Versions:
        """This chain and one version more."""
        found = self.following.get((number, etag))
        if found is None:
            found = self.following[number, etag] = Versions(self, number, etag)
        return found

    def newest_first(self) -> Iterator[tuple[int, str]]:
        at = self
        while at.before is not None:
            yield at.number, at.etag
            at = at.before

    def etag_of(self, version: int) -> str | None:
        at = self
        while at.before is not None and at.number >= version:
            if at.number == version:
                return at.etag
            at = at.before
        return None


State = tuple[int, int, int, int, Versions]
"""(revision, version_max, live, taken, versions); live and taken are bit masks over versions."""

First = tuple[int, int, int, int, tuple[tuple[int, str], ...]]
"""A state with its versions written out: ((version, etag), …), ascending."""

NOTHING: First = (0, 0, 0, 0, ())
"""The state of a path that nobody has written."""


def state_of(first: First) -> State:
    """A state as the search wants it."""
    revision, version_max, live, taken, rows = first
    versions = Versions()
    for number, etag in rows:
        versions = versions.then(number, etag)
    return revision, version_max, live, taken, versions


def apply_call(call: Call, state: State) -> tuple[tuple[Any, ...], State]:
    """What one write does to the state when it happens at one moment, alone; and everything a client may be told."""
    revision, version_max, live, taken, versions = state
    head = live.bit_length() - 1 if live else 0
    conditions = call.conditions
    if conditions is not NO_CONDITIONS:
        etag = versions.etag_of(head)
        if (
            (conditions.absent and head)
            or (conditions.etags and (not head or (conditions.etags != ("*",) and etag not in conditions.etags)))
            or (conditions.version is not None and conditions.version != head)
        ):
            return (412, head, etag), state
    kind, version = call.kind, call.version
    if kind == "put":
        number = version_max + 1 if version is None else version
        if number <= version_max:
            return (409, version_max), state
        return ("ok", number), (revision + 1, number, live | 1 << number, taken, versions.then(number, call.etag))
    if kind == "delete":
        if not head:
            return (404,), state
        return ("ok", head), (revision + 1, version_max, 0, live, versions)
    if kind == "delete-version":
        assert version is not None
        if not live >> version & 1:
            return (404,), state
        return ("ok", version), (revision + 1, version_max, live & ~(1 << version), 1 << version, versions)
    assert kind == "restore"
    if version is None:
        if not taken:
            return (404,), state
        lifted, taken = taken, 0
    else:
        if versions.etag_of(version) is None:
            return (404,), state
        if live >> version & 1:
            return ("same", head), state
        lifted = 1 << version
        taken &= ~lifted
    live |= lifted
    return ("ok", live.bit_length() - 1), (revision + 1, version_max, live, taken, versions)


def agrees(told: tuple[Any, ...], result: tuple[Any, ...]) -> bool:
    """Whether a client that was told ``result`` was told the truth, as far as that goes."""
    if result[0] == "done":
        return told[0] in ("ok", "same") and told[1 : len(result)] == result[1:]
    return told[: len(result)] == result


def shows(call: Call, state: State) -> bool:
    """Whether a read of this state tells what the call was told."""
    assert call.result is not None
    told = call.result[1]
    live, versions = state[2], state[4]
    if call.kind == "read-version":
        etag = versions.etag_of(call.version or 0)
        return bool(told == (None if etag is None else (etag, bool(live >> (call.version or 0) & 1))))
    if call.kind == "read":
        return _shows_head(told, state)
    head, rows = told
    return _shows_head(head, state) and rows == tuple(
        (number, etag, bool(live >> number & 1)) for number, etag in versions.newest_first()
    )


def _shows_head(told: Record | Seen | None, state: State) -> bool:
    revision, version_max, live, _taken, versions = state
    head = live.bit_length() - 1 if live else 0
    if told is None:
        return revision == 0
    if isinstance(told, Seen):
        return (
            (told.version == head or (told.version == ANY_VERSION and head > 0))
            and (told.etag is None or told.etag == versions.etag_of(head))
            and (told.version_max is None or told.version_max == version_max)
        )
    return (
        told.revision == revision
        and told.version_max == version_max
        and (told.head.version if told.head else 0) == head
        and (told.head is None or told.head.etag == versions.etag_of(head))
        and all(covers(told.live, number) == bool(live >> number & 1) for number, _ in versions.newest_first())
    )


ROOT = Versions()


def head_alone(state: State) -> State:
    """The state with nothing but the head's etag: all that reads of the head and conditions on etags depend on."""
    live, versions = state[2], state[4]
    if not live:
        return 0, 0, 0, 0, ROOT
    return 0, 1, 2, 0, ROOT.then(1, versions.etag_of(live.bit_length() - 1) or "")


def without_revision(state: State) -> State:
    """The state where nobody was told a revision."""
    return 0, *state[1:]
