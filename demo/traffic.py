"""Clients that count what they repeat, and many operations at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp

from amberblob.client import AsyncClient
from amberblob.client.http import Http, Request
from amberblob.client.retry import Retrying, worth_repeating
from amberblob.errors import AmberError

T = TypeVar("T")


@dataclass(slots=True)
class Counts:
    """What all clients did together.

    Attributes:
        failed_attempts: requests that one node did not answer well, so that the client asked again or another one.
        under_way: operations that have begun and not ended.
    """

    failed_attempts: int = 0
    under_way: int = 0


class _CountingHttp(Http):
    """An Http that counts what the layer above it will repeat."""

    def __init__(self, inner: Http, counts: Counts) -> None:
        self._inner = inner
        self._counts = counts

    async def send(self, endpoint: str, request: Request, *, within_s: float | None = None) -> aiohttp.ClientResponse:
        try:
            return await self._inner.send(endpoint, request, within_s=within_s)
        except AmberError as error:
            self._count(error)
            raise

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in self._inner.pieces(response):
                yield piece
        except AmberError as error:
            self._count(error)
            raise

    def _count(self, error: AmberError) -> None:
        if worth_repeating(error):
            self._counts.failed_attempts += 1


class CountingClient(AsyncClient):
    """The product's client as it is, but for the counting. It has no hook for that, hence the private method."""

    def __init__(self, endpoints: list[str], counts: Counts) -> None:
        super().__init__(endpoints)
        self._counts = counts

    def _retrying(self) -> Retrying:
        retrying = super()._retrying()
        if not isinstance(retrying.http, _CountingHttp):
            retrying.http = _CountingHttp(retrying.http, self._counts)
        return retrying


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, parallel: int) -> None:
    """Do the work for every item, so many at a time. The first failure ends the rest and is raised as it is."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    await together(*(worker() for _ in range(parallel)))


async def together(*works: Awaitable[None]) -> None:
    """Wait for all. The first failure ends the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
