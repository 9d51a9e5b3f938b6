"""``POST /cluster/membership``: what an operator wants of the nodes."""

from __future__ import annotations

import msgspec

from amberblob.errors import BadRequest
from amberblob.ids import valid_node_id
from node.http.bodies import whole_body
from node.http.call import Answer, Call, Context, json_answer
from node.service import MembershipAction

NODES_MAX = 64


class _Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body."""

    action: MembershipAction
    nodes: tuple[str, ...]
    dry_run: bool = False
    force: bool = False


async def membership(context: Context, call: Call) -> Answer:
    """Plan a change, and unless it is a dry run have the nodes carry it out: how far they are tells ``GET /cluster``."""
    wanted = await _wanted(context, call)
    document = await context.status.change_membership(
        wanted.action, wanted.nodes, dry_run=wanted.dry_run, force=wanted.force
    )
    return json_answer(200 if wanted.dry_run else 202, document)


async def _wanted(context: Context, call: Call) -> _Wanted:
    body = await whole_body(context, call)
    try:
        wanted = msgspec.json.decode(body, type=_Wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(
            f'The body is not {{"action": "join", "drain", "remove" or "forget", "nodes": ["n4"]}}: {error}.',
            code="bad-request",
        ) from None
    if not 1 <= len(wanted.nodes) <= NODES_MAX or not all(map(valid_node_id, wanted.nodes)):
        raise BadRequest(f"Name 1 to {NODES_MAX} nodes, as amberblob cluster nodes lists them.", code="bad-request")
    return wanted
