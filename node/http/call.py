"""One request on its way through the handlers, and the answer that they give.

Handlers do not know which lane a request came by (:mod:`node.http.aiohttp_lane`, :mod:`node.http.fast_lane`): they
are given a :class:`Call` and return an :class:`Answer`, and :mod:`node.http.app` sends it by the call's
:class:`Exchange`. So there is one place that decides what a failure before the status line is, and what one after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from aiohttp import HttpVersion
from multidict import CIMultiDictProxy

from amberblob.metrics import Metrics
from amberblob.paths import decode_path
from node.http.target import Target, parse_query
from node.service import ArchiveService, NodeStatus, ObjectService

JSON = "application/json"

_encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every handler may use.

    Attributes:
        service: the cluster's objects.
        status: what the node says of itself.
        archive: the cluster's archive.
        metrics: the process's numbers.
        closing: whether the server is shutting down.
        body_stall_s: how long a client may send nothing in the middle of a body.
    """

    service: ObjectService
    status: NodeStatus
    archive: ArchiveService
    metrics: Metrics
    closing: Callable[[], bool]
    body_stall_s: float


class Exchange(Protocol):
    """A request's way in and its answer's way out, by one of the lanes."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection; None once it is gone."""
        ...

    @property
    def received_bytes(self) -> int:
        """How much of the request's body has come."""
        ...

    @property
    def write_stall_s(self) -> float:
        """How long the client may take nothing of the answer."""
        ...

    sent_bytes: int
    """How much of the answer went to the transport, its head included."""

    @property
    def whole_body(self) -> bytes | None:
        """The request's body, if all of it is here."""
        ...

    def body(self, *, invite: bool, stall_s: float) -> AsyncIterator[bytes]:
        """The request's body as it comes; with ``invite`` the client is told to send it.

        Raises:
            BadRequest: incomplete-body, when the client goes away in the middle; bad-request for broken chunks.
            RequestTimeout: nothing came for ``stall_s`` seconds.
        """
        ...

    async def send(self, call: Call, answer: Answer, body: bytes, *, close: bool) -> None:
        """Send an answer whole. Raises: ConnectionError."""
        ...

    async def begin(self, call: Call, answer: Answer, *, close: bool) -> None:
        """The head of an answer whose body follows. Raises: ConnectionError."""
        ...

    async def flush(self) -> None:
        """Returns when what was written has left the process. Raises: ConnectionError."""
        ...

    async def write(self, piece: bytes | memoryview) -> None:
        """Some of the body, when there is room for it; not a large piece. Raises: ConnectionError."""
        ...

    async def end(self) -> None:
        """All of the body was written. Raises: ConnectionError."""
        ...


@dataclass(slots=True)
class Call:
    """One request.

    Attributes:
        method: GET, …
        raw_path: the target as it came.
        headers: by name, in any case of its letters.
        size: the body's length in bytes, if the client told it.
        version: of HTTP.
        exchange: where the body comes from and the answer goes.
        request_id: the client's, or made up here.
        operation: its name in metrics and logs; known once the request is routed.
        target: what is asked for; set once the target is parsed.
    """

    method: str
    raw_path: str
    headers: CIMultiDictProxy[str]
    size: int | None
    version: HttpVersion
    exchange: Exchange
    request_id: str
    operation: str = "none"
    target: Target = field(init=False)

    @property
    def is_head(self) -> bool:
        """Whether the answer goes without its body."""
        return self.method == "HEAD"

    def path(self) -> str:
        """The object's name, decoded and checked. Raises: BadRequest, Forbidden."""
        return decode_path(self.target.encoded_path)

    def query(self, known: frozenset[str]) -> dict[str, str | None]:
        """The parameters of the query. Raises: BadRequest, for any that is not ``known``."""
        return parse_query(self.target.raw_query, known)


@dataclass(slots=True)
class BodyStream:
    """A body that is sent as it is read.

    Attributes:
        first: what was read before the status line, so that a failure until then is a proper answer.
        rest: where the rest comes from.
        length: how many bytes both must have.
    """

    first: bytes | memoryview
    rest: AsyncIterator[bytes | memoryview]
    length: int


@dataclass(slots=True)
class Answer:
    """What goes back: a whole body, or one that is streamed."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | BodyStream = b""


Handler = Callable[[Context, Call], Awaitable[Answer]]


def json_answer(status: int, document: Any, headers: dict[str, str] | None = None) -> Answer:
    """An answer whose body is JSON."""
    headers = headers if headers is not None else {}
    headers["Content-Type"] = JSON
    return Answer(status, headers, _encode_json(document))
