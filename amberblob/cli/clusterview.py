"""What ``GET /cluster`` says, for people: the screen of ``cluster status``, and the table of ``cluster slots``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from amberblob.cli.heal import bytes_left
from amberblob.cli.healing import duration
from amberblob.cli.moving import moving_text
from amberblob.cli.output import human_size, printable

SLOT_STATES = ("whole", "in-step", "healing", "degraded", "corrupt", "unavailable", "unrecoverable")
WELL = ("whole", "in-step")
BY_THEMSELVES = (*WELL, "healing")
"""States in which an operator has nothing to do."""

HEALED = {
    "whole": "yes: all copies agree and hold every byte",
    "in-step": "but for what is being written: no copy lacks a byte, and none lacked anything when last compared",
}
"""What is said of it, by the cluster's state; of all other states: no."""

SLOT_COLUMNS = (
    "slot>",
    "state",
    "copies>",
    "behind>",
    "undecided>",
    "damaged>",
    "wanted>",
    "bytes>",
    "objects>",
    "not well, or new",
)


def nodes_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The nodes of the document, whether it has them as a list or by name."""
    nodes = document.get("nodes", [])
    if isinstance(nodes, Mapping):
        nodes = [{"node": name, **(row if isinstance(row, Mapping) else {"state": row})} for name, row in nodes.items()]
    return [row if isinstance(row, Mapping) else {"node": row} for row in nodes] if isinstance(nodes, list) else []


def name_of(node: Mapping[str, Any]) -> str:
    """What the node is called."""
    return str(node.get("node") or node.get("id") or node.get("name") or "?")


def down_in(document: Mapping[str, Any]) -> list[str]:
    """Nodes that cannot be reached, or that hold copies and did not tell of them. One that was removed and holds nothing may be away."""
    down = [name_of(node) for node in nodes_of(document) if node.get("reachable") is False and not _gone(node)]
    return sorted({*down, *map(str, _heal(document).get("silent_nodes") or ())})


def _gone(node: Mapping[str, Any]) -> bool:
    """Whether the node was removed and no route names it: it is to be stopped, so that its silence is no news."""
    return node.get("wanted") == "removed" and not node.get("slots")


def full_in(document: Mapping[str, Any]) -> list[str]:
    """Nodes whose disk refuses new bytes."""
    return sorted(map(str, _heal(document).get("full_nodes") or ()))


def is_well(document: Mapping[str, Any]) -> bool:
    """Whether there is nothing to do for an operator: every node answers, whatever differs mends itself, the registry is no other."""
    registry = document.get("registry")
    if isinstance(registry, Mapping) and registry.get("refused"):
        return False  # it does not mend itself, and nothing else fails because of it
    return not (down_in(document) or full_in(document)) and _heal(document).get("state") in BY_THEMSELVES


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """The screen: ``name: what``, a line each, and at the end what to do."""
    heal = _heal(document)
    lines = [("cluster", _cluster(document)), ("nodes", _nodes(document)), ("registry", _registry(document))]
    if moving := _moving(document):
        lines.append(("moving", moving))
    if heal:
        lines += [
            ("slots", _slots(document, heal)),
            ("healed", HEALED.get(str(heal["state"]), f"no: {heal['state']}")),
        ]
    if heal.get("slots_below_target"):
        lines.append(("copies", _fewer(heal)))
    if "objects_below_target" in heal:
        lines += [
            ("below target", f"{heal['objects_below_target']:,} of {heal.get('objects', 0):,} objects"),
            ("to fetch", bytes_left(heal)),
            ("undecided", f"{heal.get('undecided', 0):,}"),
            (
                "damaged",
                f"{heal.get('damaged', 0):,} copies of versions; {heal.get('unrecoverable', 0):,} versions lost",
            ),
            ("compared", _ago(heal, "last_full_compare", "not every copy since its node started")),
            ("scrubbed", _ago(heal, "last_full_scrub", "not every copy yet")),
        ]
    return [printable(f"{name}: {text}") for name, text in lines] + [
        printable(f"what to do: {text}") for text in todo(document) or ["nothing"]
    ]


def todo(document: Mapping[str, Any]) -> list[str]:
    """What an operator should do, the most urgent first; nothing when all is well."""
    heal = _heal(document)
    slots = heal.get("slots") or {}
    advice = []
    if slots.get("unrecoverable"):
        count = heal.get("unrecoverable")
        advice.append(
            f"{count} version{'' if count == 1 else 's'} can be had whole from no replica: amberblob cluster slots --unhealed tells where. "
            "Put those objects anew or delete them; it is told until retention has removed the lost versions. "
            "What is damaged is kept in quarantine on those disks."
        )
    down = down_in(document)
    if down:
        refused = (
            f" Until then {slots['unavailable']} slots refuse reads and writes." if slots.get("unavailable") else ""
        )
        advice.append(
            f"start {', '.join(down)} again (amberblob serve --config <its node.toml>), if its disk is lost with an empty one; "
            f"its copies catch up by themselves.{refused}"
        )
    elif slots.get("unavailable"):
        advice.append(
            f"{slots['unavailable']} slots refuse reads and writes, because most of their copies are not synced: "
            "amberblob cluster slots --unhealed tells which."
        )
    elif slots.get("degraded"):
        advice.append(
            "wait: a node answers but does not hold its copies yet, as while it starts or its disk was replaced."
        )
    full = full_in(document)
    if full:
        advice.append(
            f"make room on the disk of {', '.join(full)}: it is full, and its copies are not mended before that."
        )
    if slots.get("corrupt"):
        advice.append(
            "bytes on a disk have rotted and are being fetched again; amberblob cluster slots --unhealed tells which disk: "
            "look at its kernel log, and amberblob doctor --disk DIR."
        )
    if join := _join_advice(document):
        advice.append(join)
    registry = document.get("registry")
    if isinstance(registry, Mapping) and registry.get("refused"):
        advice.append(
            "bring the right registry back: this one is empty, older than what was seen, or another cluster's. Reads and writes go "
            "on without it, but routes cannot change."
        )
    elif isinstance(registry, Mapping) and registry.get("ok") is False:
        advice.append("bring the registry back: reads and writes go on without it, but routes cannot change.")
    if not heal:
        advice.append("this node tells nothing of the copies: ask another one.")
    elif heal.get("state") == "unknown":
        advice.append("wait: the node that answered has no routes yet, or ask another one.")
    elif heal.get("state") == "healing" and not full:
        advice.append("nothing, it mends itself; amberblob cluster heal --wait shows how far it is.")
    return advice


def slot_row(row: Mapping[str, Any]) -> list[str]:
    """A slot as :data:`SLOT_COLUMNS` have it; at the end the copies that are not well, or that the slot is moving to, with their nodes."""
    copies = [copy for copy in row.get("copies", ()) if isinstance(copy, Mapping)]
    return [
        str(row.get("slot")),
        str(row.get("state")),
        f"{row.get('present')}/{row.get('target')}",
        *(str(row.get(name, 0)) for name in ("behind", "undecided", "damaged", "wanted")),
        human_size(int(row.get("wanted_bytes") or 0)),
        str(row.get("objects", 0)),
        printable(", ".join(f"{copy.get('node')}: {told}" for copy in copies if (told := _told_of(copy)))),
    ]


def _told_of(copy: Mapping[str, Any]) -> str:
    """What the table says of a copy; nothing of one that has its vote and is well."""
    role, state = copy.get("role", "voter"), copy.get("state")
    words = [str(word) for word in (role if role != "voter" else "", state if state not in WELL else "") if word]
    return ", ".join(words)


def by_state(rows: Iterable[Mapping[str, Any]], wanted: Sequence[str]) -> list[Mapping[str, Any]]:
    """Those in one of these states; all if none is named."""
    return [row for row in rows if not wanted or row.get("state") in wanted]


def counts_text(slots: Mapping[str, Any]) -> str:
    """``250 whole, 6 healing``: only the states that there are."""
    return ", ".join(f"{count} {state}" for state, count in slots.items() if count) or "none is known"


def _heal(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the node tells of the copies; nothing where it does not judge them (an older one)."""
    heal = document.get("heal")
    return heal if isinstance(heal, Mapping) and "state" in heal else {}


