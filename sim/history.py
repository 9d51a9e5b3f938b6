"""What clients asked of a path and what they were told: the raw material of every check of a history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from node.protocol.operations import NO_CONDITIONS, Conditions


@dataclass(frozen=True, slots=True)
class Seen:
    """What an answer over HTTP tells of a path's head: less than a :class:`~amberblob.manifest.Record` does.

    Attributes:
        version: of the head; 0: no version lives.
        etag: of the head; None when there is none, or when it was not told.
        version_max: the highest version that the path ever had; None when it was not told.
    """

    version: int
    etag: str | None = None
    version_max: int | None = None


@dataclass(slots=True, eq=False)
class Call:
    """One operation of a client: all tries of one write id."""

    number: int
    """Unique; below zero for the reads after everything was healed, which know all there is."""
    path: str
    kind: str
    """put, delete, delete-version, restore; or one of :data:`READS`."""
    invoked: float
    version: int | None = None
    conditions: Conditions = NO_CONDITIONS
    inline: bool = True
    write_id: str | None = None
    ended: float | None = None
    result: tuple[Any, ...] | None = None
    """None: unknown, or never answered. Else what the client was told, and may be cut short where it was told less:

    * ("ok", version), ("same",), and ("done", version) where these two look alike,
    * (412, head, etag of the head), (409, highest version), (404,),
    * ("read", …): for ``read`` a Record, a :class:`Seen` or None; for ``read-version`` (etag, whether it lives) or
      None; for ``read-all`` (as for ``read``, ((version, etag, whether it lives), …) newest first).
    """
    tries: int = 0
    doubtful: bool = False
    """A try of it ended without a definite answer."""
    void: bool = False
    """503 or 507, and no try was doubtful: never took effect. Or a read without an answer."""
    content: str = ""
    """The etag of what a put sends, where it is known; each put's is its own."""
    story: tuple[str, ...] = ()
    """For people: what became of each try."""

    @property
    def etag(self) -> str:
        return self.content or f"e{self.number}"

    def __str__(self) -> str:
        told = "void" if self.void else self.result
        asked = f"{self.kind}{'' if self.version is None else f'({self.version})'}"
        conditions = "" if self.conditions == NO_CONDITIONS else f" if {self.conditions}"
        end = "…" if self.ended is None else f"{self.ended:.3f}"
        etag = f" {self.content[:8]}" if self.content else ""
        story = f"  ({', '.join(self.story)})" if self.story else ""
        return (
            f"#{self.number} {self.path} {asked}{etag}{conditions} [{self.invoked:.3f}, {end}] tries={self.tries}"
            f" -> {told}{story}"
        )


READS = ("read", "read-version", "read-all")
