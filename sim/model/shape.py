"""What kind of world a seed is: how bad the network, who crashes, how often copies move, what clients ask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

Kind = Literal[
    "plain",
    "garbage",
    "moves",
    "moves and garbage",
    "shrinking",
    "stale routes",
    "lagging learners",
    "one writer",
    "lost copies",
    "learners first",
]

KINDS: tuple[Kind, ...] = (
    *("plain",) * 4,
    *("garbage",) * 4,
    *("moves",) * 3,
    *("moves and garbage",) * 5,
    *("shrinking",) * 2,
    *("stale routes",) * 4,
    *("lagging learners",) * 6,
)
"""In the proportion in which seeds draw them."""

KINDS_HOLDING: tuple[Kind, ...] = (*KINDS, *("one writer",) * 4)
"""The same for the worlds in which promises are held (rfc/0009)."""

KINDS_APART: tuple[Kind, ...] = ("lost copies", "learners first")
"""Drawn by no seed: these have seeds of their own, so that the others mean what they meant before."""

KINDS_ALL: tuple[Kind, ...] = (*dict.fromkeys(KINDS_HOLDING), *KINDS_APART)
"""Each once."""

Ask = Literal["put", "delete", "put-if-etag", "put-if-absent", "get", "get-version", "versions"]


@dataclass(slots=True)
class Shape:
    """Drawn once per seed. Times are in units of a usual message delay."""

    kind: Kind
    nodes: int
    voters: int
    paths: int
    calls: int
    pause: float
    """Between two calls, on average."""
    mix: tuple[Ask, ...]
    loss: float
    loss_spare: float
    """Of messages to nodes that are no voters at first: somebody's cable is bad."""
    doubling: float
    slow: float
    """How much longer a slow message takes."""
    slow_share: float
    deaf: float
    """The share of LEARNs that are never sent."""
    learn_delay: float
    """How long LEARNs wait in the background, at most."""
    crashes: int
    power_cuts: int
    """All nodes crash at once; the home of most calls, if there is one, stands elsewhere and goes on."""
    disks_lost: int
    cuts: int
    cut_nodes: int
    """How many nodes a cut hits."""
    cuts_spare: float
    """The share of cuts that hit those nodes that are no voters at first."""
    killed: float
    """The share of coordinators that die alone, their node staying up."""
    moves: int
    moves_abandoned: float
    learner_phase: float
    """The share of moves that begin with learners."""
    learning: float
    """How long learners are left learners, at most."""
    sync_delay: float
    """How long a sync takes to begin with, at most: a large slot takes its time."""
    swap_two: float
    """The share of swaps that take two copies at once."""
    collections: int
    tidy: float
    """The share of deletes that a collector comes to look at soon."""
    retention: float
    skew: float
    route_delay: float
    blind: float
    """The share of nodes to which the registry shows nothing new."""
    outages: int
    holding: bool
    """Whether coordinators hold promises (rfc/0009). The fields below are of such worlds only."""
    home: float
    """The share of calls that go to one and the same node: that one holds promises."""
    old_programs: float
    """The share of nodes whose program does not know of ``next`` (rfc/0009)."""
    leap: int
    """By how much more than one, at most, the counter of ``next`` exceeds that of its COMMIT."""
    own_copy_looked_at: bool
    """Whether a held promise is used only while the node's own copy promises it still. Nothing may rest on it."""
    losses: int = 0
    """Disks that are lost and whose nodes rejoin with a new copy (sim.model.readmission). This and what follows is of such worlds only."""
    losses_again: float = 0.0
    """The share of losses after which another one comes soon, of whichever copy."""
    losses_down: float = 0.0
    """For how long a node is away that lost its disk, at most."""
    page_delay: float = 0.0
    """How long a page of a readmitted copy's sync waits, at most."""
    slow_links: float = 0.0
    """The share of links, each in one direction, on which every message is slow."""
    learns_by_node: bool = False
    """Whether a LEARN does not say for which copy of a node it is, as far as that node's copy was readmitted."""

    @property
    def readmits(self) -> bool:
        """Whether nodes that lost their copy make a new one by themselves."""
        return self.kind in ("lost copies", "learners first")

    @property
    def learners_first(self) -> bool:
        """Whether new members come in as learners that are mute until they were filled (sim.model.learners)."""
        return self.kind == "learners first"


