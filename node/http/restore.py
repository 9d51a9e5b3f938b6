"""``POST /objects/{path}?restore[=N]``: lift a tombstone."""

from __future__ import annotations

from amberblob.errors import BadRequest
from node.http.call import Answer, Call, Context, json_answer
from node.http.conditions import write_conditions
from node.http.parameters import restored_version_of
from node.http.views import version_headers, written_json
from node.http.writes import may_be_repeat, outcome_of, write_id_of

PARAMETERS = frozenset(("restore",))


async def restore(context: Context, call: Call) -> Answer:
    """Bring back a version, or what the last delete took away."""
    path = call.path()
    query = call.query(PARAMETERS)
    if "restore" not in query:
        raise BadRequest("POST on an object only restores: add ?restore. To store bytes use PUT.", code="bad-parameter")
    repeat = may_be_repeat(call.headers)
    view = await outcome_of(
        context.service.restore(
            path,
            version=restored_version_of(query),
            conditions=write_conditions(call.headers),
            write_id=write_id_of(call.headers),
            repeat=repeat,
        ),
        repeat=repeat,
    )
    return json_answer(200, written_json(view), version_headers(view.version))
