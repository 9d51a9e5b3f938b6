"""What the node says of itself. Query parameters that mean nothing are ignored here: health checkers like to add some."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from amberblob.errors import NotReady
from node.http.call import Answer, Call, Context, json_answer
from node.http.openapi import document
from node.http.parameters import refused
from node.http.times import parse_time_ms
from node.service import SlotsWanted

SLOTS_WANTED: Mapping[str, SlotsWanted] = {"": "", "0": "", "1": "1", "unhealed": "unhealed"}


async def healthz(context: Context, call: Call) -> Answer:
    """The process lives."""
    return json_answer(200, {"status": "ok"})


async def readyz(context: Context, call: Call) -> Answer:
    """The node serves reads and writes, or the reason why not; also what is wrong although it serves."""
    if context.closing():
        raise NotReady("The node is shutting down. Use another one.", code="shutting-down")
    reason = context.status.not_ready()
    if reason is not None:
        raise NotReady(reason)
    warning = context.status.warning()
    return json_answer(200, {"status": "ready"} | ({"warning": warning} if warning is not None else {}))


async def metrics(context: Context, call: Call) -> Answer:
    """The process's numbers for Prometheus."""
    text, content_type = context.metrics.expose(call.headers.get("Accept", ""))
    return Answer(200, {"Content-Type": content_type}, text)


async def cluster(context: Context, call: Call) -> Answer:
    """Nodes, zones, disks, epochs, slots by state, how the copies are; with ``?slots=1`` each slot's, ``?since=`` from when on."""
    given = parse_qs(call.target.raw_query, keep_blank_values=True)
    query = {name: values[-1] for name, values in given.items()}
    slots, since = query.get("slots", ""), query.get("since", "")
    if slots not in SLOTS_WANTED:
        raise refused("slots", "1 (every slot) or unhealed (those that are not whole)")
    try:
        since_ms = parse_time_ms(since) if since else None
    except (ValueError, OverflowError):
        raise refused("since", "the time that POST /cluster/heal told, RFC 3339 or Unix seconds") from None
    return json_answer(200, await context.status.cluster(slots=SLOTS_WANTED[slots], since_ms=since_ms))


async def heal(context: Context, call: Call) -> Answer:
    """Have every node compare its copies with the others now. Where that has led: ``GET /cluster?since=``."""
    return json_answer(202, await context.status.heal())


async def openapi(context: Context, call: Call) -> Answer:
    """This interface as a document."""
    return json_answer(200, document())