_MIX: tuple[Ask, ...] = (
    *("put",) * 5,
    *("get",) * 5,
    *("put-if-etag",) * 3,
    "put-if-absent",
    *("delete",) * 2,
    "get-version",
    *("versions",) * 2,
)
_MIX_GARBAGE: tuple[Ask, ...] = (
    *("put",) * 4,
    *("get",) * 4,
    "put-if-etag",
    *("put-if-absent",) * 2,
    *("delete",) * 5,
    "get-version",
    *("versions",) * 2,
)
_MIX_STALE: tuple[Ask, ...] = (*("put",) * 3, *("get",) * 6, "put-if-etag", "delete", "versions")
_MIX_WRITES: tuple[Ask, ...] = (*("put",) * 8, "put-if-etag", "delete", *("get",) * 3, "versions")
_MIX_LAGGING: tuple[Ask, ...] = (*("put",) * 2, "put-if-absent", *("get",) * 5, *("delete",) * 4, "versions")


def draw(random: Random, only: Kind | None = None, *, holding: bool = False) -> Shape:
    """The shape of a seed's world; ``only``: of a world of this kind; ``holding``: of one in which promises are held."""
    if only == "lost copies":
        return _draw_lost(random, holding=holding)
    if only == "learners first":
        return _draw_learners(random, holding=holding)
    choice, share = random.choice, random.random
    drawn = choice(KINDS_HOLDING if holding else KINDS)
    kind = only or drawn
    garbage = kind in ("garbage", "moves and garbage", "lagging learners")
    stale, lagging = kind == "stale routes", kind == "lagging learners"
    writer = kind == "one writer"
    moving = kind not in ("plain", "garbage", "one writer")
    voters = 5 if kind == "shrinking" else (3 if share() < 0.9 else 5) if kind == "plain" else 3
    calm = share() < 0.2
    # A home that holds no copy hears of a rival from the copies' refusals only.
    spare = (
        choice((0, 1))
        if writer
        else 0
        if not moving
        else 1
        if kind == "shrinking"
        else 4
        if stale
        else choice((1, 1, 2) if garbage else (1, 2, 2, 3))
    )
    crashes = random.randrange(2 if garbage else 4) + (2 if stale or writer else 0)
    return Shape(
        kind=kind,
        nodes=voters + spare,
        voters=voters,
        paths=2 if garbage and share() < 0.1 else 1,
        calls=random.randrange(12, 17) if lagging else random.randrange(8, 15),
        pause=choice((1.5, 3.0)) if lagging else choice((3.0, 6.0, 12.0)) if moving else choice((1.0, 3.0, 6.0)),
        mix=_MIX_LAGGING
        if lagging
        else _MIX_WRITES
        if writer
        else _MIX_GARBAGE
        if garbage
        else _MIX_STALE
        if stale
        else _MIX,
        loss=0.0
        if calm
        else 0.05
        if lagging
        else choice((0.0, 0.03, 0.1, 0.1 if garbage else 0.2)) + (0.1 if writer else 0.0),
        loss_spare=0.3 if lagging else choice((0.0, 0.3)) if kind in ("moves", "moves and garbage") else 0.0,
        doubling=0.0 if calm else 0.1 if garbage and moving else choice((0.0, 0.03, 0.1)),
        slow=choice((4.0, 10.0, 30.0)),
        slow_share=choice((0.0, 0.1, 0.3)),
        deaf=0.6 if lagging else choice((0.0, 0.2, 0.6)),
        learn_delay=choice((0.0, 90.0)) if kind == "moves and garbage" else 0.0,
        crashes=0 if calm else crashes,
        power_cuts=0 if calm or garbage else choice((1, 2)) if stale or writer else choice((0, 0, 0, 1)),
        disks_lost=0 if not moving or calm else choice((0, 0, 0, 1) if garbage else (0, 0, 1, 1, 2)),
        cuts=2 if lagging else 0 if calm else random.randrange(3),
        cut_nodes=2 if kind == "shrinking" else 1,
        cuts_spare=0.8 if lagging else 0.5 if garbage and moving else 0.0,
        killed=choice((0.0, 0.1, 0.2)),
        moves=0
        if not moving
        else choice((2, 3))
        if lagging
        else choice((3, 4, 5))
        if garbage
        else choice((1, 2, 2, 3, 4)),
        moves_abandoned=0.2 if lagging else choice((0.2, 0.5, 0.8)) if garbage else choice((0.0, 0.2, 0.4)),
        learner_phase=0.9 if lagging else choice((0.0, 0.8)) if kind == "moves" else choice((0.0, 0.4)),
        learning=40.0 if lagging else 20.0,
        sync_delay=4.0 if garbage else choice((4.0, 8.0, 15.0)) if kind == "moves" else 8.0,
        swap_two=0.8 if stale else 0.5,
        collections=choice((2, 4)) if garbage else choice((0, 0, 1)),
        tidy=1.0 if lagging else choice((0.5, 1.0)) if garbage else 0.0,
        retention=0.0 if lagging else choice((0.0, 0.0, 3.0)) if garbage else 5.0,
        skew=0.0 if lagging else choice((0.0, 1.0, 20.0)),
        route_delay=choice((2.0, 10.0, 40.0)),
        blind=0.7 if stale else choice((0.0, 0.0, 0.3)),
        outages=choice((0, 0, 1)),
        # Worlds without held promises draw nothing from here on: what a seed meant before there were any, it means still.
        holding=holding,
        home=0.6 if writer else 0.0,
        old_programs=0.0 if not holding else choice((0.0, 0.3)) if writer else choice((0.0, 0.0, 0.3)),
        leap=choice((0, 6)) if writer else 0,
        own_copy_looked_at=holding and share() < 0.5,
    )


