"""The health of the copies as JSON: the ``heal`` part of ``GET /cluster``. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from node.http.times import rfc3339
from node.wholeness import ClusterView, CopyView, SlotView


def time_or_none(at_ms: int) -> str | None:
    """RFC 3339; None for 0, which stands for never."""
    return rfc3339(at_ms) if at_ms else None


def heal_json(view: ClusterView, *, at_ms: int, since_ms: int) -> dict[str, Any]:
    """The cluster's part. ``at``: when the nodes were asked; ``since``: the moment from which comparisons count."""
    rate = view.rate_bytes_per_s
    return {
        "state": view.state,
        "healed": view.healed,
        "at": rfc3339(at_ms),
        "since": time_or_none(since_ms),
        "slots": dict(view.slots),
        "slots_to_compare": view.to_compare,
        "objects": view.objects,
        "objects_below_target": view.objects_below,
        "bytes_below_target": view.wanted_bytes,
        "versions_waiting": view.wanted,
        "bytes_waiting": view.wanted_bytes,
        "undecided": view.undecided,
        "damaged": view.damaged,
        "unrecoverable": view.unrecoverable,
        "rate_bytes_per_s": None if rate is None else round(rate),
        "seconds_left": None if view.seconds_left is None else round(view.seconds_left, 1),
        "last_full_compare": time_or_none(view.last_compare_ms),
        "last_full_scrub": time_or_none(view.last_scrub_ms),
        "silent_nodes": list(view.silent),
        "full_nodes": list(view.full),
        "target": view.target,
        "slots_below_target": view.slots_below_target,
        "fewest_copies": view.fewest_copies,
        "slots_moving": view.slots_moving,
        "bytes_moving": view.moving_bytes,
    }


def unknown_heal_json() -> dict[str, Any]:
    """The same where nothing is known: the node has no route table yet."""
    return {
        "state": "unknown",
        "healed": False,
        "slots": {},
        "bytes_waiting": None,
        "versions_waiting": None,
        "last_full_compare": None,
        "last_full_scrub": None,
        "silent_nodes": [],
        "full_nodes": [],
    }


def slots_json(views: Iterable[SlotView]) -> list[dict[str, Any]]:
    """Slot by slot, each with its copies."""
    return [
        {
            "slot": view.slot,
            "epoch": view.epoch,
            "state": view.state,
            "target": view.target,
            "voters": view.voters,
            "moving": view.moving,
            "bytes_moving": view.moving_bytes,
            "present": view.present,
            "unsynced": view.unsynced,
            "behind": view.behind,
            "undecided": view.undecided,
            "damaged": view.damaged,
            "unrecoverable": view.unrecoverable,
            "wanted": view.wanted,
            "wanted_bytes": view.wanted_bytes,
            "objects": view.objects,
            "objects_below_target": view.objects_below,
            "compared": view.compared,
            "copies": [_copy(copy) for copy in view.copies],
        }
        for view in views
    ]


def _copy(copy: CopyView) -> dict[str, Any]:
    told: dict[str, Any] = {"node": copy.node, "voter": copy.voter, "role": copy.role, "state": copy.state}
    health = copy.health
    if health is not None:
        told |= {
            "root": health.root.hex(),
            "objects": health.objects,
            "undecided": health.undecided,
            "wanted": health.wanted,
            "wanted_bytes": health.wanted_bytes,
            "damaged": health.damaged,
            "unrecoverable": health.unrecoverable,
            "unsynced": health.unsynced,
            "evicted": health.evicted,
            "evicted_bytes": health.evicted_bytes,
            "last_compare": time_or_none(health.compared_ms),
            "last_scrub": time_or_none(health.scrubbed_ms),
        }
    return told
