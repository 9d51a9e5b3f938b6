"""Every error as ``application/problem+json`` (RFC 9457), and the headers that go with it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, InvalidURLError, LineTooLong

from amberblob.errors import AmberError, BadRequest, PreconditionFailed
from amberblob.limits import HTTP_HEADER_BYTES_MAX, KIB
from node.http.call import Answer
from node.http.refusals import HeaderTooLarge
from node.http.views import head_headers, head_json

PROBLEM_JSON = "application/problem+json"
ERROR_HEADER = "X-Amber-Error"
"""The document's ``type`` once more: the answer to HEAD has no document."""

RETRY_AFTER_S = 1

REQUEST_LINE_BYTES_MAX = HTTP_HEADER_BYTES_MAX + 16 * KIB
"""Larger than a header line, so that the parser's error tells which of the two it was."""

HEADERS_MAX = 128
"""Header lines of one request."""

assert REQUEST_LINE_BYTES_MAX != HTTP_HEADER_BYTES_MAX

_RESERVED_MEMBERS = frozenset(("type", "title", "status", "detail", "request_id"))
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_encode_json = msgspec.json.Encoder(enc_hook=str).encode


def problem(error: AmberError, request_id: str) -> Answer:
    """The answer that tells of an error."""
    document: dict[str, Any] = {
        "type": error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }
    headers = {"Content-Type": PROBLEM_JSON}
    if _CODE.fullmatch(error.code):  # it may be another node's word
        headers[ERROR_HEADER] = error.code
    extra = error.extra
    match error.status:
        case 401:
            headers["WWW-Authenticate"] = 'Bearer realm="amberblob"'
        case 405:
            headers["Allow"] = ", ".join(extra.get("allow", ()))
        case 412 if isinstance(error, PreconditionFailed) and "head" in extra:
            headers |= head_headers(extra["head"])
            extra = {**extra, "head": head_json(extra["head"])}
        case 416 if "size" in extra:
            headers["Content-Range"] = f"bytes */{extra['size']}"
        case 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        case _:
            pass
    document.update((name, value) for name, value in extra.items() if name not in _RESERVED_MEMBERS)
    return Answer(error.status, headers, _encode_json(document))


def internal_error() -> AmberError:
    """What a client learns of a fault in the node: that there is one, and how to tell its operator."""
    return AmberError(
        "The node failed while it handled the request. Try again; if it stays, "
        "give the request id to the operator: the node's log has the rest."
    )


def unparsable(error: BaseException | None) -> AmberError:
    """What is wrong with a request that the HTTP parser gave up on."""
    match error:
        case LineTooLong() if error.args[1] == REQUEST_LINE_BYTES_MAX:
            return BadRequest(
                f"The request target is longer than {REQUEST_LINE_BYTES_MAX} bytes. Use a shorter path.",
                code="path-too-long",
            )
        case LineTooLong():
            return HeaderTooLarge(f"A header line is longer than {HTTP_HEADER_BYTES_MAX} bytes. Shorten it.")
        case HttpProcessingError(message="Too many headers received"):
            return HeaderTooLarge(f"The request has more than {HEADERS_MAX} header lines. Send fewer.")
        case BadHttpMethod():
            return BadRequest("The request line does not begin with a method of HTTP/1.1. Is this plain HTTP?")
        case InvalidURLError():
            return BadRequest(
                "The request target is no path of printable ASCII. Percent-encode everything else in it.",
                code="bad-path",
            )
        case HttpProcessingError():
            reason = (error.message.splitlines() or [""])[0].rstrip(": ")[:200]
            return BadRequest(f"This is not well-formed HTTP/1.1: {reason or 'it cannot be parsed'}.")
        case _:
            return BadRequest("This is not well-formed HTTP/1.1.")


def raw_response(error: AmberError, request_id: str) -> bytes:
    """The whole answer as bytes, for a connection that never had a request to answer."""
    answer = problem(error, request_id)
    assert isinstance(answer.body, bytes)
    headers = answer.headers | {
        "X-Amber-Request-Id": request_id,
        "Content-Length": str(len(answer.body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {error.status} {error.title}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body
