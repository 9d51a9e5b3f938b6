"""``DELETE /objects/{path}``: a tombstone on the object, or on one version."""

from __future__ import annotations

from node.http.call import Answer, Call, Context
from node.http.conditions import write_conditions
from node.http.parameters import version_of
from node.http.writes import may_be_repeat, outcome_of, write_id_of

PARAMETERS = frozenset(("version",))


async def delete(context: Context, call: Call) -> Answer:
    """Tombstone what is named."""
    path = call.path()
    query = call.query(PARAMETERS)
    repeat = may_be_repeat(call.headers)
    await outcome_of(
        context.service.delete(
            path,
            version=version_of(query),
            conditions=write_conditions(call.headers),
            write_id=write_id_of(call.headers),
            repeat=repeat,
        ),
        repeat=repeat,
    )
    return Answer(204)
