"""What the node says of itself. Query parameters are ignored here: health checkers like to add some."""

from __future__ import annotations

from amberblob.errors import NotReady
from node.http.call import Answer, Call, Context, json_answer
from node.http.openapi import document


async def healthz(context: Context, call: Call) -> Answer:
    """The process lives."""
    return json_answer(200, {"status": "ok"})


async def readyz(context: Context, call: Call) -> Answer:
    """The node serves reads and writes, or the reason why not."""
    if context.closing():
        raise NotReady("The node is shutting down. Use another one.", code="shutting-down")
    reason = context.status.not_ready()
    if reason is not None:
        raise NotReady(reason)
    return json_answer(200, {"status": "ready"})


async def metrics(context: Context, call: Call) -> Answer:
    """The process's numbers for Prometheus."""
    text, content_type = context.metrics.expose(call.headers.get("Accept", ""))
    return Answer(200, {"Content-Type": content_type}, text)


async def cluster(context: Context, call: Call) -> Answer:
    """Nodes, zones, disks, epochs, slots by state, bytes left to heal."""
    return json_answer(200, context.status.cluster())


async def openapi(context: Context, call: Call) -> Answer:
    """This interface as a document."""
    return json_answer(200, document())
