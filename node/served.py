"""What a node did for clients, counted: repair looks here whether it has to yield (:mod:`antientropy.pace`)."""

from __future__ import annotations

from typing import Protocol


class Serving(Protocol):
    """A part of the node that serves clients, of this node or of another one."""

    @property
    def served(self) -> int:
        """Grows with everything that it does for them."""
        ...


class Served:
    """The sum over the parts ``by``; nothing as long as they are not there."""

    def __init__(self) -> None:
        self.by: tuple[Serving, ...] = ()

    def count(self) -> int:
        """A number that grows whenever clients are served."""
        return sum(part.served for part in self.by)
