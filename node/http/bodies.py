"""Small bodies of administrative requests."""

from __future__ import annotations

from amberblob.errors import BadRequest
from node.http.call import Call, Context

BODY_BYTES_MAX = 64 * 1024


async def whole_body(context: Context, call: Call) -> bytes:
    """The request's body. Raises: BadRequest, when it is longer than :data:`BODY_BYTES_MAX`."""
    body = call.exchange.whole_body
    if body is None:
        parts: list[bytes] = []
        size = 0
        async for part in call.exchange.body(invite=False, stall_s=context.body_stall_s):
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise BadRequest(f"The body is longer than {BODY_BYTES_MAX} bytes.", code="bad-request")
            parts.append(part)
        body = b"".join(parts)
    return body
