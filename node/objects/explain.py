"""Where every copy of an object is, in what state, and what mends it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

from amberblob.archives import DAMAGED, ArchivedChunk, merge
from amberblob.errors import PeerError
from amberblob.manifest import Record, Version, covers
from amberblob.wire import Inspect, InspectReply
from node.coordinator import Coordinator
from node.objects.lookup import no_such_object
from node.protocol.quorum import Electorate
from node.routing import Routing

INSPECT_TIMEOUT_S = 3.0

HEAL = "amberblob cluster heal --wait."


class Explaining:
    """Asks every voter, and every learner, what it has of one path."""

    def __init__(self, coordinator: Coordinator, routing: Routing) -> None:
        self._coordinator = coordinator
        self._routing = routing

    async def explain(self, path: str) -> dict[str, Any]:
        """See :meth:`node.service.ObjectService.explain`. Raises: NotFound."""
        electorate = self._routing.of(path)
        learners = {member.node for member in self._routing.table().route(electorate.slot).learners}
        nodes = sorted(electorate.voters.keys() | learners)
        answers = dict(zip(nodes, await asyncio.gather(*(self._ask(n, electorate, path) for n in nodes)), strict=True))
        replies = {node: answer for node, answer in answers.items() if isinstance(answer, InspectReply)}
        best = max(
            (reply for node, reply in replies.items() if node in electorate.voters and reply.accepted is not None),
            key=lambda reply: reply.accepted,  # type: ignore[arg-type,return-value]  # None was filtered out
            default=None,
        )
        record = best.record if best is not None else None
        if record is None and electorate.is_majority([node for node in replies if node in electorate.voters]):
            raise no_such_object(path, None)
        versions = _versions(record, replies)
        copies = {number: {node: _copy(answers[node], number) for node in nodes} for number in versions}
        archived = {number: _archived(replies.values(), number) for number in versions}
        replicas = [_replica(node, answers[node], electorate, best) for node in nodes]
        # What a learner lacks is on its way to it: no news, and nothing to do.
        advice = _advice(
            [replica for replica in replicas if replica["node"] in electorate.voters],
            {n: {node: copy for node, copy in by.items() if node in electorate.voters} for n, by in copies.items()},
            {node: answer for node, answer in answers.items() if node in electorate.voters},
            archive_damaged={n for n, rows in archived.items() if any(row.state == DAMAGED for row in rows)},
        )
        return {
            "path": path,
            "slot": electorate.slot,
            "epoch": electorate.epoch,
            "write_quorum": electorate.write_quorum,
            "head": record.head.version if record is not None and record.head is not None else None,
            "revision": record.revision if record is not None else 0,
            "replicas": replicas,
            "versions": [
                _version(versions[number], record, copies[number], archived[number])
                for number in sorted(versions, reverse=True)
            ],
            "healthy": advice == "",
            "advice": advice or "Every copy is in place; nothing to do.",
        }

    async def _ask(self, node: str, electorate: Electorate, path: str) -> InspectReply | str:
        try:
            reply = await self._coordinator.peers.call(
                node, Inspect(slot=electorate.slot, path=path), timeout_s=INSPECT_TIMEOUT_S
            )
        except PeerError as error:
            return error.detail
        return reply if isinstance(reply, InspectReply) else f"answered {type(reply).__name__}"


def _versions(record: Record | None, replies: dict[str, InspectReply]) -> dict[int, Version]:
    # A copy with a long history tells its newest rows; what lies below the end of any such page is left out.
    floor = max((reply.rows[-1].version.version for reply in replies.values() if reply.more and reply.rows), default=0)
    versions = {
        row.version.version: row.version
        for reply in replies.values()
        for row in reply.rows
        if row.version.version >= floor
    }
    for version in (record.previous, record.head) if record is not None else ():
        if version is not None:
            versions[version.version] = version
    return versions


def _copy(answer: InspectReply | str, number: int) -> str:
    return "unreachable" if isinstance(answer, str) else answer.bytes_present.get(number, "none")


def _replica(
    node: str, answer: InspectReply | str, electorate: Electorate, best: InspectReply | None
) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"node": node, "state": "unreachable", "detail": answer}
    if node not in electorate.voters:
        state, detail = "learning", "it is being filled from the voters and has no vote yet"
    elif answer.unsynced or not electorate.counts(node, answer.incarnation):
        state, detail = "unsynced", "its copy lost its memory and has no vote before it is filled from the others"
    elif best is None or answer.accepted == best.accepted:
        state = "chosen" if answer.chosen else "accepted"
        detail = "" if answer.chosen else "not yet told that the newest record is chosen"
    else:
        state, detail = "behind", "holds an older record"
    if answer.detail:
        state, detail = "disk-failed", answer.detail
    revision = answer.record.revision if answer.record is not None else 0
    return {
        "node": node,
        "state": state,
        "revision": revision,
        "chosen": answer.chosen,
        "ballot": str(answer.accepted) if answer.accepted is not None else None,
        "disk": answer.disk,
        "incarnation": answer.incarnation,
        "wanted": list(answer.wanted),
        "detail": detail,
    }


def _archived(replies: Iterable[InspectReply], number: int) -> list[ArchivedChunk]:
    """Where the archive has the version's chunks, as far as any copy tells."""
    rows: dict[str, ArchivedChunk] = {}
    for reply in replies:
        for row in reply.archived.get(number, ()):
            rows[row.chunk_id] = merge(rows.get(row.chunk_id), row)
    return list(rows.values())


