"""Requests that every HTTP parser reads in the same way: recognised by one strict expression. Pure.

What is not recognised here is not refused: it is left to aiohttp's parser, which knows the whole standard. So this
page need not know it, and there is nothing to smuggle: a request is taken only when no parser could see its end, its
target or any header elsewhere than we do. That excludes bare line feeds, folding, empty or odd names, anything that is
no visible ASCII, a name that is given twice, a missing or odd Host, Transfer-Encoding, Upgrade and Expect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDict, CIMultiDictProxy

from amberblob.limits import KIB

SERVER_NAME = "AmberBlob"

SIMPLE_HEAD_BYTES_MAX = 8 * KIB
"""A longer head is left to aiohttp."""

_HEADERS_MAX = 64

_HEAD = re.compile(
    rb"(GET|PUT|HEAD|DELETE|POST) (/[!$%%&'()*+,\-./0-9:;=?@A-Z_a-z~]*+) HTTP/1\.1\r\n"
    rb"((?:[!#$%%&'*+\-.^_`|~0-9A-Za-z]++:[ -~]*+\r\n){1,%d}+)\r\n" % _HEADERS_MAX
)
_BEGINNINGS = (b"GET /", b"PUT /", b"HEAD /", b"DELETE /", b"POST /")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,17}")
_HOST = re.compile(r"[A-Za-z0-9._\-:\[\]]+")
_NOT_SIMPLE = ("Transfer-Encoding", "Upgrade", "Expect")


@dataclass(slots=True)
class Fields:
    """The header lines of one request.

    Attributes:
        headers: by name; none is there twice.
        size: the body's length in bytes; None when it is not told, and there is none.
        close: the client wants the connection to end after the answer.
    """

    headers: CIMultiDictProxy[str]
    size: int | None
    close: bool


@dataclass(slots=True)
class Head:
    """A request's head.

    Attributes:
        lines: the header lines as they came; equal ones mean equal :class:`Fields`.
        end: where the head ends, and the body begins.
    """

    method: str
    target: str
    lines: bytes
    end: int


def read_head(data: bytes | bytearray) -> Head | None:
    """The head that ``data`` begins with; None when it is not all there, or not a simple one."""
    match = _HEAD.match(data)
    if match is None or match.end() > SIMPLE_HEAD_BYTES_MAX:
        return None
    return Head(match[1].decode(), match[2].decode(), bytes(match[3]), match.end())


def may_become_simple(data: bytes | bytearray) -> bool:
    """Whether more of it could make ``data`` begin with a simple head."""
    if len(data) > SIMPLE_HEAD_BYTES_MAX or b"\r\n\r\n" in data or data.count(b"\n") != data.count(b"\r\n"):
        return False
    return data.startswith(_BEGINNINGS) or any(beginning.startswith(data) for beginning in _BEGINNINGS)


def read_fields(lines: bytes) -> Fields | None:
    """The header lines of a head; None when they are not simple after all."""
    pairs = []
    for line in lines.decode().split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            pairs.append((name, value.strip(" ")))
    headers = CIMultiDictProxy(CIMultiDict(pairs))
    if len({name.lower() for name, _ in pairs}) != len(pairs):
        return None
    for name in _NOT_SIMPLE:
        if name in headers:
            return None
    if _HOST.fullmatch(headers.get("Host", "")) is None:
        return None
    close = headers.get("Connection", "keep-alive").lower()
    if close not in ("keep-alive", "close"):
        return None
    length = headers.get("Content-Length")
    if length is None:
        return Fields(headers, None, close == "close")
    if _LENGTH.fullmatch(length) is None:
        return None
    return Fields(headers, int(length), close == "close")


_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}
_NO_BODY = frozenset((204, 304))


def answer_head(
    status: int, headers: dict[str, str], *, size: int, head_only: bool, request_id: str, close: bool
) -> bytes:
    """The head of an answer, as aiohttp would send it.

    Args:
        size: how long the body is that the answer has, or would have if it were not for HEAD.
        head_only: the answer is for HEAD: of a length that nobody knows nothing is said.

    Raises:
        ValueError: a header's value would break out of its line.
    """
    if status in _NO_BODY:
        headers.pop("Content-Length", None)
    elif "Content-Length" not in headers and (size or not head_only):
        headers["Content-Length"] = str(size)
    lines = [_STATUS_LINES[status]]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(
        f"X-Amber-Request-Id: {request_id}\r\nServer: {SERVER_NAME}\r\nDate: {rfc822_formatted_time()}"
        + ("\r\nConnection: close\r\n\r\n" if close else "\r\n\r\n")
    )
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) + 3 + close or text.count("\r") != len(lines) + 3 + close:
        raise ValueError("a line break in a header of an answer")
    return text.encode()
