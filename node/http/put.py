"""``PUT /objects/{path}``: a new version from a streamed body."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from aiohttp import HttpVersion11

from amberblob.limits import CONTENT_TYPE_BYTES_MAX, META_BYTES_MAX
from amberblob.paths import encode_path
from node.http.call import Answer, Call, Context, json_answer
from node.http.conditions import Headers, bad_header, single, write_conditions
from node.http.digests import digests_of
from node.http.parameters import version_of
from node.http.refusals import ExpectationFailed
from node.http.views import META_PREFIX, version_headers, written_json
from node.http.writes import may_be_repeat, outcome_of, write_id_of
from node.service import PutOptions

PARAMETERS = frozenset(("version",))

_DEFAULT_CONTENT_TYPE = "application/octet-stream"
_META_PREFIX = META_PREFIX.lower()
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


async def put(context: Context, call: Call) -> Answer:
    """Store the body as a new version."""
    path = call.path()
    query = call.query(PARAMETERS)
    options = _options(call, version_of(query))
    expects_continue = _expects_continue(call)
    # From here on the request itself is fine. The client is told to go on when the body is first asked for.
    body: AsyncIterator[bytes] | bytes | None = call.exchange.whole_body
    if body is None:
        body = call.exchange.body(invite=expects_continue, stall_s=context.body_stall_s)
    view = await outcome_of(context.service.put(path, body, options), repeat=options.repeat)
    headers = version_headers(view.version)
    headers["Location"] = "/objects/" + encode_path(path)
    return json_answer(201, written_json(view), headers)


def content_type_of(headers: Headers) -> str:
    """The type to keep with the version.

    Raises:
        BadRequest: bad-header.
    """
    value = headers.get("Content-Type", "")
    if not value:
        return _DEFAULT_CONTENT_TYPE
    if _utf8_size(value, "Content-Type") > CONTENT_TYPE_BYTES_MAX:
        raise bad_header(f"Content-Type is longer than {CONTENT_TYPE_BYTES_MAX} bytes.")
    return value


def meta_of(headers: Headers) -> dict[str, str]:
    """The client's ``X-Amber-Meta-*``; a name that is given more often has its values joined by a comma.

    Raises:
        BadRequest: bad-header.
    """
    meta: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if not lower.startswith(_META_PREFIX):
            continue
        key = lower[len(_META_PREFIX) :]
        if not key:
            raise bad_header(f"{META_PREFIX}* needs a name after the prefix.")
        meta[key] = f"{meta[key]}, {value}" if key in meta else value
    if meta:
        size_bytes = sum(len(key) + _utf8_size(value, META_PREFIX + key) for key, value in meta.items())
        if size_bytes > META_BYTES_MAX:
            raise bad_header(
                f"{META_PREFIX}* headers have {size_bytes} bytes together; at most {META_BYTES_MAX} are kept."
            )
    return meta


def _utf8_size(value: str, name: str) -> int:
    """The size of a header's value, once it is known that it can be given back as it came."""
    try:
        size_bytes = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise bad_header(
            f"{name} is not UTF-8. Encode its value as UTF-8, or as ASCII by a scheme of your own."
        ) from None
    if _CONTROL.search(value) is not None:
        raise bad_header(f"{name} holds a control character. Leave it out.")
    return size_bytes


def _options(call: Call, version: int | None) -> PutOptions:
    headers = call.headers
    if "Content-Range" in headers or "Range" in headers:
        raise bad_header("A PUT stores a whole object: Range and Content-Range cannot be meant. Leave them out.")
    coding = headers.get("Transfer-Encoding", "chunked").strip().lower()
    if coding != "chunked":
        raise bad_header(f"Transfer-Encoding {coding!r} is not understood here: send the body plain, or chunked.")
    size = call.size
    if size is None and "Transfer-Encoding" not in headers:
        size = 0
    return PutOptions(
        size=size,
        content_type=content_type_of(headers),
        meta=meta_of(headers),
        version=version,
        conditions=write_conditions(headers),
        digests=digests_of(headers),
        write_id=write_id_of(headers),
        repeat=may_be_repeat(headers),
    )


def _expects_continue(call: Call) -> bool:
    expect = single(call.headers, "Expect")
    if expect is None or call.version < HttpVersion11:
        return False
    if expect.lower() != "100-continue":
        raise ExpectationFailed("The only expectation that is met here is 100-continue. Leave out Expect.")
    return True