def _cluster(document: Mapping[str, Any]) -> str:
    name = document.get("name")
    if name is None:
        return str(document.get("detail") or "not known yet")
    replicas = document.get("replicas")
    return f"{name}, {replicas} cop{'y' if replicas == 1 else 'ies'} of each slot, epoch {document.get('epoch')}"


def _nodes(document: Mapping[str, Any]) -> str:
    down = down_in(document)
    nodes = [node for node in nodes_of(document) if not (node.get("reachable") is False and _gone(node))]
    up = sum(name_of(node) not in down for node in nodes)
    return f"{up} of {len(nodes)} reachable" + (f"; down: {', '.join(down)}" if down else "")


def _fewer(heal: Mapping[str, Any]) -> str:
    """That there are fewer voters than there are to be copies."""
    return f"{heal.get('fewest_copies')} of {heal.get('target')} copies in {heal['slots_below_target']} slots"


def _join_advice(document: Mapping[str, Any]) -> str:
    """What gives the slots all their copies; empty: there are nodes enough, or slots are on their way."""
    membership = document.get("membership")
    if not _heal(document).get("slots_below_target") or not isinstance(membership, Mapping):
        return ""
    moves = membership.get("moves")
    if membership.get("planning") or (isinstance(moves, Mapping) and moves.get("left")):
        return ""
    states = membership.get("nodes")
    states = states if isinstance(states, Mapping) else {}
    active = sum(state == "active" for state in states.values())
    missing = int(_heal(document).get("target") or 0) - active
    if missing <= 0:
        return ""
    spare = sorted(str(node) for node, state in states.items() if state == "spare")[:missing]
    more = f"{missing} more node{'' if missing == 1 else 's'}"
    how = (
        f"amberblob cluster join {' '.join(spare)}"
        if len(spare) == missing
        else "start them with this cluster's registry and name, then amberblob cluster join NODE…"
    )
    return f"for {_heal(document)['target']} copies of each slot join {more}: {how}"