def _draw_learners(random: Random, *, holding: bool) -> Shape:
    """A world of moves as the code makes them, in which copies lose their memory now and then as well."""
    choice = random.choice
    base = _draw_lost(random, holding=holding)
    voters = choice((1, 3, 3, 3, 5))
    return replace(
        base,
        kind="learners first",
        voters=voters,
        nodes=max(4, voters + choice((1, 1, 2))),
        moves=choice((3, 5, 8)),
        moves_abandoned=choice((0.0, 0.2, 0.5)),
        sync_delay=choice((1.0, 4.0, 8.0)),
        route_delay=choice((2.0, 2.0, 10.0, 40.0)),
        losses=choice((0, 0, 0, 1, 2)) if voters > 1 else 0,
        crashes=choice((0, 1, 3)),
    )


def _draw_lost(random: Random, *, holding: bool) -> Shape:
    """A world in which copies lose their memory: one of moves and garbage, with fewer moves."""
    choice = random.choice
    base = draw(random, "moves and garbage", holding=holding)
    voters = choice((3, 3, 5))
    collecting = random.random() < 0.5
    return replace(
        base,
        kind="lost copies",
        nodes=voters + choice((0, 1, 1)),
        voters=voters,
        paths=choice((1, 1, 2)),
        mix=_MIX_GARBAGE if collecting else choice((_MIX, _MIX_WRITES)),
        pause=choice((1.5, 3.0, 6.0)),
        loss=choice((0.0, 0.03, 0.1)),
        loss_spare=0.0,
        deaf=choice((0.0, 0.2, 0.6)),
        learn_delay=choice((0.0, 30.0, 90.0)),
        power_cuts=choice((0, 0, 0, 1)),
        disks_lost=0,
        moves=choice((0, 0, 1, 2)),
        collections=choice((2, 4)) if collecting else 0,
        tidy=choice((0.5, 1.0)) if collecting else 0.0,
        retention=0.0,
        skew=choice((0.0, 1.0)),
        blind=choice((0.0, 0.0, 0.2)),
        losses=choice((1, 2, 3)),
        losses_again=choice((0.0, 0.5)),
        losses_down=choice((2.0, 2.0, 30.0)),
        page_delay=choice((0.5, 3.0, 10.0)),
        slow_links=choice((0.0, 0.0, 0.3)),
        learns_by_node=True,
    )
