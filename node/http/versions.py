"""``GET /objects/{path}?versions``: an object's history."""

from __future__ import annotations

from node.http.call import Answer, Call, Context, json_answer
from node.http.views import version_json


async def versions(context: Context, call: Call, path: str) -> Answer:
    """Every version, newest first, tombstoned ones marked."""
    call.operation = "versions"
    history = await context.service.versions(path)
    return json_answer(200, {"path": path, "versions": [version_json(view) for view in history]})