def _moving(document: Mapping[str, Any]) -> str:
    """How far the slots are that are on their way; empty: none is."""
    membership = document.get("membership")
    moves = membership.get("moves") if isinstance(membership, Mapping) else None
    if not isinstance(moves, Mapping) or not moves.get("left"):
        return ""
    action = str(membership.get("action") or "") if isinstance(membership, Mapping) else ""
    return f"{action}: {moving_text(moves, int(moves.get('total') or 0))}"


def _registry(document: Mapping[str, Any]) -> str:
    registry = document.get("registry")
    if not isinstance(registry, Mapping):
        return "not known"
    if registry.get("ok"):
        return "ok"
    return (
        f"{'refused' if registry.get('refused') else 'cannot be reached'}: {registry.get('error') or 'no reason given'}"
    )


def _slots(document: Mapping[str, Any], heal: Mapping[str, Any]) -> str:
    return f"{document.get('slot_count', '?')}: {counts_text(heal.get('slots') or {})}"


def _ago(heal: Mapping[str, Any], name: str, never: str) -> str:
    """How long ago by the node's own clock; this machine's may be another."""
    when, now = heal.get(name), heal.get("at")
    if not isinstance(when, str) or not isinstance(now, str):
        return never
    seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(when)).total_seconds()
    return f"{duration(max(0.0, seconds))} ago (the copy for which it is longest)"
