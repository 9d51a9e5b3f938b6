"""How objects of the archive are deleted, as the node that collects sees it (rfc/0016, "Deleting from the bucket"). Pure: events in, actions out.

::

    write down -> ask every node -> read the newest nodes -> (new ones: ask those) -> ask every node again -> write down -> delete
                       |                   |                                            |
                       +--- not all answered, or agreed, or this node is none of them --+--> reprieve

What one node refuses is dropped, and reprieved at the end; the rest goes on. That all have agreed is true at one moment only if none lost its
promise between its first answer and the last one of the others. So all are asked twice, and the second answers must name the same files of marks.
A node that is not among the newest nodes, read after all had answered, joined after that moment; it can have rows from nobody.

After that moment no row of the object exists, and none is on its way: no loss of marks, no node that comes or goes changes that. So
what was decided is deleted, however late, and is never reprieved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# ---- actions: what is to be done next, and what is to be told when it was


@dataclass(frozen=True, slots=True)
class WriteAsking:
    """Write the objects down as those that are asked about, durably. Then: :meth:`ObjectCollection.written`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask these nodes to condemn these. Then: :meth:`ObjectCollection.answered`."""

    nodes: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadNodes:
    """Read the newest nodes, not from memory. Then: :meth:`ObjectCollection.nodes_read`."""


@dataclass(frozen=True, slots=True)
class WriteDecided:
    """Write these down as decided, durably. Then: :meth:`ObjectCollection.written`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The end: delete ``decided``; have every one of ``nodes`` reprieve ``reprieved``.

    Each is struck from what was written down only when that was done; what could not be is done at the next beginning.

    Attributes:
        why: why nothing was decided; empty if something was, or nothing was left.
        refused: those that some node refused, and which.
    """

    decided: tuple[str, ...]
    reprieved: tuple[str, ...]
    nodes: tuple[str, ...]
    why: str = ""
    refused: tuple[tuple[str, str], ...] = ()


Action = WriteAsking | Ask | ReadNodes | WriteDecided | Finish


@dataclass(frozen=True, slots=True)
class Answer:
    """One node's answer: what it refused, and the file in which it promised the rest."""

    refused: frozenset[str]
    marks: str


class ObjectCollection:
    """One batch of objects under one token.

    Args:
        node: this node.
        names: at least one.
        nodes: of the route table, as far as it is known.
    """

    def __init__(self, node: str, names: Sequence[str], nodes: Collection[str]) -> None:
        self._node = node
        self._names = tuple(names)
        self._nodes = tuple(sorted(set(nodes) | {node}))
        self._left = self._names
        self._first: dict[str, str] = {}
        self._asked: set[str] = set()
        self._refused: dict[str, str] = {}
        self._again = False

    def begin(self) -> Action:
        """The first thing to do."""
        return WriteAsking(self._names)

    def written(self) -> Action:
        """What was to be written down is durable."""
        if self._again:
            return self._finish(decided=True)
        return self._ask(self._nodes)

    def answered(self, answers: Mapping[str, Answer | None]) -> Action:
        """Every node's answer; None: there was none, which says nothing about what it did."""
        silent = sorted(node for node, answer in answers.items() if answer is None)
        if silent:
            return self._finish(f"{', '.join(silent)} gave no answer")
        for node, answer in sorted(answers.items()):
            assert answer is not None
            for name in answer.refused:
                self._refused.setdefault(name, node)
            if self._first.setdefault(node, answer.marks) != answer.marks:
                return self._finish(f"{node} lost what it had promised meanwhile")
        self._left = tuple(name for name in self._left if name not in self._refused)
        if not self._left:
            return self._finish()
        return WriteDecided(self._left) if self._again else ReadNodes()

    def nodes_read(self, nodes: Collection[str] | None) -> Action:
        """The newest nodes; None: they could not be read."""
        if nodes is None:
            return self._finish("the registry did not tell which nodes there are")
        if self._node not in nodes:
            return self._finish(f"{self._node} is none of the cluster's nodes any more")
        new = tuple(sorted(set(nodes) - self._first.keys()))
        if new:
            return self._ask(new)
        self._again = True
        return self._ask(tuple(sorted(nodes)))

    def _ask(self, nodes: tuple[str, ...]) -> Action:
        self._asked.update(nodes)
        return Ask(nodes, self._left)

    def _finish(self, why: str = "", *, decided: bool = False) -> Action:
        left = self._left if decided else ()
        return Finish(
            decided=left,
            reprieved=tuple(name for name in self._names if name not in left),
            nodes=tuple(sorted(self._asked)),
            why=why,
            refused=tuple(sorted(self._refused.items())),
        )