def _place(row: ArchivedChunk) -> dict[str, Any]:
    state = "damaged" if row.state == DAMAGED else "verified" if row.verified else "uploaded"
    return {
        "chunk": row.chunk_id,
        "object": row.target_path,
        "start": row.start,
        "end": row.end,
        "state": state,
        "archived_at_ms": row.archived_at_ms,
        "verified_at_ms": row.state if row.verified else None,
        "imported": row.foreign,
    }


def _version(
    version: Version, record: Record | None, copies: dict[str, str], archived: list[ArchivedChunk]
) -> dict[str, Any]:
    return {
        "version": version.version,
        "blob_id": version.blob_id,
        "size": version.size,
        "etag": version.etag,
        "tombstoned": record is not None and not covers(record.live, version.version),
        "inline": version.inline,
        "chunk_count": version.chunk_count,
        "chunks": [{"id": chunk.id, "len": chunk.len} for chunk in version.chunks],
        "manifest_id": version.manifest_id,
        "copies": copies,
        "archive": [_place(row) for row in archived],
    }


def _advice(
    replicas: list[dict[str, Any]],
    copies: dict[int, dict[str, str]],
    answers: dict[str, InspectReply | str],
    *,
    archive_damaged: Collection[int],
) -> str:
    advice = []
    down = sorted(node for node, answer in answers.items() if isinstance(answer, str))
    if down:
        advice.append(
            f"Start {', '.join(down)} again: amberblob serve --config <its node.toml>; what it missed it catches up with by itself."
        )
    for state, text in (
        ("disk-failed", "Replace the disk of {nodes}; look at it with: amberblob doctor --disk <its disk>."),
        ("unsynced", f"{{nodes}} lost its state of this slot and is filled from the others; to see how far: {HEAL}"),
        ("behind", f"{{nodes}} missed the newest write; to bring it up to date now: {HEAL}"),
    ):
        nodes = sorted(replica["node"] for replica in replicas if replica["state"] == state)
        if nodes:
            advice.append(text.format(nodes=", ".join(nodes)))
    for number, by_node in sorted(copies.items()):
        lacking = sorted(node for node, copy in by_node.items() if copy in ("some", "none"))
        damaged = sorted(node for node, copy in by_node.items() if copy == "damaged")
        if damaged and number in archive_damaged:
            advice.append(
                f"The archive's copy of version {number} is damaged or gone, and {', '.join(damaged)} lived by it: put the object of the bucket "
                "back if you can, then: amberblob archive verify. (docs/archive.md, What to do when)"
            )
        elif damaged:
            advice.append(
                f"Version {number} has rotted on {', '.join(damaged)}; look at that disk, and to have it fetched again: {HEAL}"
            )
        if lacking:
            advice.append(f"Version {number} lacks bytes on {', '.join(lacking)}; to have them fetched: {HEAL}")
        if (lacking or damaged) and not {"all", "archived", "unreachable"} & set(by_node.values()):
            advice.append(
                f"No copy of version {number} is complete: if healing does not put it together, put the object again; "
                "what is there is kept."
            )
    return " ".join(advice)
