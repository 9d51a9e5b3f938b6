"""One request on its way through the handlers, and the answer that they give.

Handlers know no responses of aiohttp: they return an :class:`Answer`, and :mod:`node.http.app` sends it. So
there is one place that decides what a failure before the status line is, and what one after it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp.web import BaseRequest
from multidict import CIMultiDictProxy

from amberblob.metrics import Metrics
from amberblob.paths import decode_path
from node.http.target import Target, parse_query
from node.service import NodeStatus, ObjectService

JSON = "application/json"

_encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every handler may use.

    Attributes:
        service: the cluster's objects.
        status: what the node says of itself.
        metrics: the process's numbers.
        closing: whether the server is shutting down.
        body_stall_s: how long a client may send nothing in the middle of a body.
    """

    service: ObjectService
    status: NodeStatus
    metrics: Metrics
    closing: Callable[[], bool]
    body_stall_s: float


@dataclass(slots=True)
class Call:
    """One request.

    Attributes:
        request: as aiohttp parsed it.
        request_id: the client's, or made up here.
        operation: its name in metrics and logs; known once the request is routed.
        target: what is asked for; set once the target is parsed.
    """

    request: BaseRequest
    request_id: str
    operation: str = "none"
    target: Target = field(init=False)

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The request's headers."""
        return self.request.headers

    @property
    def is_head(self) -> bool:
        """Whether the answer goes without its body."""
        return self.request.method == "HEAD"

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
