"""What goes to the archive and what may go from the disk: pure decisions over what one copy knows.

Time only nominates: a wrong clock may send something early, or late. That bytes go from the disk only when verified rows cover them
is decided here once, and again by the store when it does it.

``Policy.judge`` tells of one version whether it is to be sent, whether its bytes may go, and why not. :class:`Water` tells whether the disk is
full enough for a rule that waits for that; :class:`Candidates` which version goes first.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass

from amberblob.clock import Randomness
from amberblob.config import ArchiveAction, ArchiveRule, ArchiveSection, format_duration, format_size
from amberblob.manifest import Version
from chunkstore.interface import ArchiveView

CANDIDATES_MAX = 10_000
"""Versions of either kind among which the coldest are looked for; others are found when these are gone."""


class Why(enum.StrEnum):
    """Why a version is sent or evicted (``DUE``), or is not. ``text`` of a :class:`Judgement` says it in a sentence."""

    DUE = "due"
    NO_RULE = "no-rule"
    KEPT = "kept"
    YOUNG = "young"
    READ_LATELY = "read-lately"
    SMALL = "small"
    CURRENT = "current"
    DONE = "done"
    NO_BYTES = "no-bytes"
    STAYS = "stays"
    NOT_VERIFIED = "not-verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, in the units of the decisions; as :class:`amberblob.config.ArchiveRule`.

    Attributes:
        older_than_ms, not_read_for_ms: milliseconds.
        evict_above, evict_to: shares of the disk, 0 to 1; above 0: always, and then ``evict_to`` says nothing.
    """

    prefix: str
    action: ArchiveAction
    older_than_ms: int = 0
    not_read_for_ms: int = 0
    larger_than: int = 0
    only_old: bool = False
    evict_above: float = 0.0
    evict_to: float = 0.0

    @classmethod
    def of(cls, rule: ArchiveRule) -> Rule:
        """As the operator gave it."""
        return cls(
            prefix=rule.prefix,
            action=rule.action,
            older_than_ms=math.ceil(rule.older_than * 1000),
            not_read_for_ms=math.ceil(rule.not_read_for * 1000),
            larger_than=rule.larger_than,
            only_old=rule.versions == "old",
            evict_above=rule.evict_above / 100,
            evict_to=(rule.evict_to or rule.evict_above) / 100,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is to become of one version here.

    Attributes:
        rule: the one that counts; None: none fits.
        send: DUE: its chunks that the archive lacks are to be sent. Else why not.
        evict: DUE: its bytes may go, once the disk is full enough for the rule. Else why not.
        due_at_ms: with YOUNG and READ_LATELY: when that is over, if nobody reads it; else 0.
    """

    rule: Rule | None
    send: Why
    evict: Why
    due_at_ms: int = 0

    def text(self, *, of_evicting: bool = False) -> str:
        """Why, as a sentence for people."""
        why, rule = self.evict if of_evicting else self.send, self.rule
        if rule is None:
            return "no rule of [[archive.rules]] fits the path"
        named = f"the rule for {rule.prefix!r}" if rule.prefix else "the rule for all paths"
        match why:
            case Why.DUE:
                if not of_evicting:
                    return f"{named} sends it to the archive"
                if rule.evict_above:
                    return f"{named} lets its bytes go while the disk is fuller than {_percent(rule.evict_above)}"
                return f"{named} lets its bytes go"
            case Why.NO_RULE | Why.KEPT:
                return f"{named} keeps it out of the archive"
            case Why.YOUNG:
                return f"{named} leaves it alone until it is {format_duration(rule.older_than_ms / 1000)} old"
            case Why.READ_LATELY:
                wanted = format_duration(rule.not_read_for_ms / 1000)
                return f"{named} leaves it alone until nobody has read it here for {wanted}"
            case Why.SMALL:
                return f"{named} leaves what is smaller than {format_size(rule.larger_than)} alone"
            case Why.CURRENT:
                return f"{named} takes old versions only, and this is the current one"
            case Why.DONE:
                return "its bytes have gone already" if of_evicting else "the archive has all of it"
            case Why.NO_BYTES:
                return "its bytes are not all here"
            case Why.STAYS:
                return f"{named} ({rule.action}) lets no bytes go"
            case Why.NOT_VERIFIED:
                return "the archive's copy was not read back yet, at least not all of it"


class Policy:
    """The rules for all paths; the longest prefix that fits wins."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._longest_first = sorted(rules, key=lambda rule: len(rule.prefix), reverse=True)
        self._write_through = any(rule.action == "write-through" for rule in self._longest_first)

    @classmethod
    def of(cls, section: ArchiveSection) -> Policy:
        """The rules that the operator gave; none when there is no target."""
        return cls(Rule.of(rule) for rule in section.rules if section.target)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All of them, in the order in which they are tried."""
        return tuple(self._longest_first)

    @property
    def evicts(self) -> bool:
        """Whether any rule ever lets bytes go."""
        return any(rule.action == "archive-and-evict" for rule in self._longest_first)

    def below(self, prefix: str) -> tuple[Rule, ...]:
        """The rules that count for any path that begins with ``prefix``, by their own prefixes."""
        found = {rule for rule in self._longest_first if rule.prefix.startswith(prefix)}
        if (above := self.rule(prefix)) is not None:
            found.add(above)
        return tuple(sorted(found, key=lambda rule: rule.prefix))

    def undoing(self, prefix: str) -> tuple[Rule, ...]:
        """Those of them that let bytes go however full the disk is: also such as were brought back from the archive a moment ago."""
        return tuple(rule for rule in self.below(prefix) if rule.action == "archive-and-evict" and not rule.evict_above)

    def prefixes(self) -> tuple[str, ...]:
        """Below which something may be to do, none within another; what is elsewhere need not be looked at."""
        found: list[str] = []
        for prefix in sorted(rule.prefix for rule in self._longest_first if rule.action != "keep"):
            if not found or not prefix.startswith(found[-1]):
                found.append(prefix)
        return tuple(found)

    def rule(self, path: str) -> Rule | None:
        """The rule for a path; None: none fits, nothing of it goes to the archive."""
        for rule in self._longest_first:
            if path.startswith(rule.prefix):
                return rule
        return None

    def write_through(self, path: str) -> bool:
        """Whether a PUT of this path is acknowledged only when it is archived, too."""
        if not self._write_through:
            return False
        rule = self.rule(path)
        return rule is not None and rule.action == "write-through"

    def judge(self, view: ArchiveView, last_read_ms: int, now_ms: int) -> Judgement:
        """What is to become of a version at ``now_ms``, when it was last read here at ``last_read_ms`` (both epoch milliseconds).

        Of a version with a manifest the view may not know how many chunks it has: one whose rows are all verified is then said to be
        DUE for both; who sends finds nothing to send, and the store finds out whether it may be evicted.
        """
        rule = self.rule(view.path)
        if rule is None:
            return _NO_RULE
        if rule.action == "keep":
            return Judgement(rule=rule, send=Why.KEPT, evict=Why.KEPT)
        why, due_at_ms = _waits(rule, view, last_read_ms, now_ms)
        if view.uploaded >= view.chunk_count:
            send = Why.DONE
        elif why is not None:
            send = why
        else:
            send = Why.NO_BYTES if view.wanted or view.evicted else Why.DUE
        if view.evicted:
            evict = Why.DONE
        elif rule.action != "archive-and-evict":
            evict = Why.STAYS
        elif why is not None:
            evict = why
        else:
            evict = Why.DUE if _covered(view) else Why.NOT_VERIFIED
        return Judgement(rule=rule, send=send, evict=evict, due_at_ms=due_at_ms)


_NO_RULE = Judgement(rule=None, send=Why.NO_RULE, evict=Why.NO_RULE)


def is_old(view: ArchiveView) -> bool:
    """Whether a newer version, or a delete, has taken its place."""
    return not view.is_head or view.tombstoned_at_ms is not None


def _waits(rule: Rule, view: ArchiveView, last_read_ms: int, now_ms: int) -> tuple[Why | None, int]:
    """Why the rule leaves the version alone now, and until when; None: it does not."""
    version = view.version
    if rule.only_old and not is_old(view):
        return Why.CURRENT, 0
    if version.size < rule.larger_than:
        return Why.SMALL, 0
    old_at_ms = version.created_at_ms + rule.older_than_ms
    cold_at_ms = max(last_read_ms, version.created_at_ms) + rule.not_read_for_ms
    if rule.older_than_ms and now_ms < old_at_ms:
        return Why.YOUNG, max(old_at_ms, cold_at_ms)
    if rule.not_read_for_ms and now_ms < cold_at_ms:
        return Why.READ_LATELY, cold_at_ms
    return None, 0


def _covered(view: ArchiveView) -> bool:
    """Whether verified rows cover it, as far as the view can tell."""
    if view.verified >= view.chunk_count:
        return True
    # A chunk that occurs twice has one row, so a version with a manifest may have fewer rows than chunks.
    return view.version.manifest_id is not None and 1 < view.verified == view.uploaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """How full a disk is, in bytes; ``total`` at least 1. What others store on it counts, too."""

    used: int
    total: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.used / self.total


class Water:
    """For each rule with ``evict_above``: whether it lets bytes go now.

    From when the disk is fuller than ``evict_above`` until it is no fuller than ``evict_to``; between the two it stays as it was. What was
    begun is forgotten by a restart: it begins again at the high mark.
    """

    def __init__(self) -> None:
        self._falling: set[Rule] = set()

    def lets_go(self, rule: Rule, disk: Disk) -> bool:
        """Ask again before each eviction, with the disk as it is then."""
        if not rule.evict_above:
            return True
        if disk.share > rule.evict_above:
            self._falling.add(rule)
        elif disk.share <= rule.evict_to:
            self._falling.discard(rule)
        return rule in self._falling


def room_wanted(rule: Rule, disk: Disk) -> int | None:
    """How many bytes the rule would let go now, if it has so many; None: all that are due."""
    if not rule.evict_above:
        return None
    if disk.share <= rule.evict_above:
        return 0
    return max(0, disk.used - math.floor(rule.evict_to * disk.total))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version whose bytes may go."""

    slot: int
    path: str
    version: Version
    rule: Rule
    old: bool
    last_read_ms: int


class Candidates:
    """Which version goes next: old ones before current ones; of either kind, of two that chance picks, the colder.

    That comes near to the least recently read of all without keeping all in order. Of more than ``limit`` candidates of a kind, a sample is kept
    in which each has the same chance to be.
    """

    def __init__(self, randomness: Randomness, *, limit: int = CANDIDATES_MAX) -> None:
        self._randomness = randomness
        self._limit = limit
        self._kinds: tuple[list[Candidate], list[Candidate]] = ([], [])
        self._offered = [0, 0]

    def __len__(self) -> int:
        return len(self._kinds[0]) + len(self._kinds[1])

    def offer(self, candidate: Candidate) -> None:
        """Here is another."""
        kind = 0 if candidate.old else 1
        sample = self._kinds[kind]
        self._offered[kind] += 1
        if len(sample) < self._limit:
            sample.append(candidate)
        elif (place := self._below(self._offered[kind])) < self._limit:
            sample[place] = candidate

    def take(self) -> Candidate | None:
        """The next to go; None: there is none left."""
        sample = self._kinds[0] or self._kinds[1]
        if not sample:
            return None
        one, other = self._below(len(sample)), self._below(len(sample))
        chosen = min(one, other, key=lambda place: (sample[place].last_read_ms, sample[place].version.created_at_ms))
        sample[chosen], sample[-1] = sample[-1], sample[chosen]
        return sample.pop()

    def _below(self, count: int) -> int:
        return min(count - 1, int(self._randomness.fraction() * count))


def _percent(share: float) -> str:
    return f"{share * 100:g} %"
