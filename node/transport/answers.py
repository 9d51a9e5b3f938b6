"""From a handler's result or exception to an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from amberblob.errors import AmberError, ChunkCorrupt, ChunkMissing, PeerError, PeerUnreachable
from amberblob.wire import Failed, Refused, Reply, Request
from node.transport.interface import PeerHandler, Respond

_log = structlog.get_logger(__name__)

T = TypeVar("T")

EXPIRY_S = 0.02
"""How often requests under way are looked at for those whose time is over: so late may a timeout be told."""

OVERLOADED = Failed(code="overloaded", detail="too many requests are under way between these two nodes; try again")
SHUTTING_DOWN = Failed(code="shutting-down", detail="the node is stopping; ask another one")


def failed(error: Exception, request: object) -> Failed:
    """The answer that an exception of a handler stands for."""
    if isinstance(error, AmberError):
        return Failed(code=error.code, detail=error.detail)
    kind = type(request).__name__
    _log.error("peer request failed", request=kind, exc_info=error)
    return Failed(code="internal-error", detail=f"{kind} failed at the peer; its log has the reason")


async def answer(work: Awaitable[T], request: object) -> T | Failed:
    """What ``work`` returns, or the :class:`~amberblob.wire.Failed` that its exception stands for."""
    try:
        return await work
    except Exception as error:
        return failed(error, request)


def at_once(handler: PeerHandler, peer: str, request: Request, respond: Respond) -> bool:
    """Whether the request is answered, now or soon, without a task (:meth:`PeerHandler.answer`)."""
    try:
        return handler.answer(peer, request, respond)
    except Exception as error:
        respond(failed(error, request))
        return True


async def responded(begin: Callable[[Respond], None]) -> Reply:
    """What is responded to ``begin``, which is called before anything is awaited."""
    answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    begin(lambda reply: None if answered.done() else answered.set_result(reply))
    return await answered


async def served(handler: PeerHandler, peer: str, request: Request) -> Reply:
    """The answer to a request, in the way that a connection gets it."""
    answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    if at_once(handler, peer, request, lambda reply: None if answered.done() else answered.set_result(reply)):
        return await answered
    return await answer(handler.handle(peer, request), request)


def raised(failed: Failed, peer: str) -> AmberError:
    """The error that a caller who wants bytes gets for a ``Failed``."""
    detail = f"{peer}: {failed.detail}"
    for kind in (ChunkMissing, ChunkCorrupt):
        if failed.code == kind.code:
            return kind(detail)
    return PeerError(detail, code=failed.code)


def again(error: PeerError, **extra: object) -> PeerError:
    """The same error for one more caller: an exception that several tasks raise collects all their tracebacks."""
    return type(error)(error.detail, code=error.code, extra={**error.extra, **extra})


def early(reply: Reply, peer: str) -> PeerError:
    """What a writer sees when the peer answered before the blob was complete."""
    match reply:
        case Failed():
            return PeerError(f"{peer}: {reply.detail}", code=reply.code)
        case Refused():
            return PeerError(f"{peer} refused the blob: {reply.reason} {reply.detail}".rstrip(), code=reply.reason)
        case _:
            return PeerUnreachable(f"{peer} takes no more bytes of the blob: it answered already")
