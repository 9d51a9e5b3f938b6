"""What ``GET /cluster`` tells of membership: what is wanted of each node, and how far the slots are on their way. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

from amberblob.wire_repair import SlotHealth
from registry.routes import Move, Route, RouteTable

Stage = Literal["waiting", "learning", "joint", "leaving"]
"""Of a slot on its way: a new member has not begun; new members are being filled; both sets decide together; what is left over goes."""

ROWS_MAX = 20
"""Of the list of slots on their way: those that wait first."""


def stage_of(route: Route, move: Move | None, reachable: Callable[[str], bool]) -> tuple[Stage, str]:
    """Where a slot is on its way, and what it waits for (empty: for nothing that an operator could change)."""
    if route.state == "joint":
        away = [node for node in route.all_nodes if not reachable(node)]
        return "joint", f"{', '.join(away)} cannot be reached" if away else ""
    wanted = move.nodes if move is not None else route.voter_nodes
    learners = {member.node for member in route.learners}
    absent = [node for node in wanted if node not in learners and node not in route.voter_nodes]
    if absent:
        away = [node for node in absent if not reachable(node)]
        return "waiting", f"{', '.join(away)} cannot be reached" if away else ""
    if learners & set(wanted):
        away = [node for node in learners if not reachable(node)]
        return "learning", f"{', '.join(away)} cannot be reached" if away else ""
    return "leaving", ""


def moving_slots(table: RouteTable) -> list[Route]:
    """The routes of slots that are on their way, or are to be."""
    return [route for route in table.routes if route.slot in table.moves or route.state == "joint" or route.learners]


def membership_json(
    table: RouteTable,
    told: Mapping[str, Mapping[int, SlotHealth]],
    *,
    reachable: Callable[[str], bool],
    rate_bytes_per_s: float | None,
) -> dict[str, Any]:
    """The ``membership`` part of the document.

    Args:
        told: by node, what it told of its copies; nodes that did not answer are not in it.
        rate_bytes_per_s: what all nodes together fetch for repair and for moves; None: not known.
    """
    wanted = table.membership
    in_motion = moving_slots(table)
    stages: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    bytes_left = 0
    for route in in_motion:
        move = table.moves.get(route.slot)
        stage, why = stage_of(route, move, reachable)
        stages[stage] += 1
        left = _bytes_left(route, told)
        bytes_left += left
        rows.append(
            {
                "slot": route.slot,
                "stage": stage,
                "why": why,
                "from": list(route.voter_nodes),
                "to": list(move.nodes) if move is not None else [],
                "bytes_left": left,
            }
        )
    rows.sort(key=lambda row: (not row["why"], row["stage"] == "waiting", row["slot"]))
    begun = bool(rate_bytes_per_s and bytes_left)
    return {
        "generation": wanted.generation if wanted is not None else 0,
        "action": wanted.action if wanted is not None else "",
        "planning": wanted is not None and wanted.planning,
        "nodes": {node: _state(table, node) for node in sorted(_known(table))},
        "moves": {
            "total": max(wanted.moves if wanted is not None else 0, len(in_motion)),
            "left": len(in_motion),
            "stages": dict(stages),
            # What a slot has that has not begun is not known before it does.
            "bytes_left": bytes_left,
            "rate_bytes_per_s": rate_bytes_per_s if begun else None,
            "seconds_left": bytes_left / rate_bytes_per_s if begun and rate_bytes_per_s else None,
            "slots": rows[:ROWS_MAX],
        },
    }


def _known(table: RouteTable) -> set[str]:
    named = set(table.nodes) | {node for route in table.routes for node in route.all_nodes}
    return named | set(table.membership.nodes if table.membership is not None else ())


def _state(table: RouteTable, node: str) -> str:
    state = table.state_of(node)
    return "spare" if state is None else state.value


def _bytes_left(route: Route, told: Mapping[str, Mapping[int, SlotHealth]]) -> int:
    """What the slot's new members want yet, as far as they know."""
    new = {member.node for member in (*route.learners, *route.next_voters)} - set(route.voter_nodes)
    return sum(health.wanted_bytes for node in new if (health := told.get(node, {}).get(route.slot)) is not None)
