"""What a search for an order has to know of a history before it begins: each call's place in time, and what may be forgotten.

All of it follows from the history alone, and no order is lost by it:

* A put whose content somebody was told has happened before that answer came: that ends it, also one of unknown outcome.
* Versions grow, so a put has happened before any with a higher version ends. An unknown one has the version that the
  last read shows; if that read shows all rows and not this one, it never happened.
* Where nobody asked for versions, or was told of one, only the head counts (:attr:`Prepared.forget`). There, contents
  that nobody was told of or asked for are all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from amberblob.manifest import Record
from node.protocol.operations import NO_CONDITIONS, Conditions
from sim.history import READS, Call, Seen
from sim.specification import ANY_VERSION, State, head_alone, without_revision

FOREVER = float("inf")
ANY_HEAD = Conditions(etags=("*",))
UNSEEN = "unseen"
"""The etag of contents that nobody was told of or asked for."""


@dataclass(slots=True)
class Item:
    """A call, as the search sees it.

    Attributes:
        index: its bit in the masks of the search.
        call: as it was made; for people.
        asked: as it is applied to states.
        result: what it was told; None: nothing that is known, and it may never have happened.
        ended: when it has happened at the latest. Infinite, too, for an answered call that nothing limits.
        because: the call whose answer tells that.
        passive: its answer says that it changed nothing.
        effect: calls of unknown outcome with equal ``effect`` do the same, if their conditions let them.
        alike: and those with equal ``alike`` have the same conditions, too.
    """

    index: int
    call: Call
    asked: Call
    result: tuple[Any, ...] | None
    ended: float
    because: Call
    passive: bool = False
    effect: object = None
    alike: object = None

    @property
    def bit(self) -> int:
        return 1 << self.index

    @property
    def breadth(self) -> int:
        """Of two calls, one whose conditions hold in fewer states than the other's has less of it."""
        conditions = self.asked.conditions
        if conditions == NO_CONDITIONS:
            return 1_000_001
        return 1_000_000 if conditions == ANY_HEAD else len(conditions.etags)

    @property
    def version(self) -> int | None:
        """Of a put whose version is known."""
        known = self.call.kind == "put" and self.result is not None and self.result[0] == "ok"
        return self.result[1] if known and self.result is not None else None


@dataclass(slots=True)
class Prepared:
    """A history that a search can begin with.

    Attributes:
        items: what may have happened, in the order of the calls.
        puts: the versions of the puts that are known, ascending.
        forget: takes from a state what nobody can ask for.
    """

    items: list[Item]
    puts: list[int]
    forget: Callable[[State], State]


def prepare(calls: Iterable[Call]) -> Prepared:
    """Look at the calls on one path."""
    calls = list(calls)
    rows = _rows_at_the_end(calls)
    heads_only = all(_of_heads(call) for call in calls if not call.void)
    items: list[Item] = []
    for call in calls:
        result = call.result
        if call.void or (result is None and call.kind in READS):
            continue
        ended = FOREVER if result is None or call.ended is None else call.ended
        if result is None and call.kind == "put" and rows is not None:
            if call.etag not in rows:
                continue
            result = ("ok", rows[call.etag])
        items.append(Item(len(items), call, call, result, ended, call))
    told, asked_for = _told_of(calls), _asked_for(calls)
    for item in items:
        etag = item.call.etag
        if item.call.kind == "put":
            _end_by_what_was_told(item, told.get(etag))
            if heads_only and etag not in told and etag not in asked_for:
                item.asked = replace(item.call, content=UNSEEN)
    _end_by_higher_versions(items)
    for item in items:
        asked, result = item.asked, item.result
        item.passive = asked.kind in READS or (result is not None and result[0] in (404, 409, 412, "same"))
        item.effect = (asked.kind, asked.version, asked.etag if asked.kind == "put" else "")
        item.alike = (item.effect, asked.conditions)
    puts = sorted(item.version for item in items if item.version is not None)
    return Prepared(items, puts, _forget(items, heads_only=heads_only))


