"""``GET /objects/{path}?explain``: where an object is, for whoever runs the cluster."""

from __future__ import annotations

from node.http.call import Answer, Call, Context, json_answer


async def explain(context: Context, call: Call, path: str) -> Answer:
    """Slot, replicas, versions, chunks, and the state of every copy."""
    call.operation = "explain"
    return json_answer(200, await context.service.explain(path))
