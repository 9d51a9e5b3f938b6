"""``GET`` and ``HEAD /objects/{path}``: one version, whole or a part of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from amberblob.errors import BadRequest, PreconditionFailed
from node.http.call import Answer, BodyStream, Call, Context
from node.http.conditions import Headers, Verdict, bad_header, range_applies, read_conditions, single
from node.http.explain import explain
from node.http.parameters import at_of, check_flag, offset_of, version_of
from node.http.ranges import ByteRange, Slice, bad_range, parse_range, range_of_offsets, resolve
from node.http.versions import versions
from node.http.views import head_of, object_headers
from node.service import Consistency

PARAMETERS = frozenset(("version", "at", "start", "end", "versions", "explain"))

WHOLE_BODY_BYTES_MAX = 256 * 1024
"""Bodies up to this size that come in one piece leave together with their head."""


async def get(context: Context, call: Call) -> Answer:
    """Serve a version; or, when asked by a flag, the object's history or where it is."""
    path = call.path()
    query = call.query(PARAMETERS)
    if "versions" in query:
        check_flag(query, "versions")
        return await versions(context, call, path)
    if "explain" in query:
        check_flag(query, "explain")
        return await explain(context, call, path)

    version = version_of(query)
    at_ms = at_of(query)
    if version is not None and at_ms is not None:
        raise BadRequest("version and at exclude each other: ask by one of them.", code="bad-parameter")
    headers = call.headers
    offsets = range_of_offsets(offset_of(query, "start"), offset_of(query, "end"))
    ranged = _range_header(headers)
    if ranged is not None and offsets is not None:
        raise bad_range("Range and start/end exclude each other: use one of them.")
    conditions = read_conditions(headers)
    consistency = _consistency(headers)

    view = await context.service.lookup(path, version=version, at_ms=at_ms, consistency=consistency)
    found = view.version
    modified_s = found.created_at_ms // 1000
    answer_headers = object_headers(view)
    match conditions.judge(found.etag, modified_s):
        case Verdict.NOT_MODIFIED:
            return Answer(304, answer_headers)
        case Verdict.FAILED:
            raise PreconditionFailed(
                "The version served here does not meet If-Match or If-Unmodified-Since. Read it anew without them.",
                extra={"head": head_of(found)},
            )
        case Verdict.SERVE:
            pass
    if ranged is not None and not range_applies(headers, found.etag, modified_s):
        ranged = None
    wanted = ranged or offsets
    part = Slice(offset=0, length=found.size) if wanted is None else resolve(wanted, found.size)

    answer_headers["Content-Type"] = found.content_type
    answer_headers["Content-Length"] = str(part.length)
    answer_headers["Accept-Ranges"] = "bytes"
    status = 200
    if wanted is not None:
        status = 206
        answer_headers["Content-Range"] = part.content_range(found.size)
    if call.is_head or part.length == 0:
        return Answer(status, answer_headers)
    whole = context.service.peek(view)
    if whole is not None:
        return Answer(
            status, answer_headers, whole if wanted is None else whole[part.offset : part.offset + part.length]
        )
    body = await _open(context.service.read(view, part.offset, part.length), part.length)
    return Answer(status, answer_headers, body)


async def _open(chunks: AsyncIterator[bytes | memoryview], length: int) -> bytes | BodyStream:
    """Read the first piece, so that a body that cannot be read at all is still answered with an error."""
    try:
        first = await anext(chunks)
        while not first:
            first = await anext(chunks)
    except StopAsyncIteration:
        raise RuntimeError(f"the object's bytes ended before the first of {length}") from None
    if len(first) != length or length > WHOLE_BODY_BYTES_MAX:
        return BodyStream(first, chunks, length)
    whole = bytes(first)
    await close_iterator(chunks)
    return whole


async def close_iterator(chunks: AsyncIterator[bytes | memoryview]) -> None:
    """Let an iterator that was left early give up what it holds."""
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _range_header(headers: Headers) -> ByteRange | None:
    value = single(headers, "Range")
    return None if value is None else parse_range(value)


def _consistency(headers: Headers) -> Consistency:
    value = single(headers, "X-Amber-Consistency")
    if value is None:
        return "strong"
    if value not in ("strong", "local"):
        raise bad_header("X-Amber-Consistency must be strong or local.")
    return cast(Consistency, value)
