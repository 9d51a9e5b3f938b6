"""What clients asked of a path and what they were told: the raw material of every check of a history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from node.protocol.operations import NO_CONDITIONS, Conditions


@dataclass(slots=True, eq=False)
class Call:
    """One operation of a client: all tries of one write id."""

    number: int
    path: str
    kind: str
    invoked: float
    version: int | None = None
    conditions: Conditions = NO_CONDITIONS
    inline: bool = True
    write_id: str | None = None
    ended: float | None = None
    result: tuple[Any, ...] | None = None
    """("ok", version), ("same",), (412,), (409,), (404,), ("read", …); None: unknown, or never answered."""
    tries: int = 0
    doubtful: bool = False
    """A try of it ended without a definite answer."""
    void: bool = False
    """503 or 507, and no try was doubtful: never took effect. Or a read without an answer."""

    @property
    def etag(self) -> str:
        return f"e{self.number}"

    def __str__(self) -> str:
        told = "void" if self.void else self.result
        asked = f"{self.kind}{'' if self.version is None else f'({self.version})'}"
        conditions = "" if self.conditions == NO_CONDITIONS else f" if {self.conditions}"
        end = "…" if self.ended is None else f"{self.ended:.1f}"
        return (
            f"#{self.number} {self.path} {asked}{conditions} [{self.invoked:.1f}, {end}] tries={self.tries} -> {told}"
        )


READS = ("read", "read-version", "read-all")