def narrower(one: Conditions, other: Conditions) -> bool:
    """Whether the other holds in each state in which the one does. May say no where it is so."""
    if other in (one, NO_CONDITIONS):
        return True
    if one.absent or other.absent or one.version != other.version or not one.etags:
        return False
    return other.etags == ("*",) or set(one.etags) <= set(other.etags)


def _rows_at_the_end(calls: list[Call]) -> dict[str, int] | None:
    """The version of each etag, by the last read after everything was healed; None if there was none."""
    rows: dict[str, int] | None = None
    for call in calls:
        if call.kind == "read-all" and call.number < 0 and call.result is not None:
            rows = {etag: version for version, etag, _ in call.result[1][1]}
    return rows


def _of_heads(call: Call) -> bool:
    """Whether a call neither asks nor tells of more than whether there is a head, and its etag."""
    result = call.result
    if call.kind not in ("put", "delete", "read") or call.version is not None or call.conditions.version is not None:
        return False
    if result is None:
        return True
    if call.kind != "read":
        return len(result) == 1
    head = result[1]
    return isinstance(head, Seen) and head.version in (0, ANY_VERSION) and head.version_max is None


@dataclass(frozen=True, slots=True)
class _Told:
    """The first answer that showed a content: which call's, and of which version it was told, if it was."""

    by: Call
    at: float
    version: int | None


def _told_of(calls: list[Call]) -> dict[str, _Told]:
    """Of each etag that anybody but its writer was told."""
    told: dict[str, _Told] = {}
    for call in calls:
        if call.result is None or call.ended is None or call.void:
            continue
        for version, etag in _rows_in(call):
            if etag is not None and (etag not in told or call.ended < told[etag].at):
                told[etag] = _Told(call, call.ended, version if version and version > 0 else None)
    return told


def _rows_in(call: Call) -> list[tuple[int | None, str | None]]:
    """The versions and etags that an answer tells."""
    result = call.result
    assert result is not None
    match call.kind, result[0]:
        case _, 412 if len(result) > 2:
            return [result[1:3]]
        case "read", _:
            return _head_in(result[1])
        case "read-version", _ if result[1] is not None:
            return [(call.version, result[1][0])]
        case "read-all", _:
            return [*_head_in(result[1][0]), *((version, etag) for version, etag, _ in result[1][1])]
    return []


def _head_in(told: Record | Seen | None) -> list[tuple[int | None, str | None]]:
    if isinstance(told, Seen):
        return [(told.version, told.etag)]
    return [] if told is None or told.head is None else [(told.head.version, told.head.etag)]


def _asked_for(calls: list[Call]) -> set[str]:
    return {etag for call in calls for etag in call.conditions.etags}


def _end_by_what_was_told(item: Item, told: _Told | None) -> None:
    if told is None or told.at < item.call.invoked:
        # An answer from before it was asked is wrong, and the search finds that where it is.
        return
    if item.result is None:
        item.result = ("done",) if told.version is None else ("ok", told.version)
    if told.at < item.ended and item.result[0] in ("ok", "done"):
        item.ended, item.because = told.at, told.by


def _end_by_higher_versions(items: list[Item]) -> None:
    known = sorted((item.version, item.ended, item.index) for item in items if item.version is not None)
    earliest = FOREVER
    because: Call | None = None
    for _, ended, index in reversed(known):
        item = items[index]
        if earliest < ended and because is not None and earliest >= item.call.invoked:
            item.ended, item.because = earliest, because
        elif ended < earliest:
            earliest, because = ended, item.because


def _forget(items: list[Item], *, heads_only: bool) -> Callable[[State], State]:
    if heads_only:
        return head_alone
    if not any(_tells_revision(item) for item in items):
        return without_revision
    return _nothing


def _nothing(state: State) -> State:
    return state


def _tells_revision(item: Item) -> bool:
    if item.call.kind not in ("read", "read-all") or item.result is None:
        return False
    told = item.result[1]
    return not isinstance(told if item.call.kind == "read" else told[0], Seen)
