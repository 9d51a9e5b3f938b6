"""``GET /objects``: a page of the objects, in the byte order of their names."""

from __future__ import annotations

from typing import Any

from node.http.call import Answer, Call, Context, json_answer
from node.http.parameters import at_of, cursor_of, encode_cursor, limit_of, switch_of, text_of
from node.http.views import listed_json

PARAMETERS = frozenset(("prefix", "delimiter", "limit", "cursor", "tombstoned", "at"))


async def list_objects(context: Context, call: Call) -> Answer:
    """One page, complete or an error; a cursor when there is more."""
    query = call.query(PARAMETERS)
    tombstoned = switch_of(query, "tombstoned")
    page = await context.service.list(
        prefix=text_of(query, "prefix"),
        delimiter=text_of(query, "delimiter"),
        limit=limit_of(query),
        start=cursor_of(query),
        tombstoned=tombstoned,
        at_ms=at_of(query),
    )
    document: dict[str, Any] = {
        "objects": [listed_json(listed, tombstones=tombstoned) for listed in page.objects],
        "prefixes": page.prefixes,
    }
    if page.next_start is not None:
        document["cursor"] = encode_cursor(page.next_start)
    return json_answer(200, document)
