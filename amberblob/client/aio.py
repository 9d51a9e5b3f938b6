"""The asynchronous client."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

import aiohttp
from blake3 import blake3
from ulid import ULID

from amberblob.client.archive import ArchiveCalls
from amberblob.client.bodies import BytesBody, Hashed, Source, prepare_body
from amberblob.client.http import CONNECTIONS_MAX, READ_BUFFER_BYTES, Http, Request, Timeouts
from amberblob.client.reader import ObjectReader
from amberblob.client.retry import ATTEMPT_HEADER, Endpoints, Retrying, RetryPolicy
from amberblob.client.targets import HEAL_TARGET, MEMBERSHIP_TARGET, cluster_target, listing_target, object_target
from amberblob.client.types import (
    META_PREFIX,
    ByteRange,
    Consistency,
    ListPage,
    ObjectInfo,
    Progress,
    SlotsShown,
    info_from_headers,
    info_from_json,
    time_parameter,
)
from amberblob.errors import AmberError, BadRequest, DigestMismatch, PeerError, WireError
from amberblob.limits import LIST_LIMIT_MAX

ENDPOINT_DEFAULT = "http://127.0.0.1:7700"
_META_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class AsyncClient:
    """Objects of a cluster, through any of its nodes.

    ::

        async with AsyncClient(["http://10.0.0.1:7700", "http://10.0.0.2:7700"]) as client:
            info = await client.put("albums/1.jpg", Path("1.jpg"))
            async with client.get("albums/1.jpg") as reader:
                async for piece in reader:
                    ...

    With several endpoints the death of a node is not an error: requests are repeated at the next one, writes under
    the same write id. Errors are those of :mod:`amberblob.errors`. One client belongs to one event loop and may be
    used by any number of its tasks.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            endpoint: URLs of nodes, as a sequence or separated by commas; the first is asked first. Default:
                ``AMBERBLOB_ENDPOINT``, or the first node of ``amberblob dev``.
            token: the cluster's token; default: ``AMBERBLOB_TOKEN``.
            timeout_s: how long a request is repeated before it fails; short for ``retry=RetryPolicy(deadline_s=…)``.
            retry: how often and how long requests are repeated.
            timeouts: how long to wait for one node.

        Raises:
            ConfigError: an endpoint is no URL.
        """
        if endpoint is None:
            endpoint = os.environ.get("AMBERBLOB_ENDPOINT") or ENDPOINT_DEFAULT
        urls = [url for url in endpoint.split(",") if url.strip()] if isinstance(endpoint, str) else endpoint
        self._endpoints = Endpoints(urls)
        self._token = token if token is not None else os.environ.get("AMBERBLOB_TOKEN") or None
        self._policy = retry or RetryPolicy(deadline_s=timeout_s)
        self._timeouts = timeouts or Timeouts()
        self._session: aiohttp.ClientSession | None = None
        self._open_retrying: Retrying | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The nodes that are spoken to."""
        return self._endpoints.urls

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection. Closing twice is fine."""
        session, self._session, self._open_retrying = self._session, None, None
        if session is not None:
            await session.close()

    # -- writes

    async def put(
        self,
        path: str,
        data: Source,
        *,
        size: int | None = None,
        content_type: str | None = None,
        meta: Mapping[str, str] | None = None,
        version: int | None = None,
        if_none_match: str | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
        write_id: str | None = None,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store a new version.

        Args:
            path: the object's name.
            data: bytes, the path of a file (``str`` or path-like), a file opened in binary mode, or a plain or
                asynchronous iterator of bytes. Iterators and pipes beyond the first MiB cannot be sent again.
            size: the length in bytes, where ``data`` does not tell it.
            content_type: default: ``application/octet-stream``.
            meta: metadata of your own, kept with the version.
            version: the version's number; greater than every one the path has had.
            if_none_match: ``"*"``: only if no version lives.
            if_match: only if the head has this etag (``"*"``: any).
            if_version: only if the head has this version; 0: only if there is none.
            write_id: of your own, to repeat the same write later; default: a new one.
            progress: told how many bytes were sent.

        Raises:
            PreconditionFailed, VersionConflict, InsufficientStorage: refused, nothing happened.
            QuorumUnavailable, PeerError: not applied, though it was tried for a while.
            OutcomeUnknown: it may or may not be applied; ``extra["write_id"]`` is the one to repeat it with.
            DigestMismatch: what arrived is not what was sent.
        """
        target = object_target(path, _query(version=version))
        body = await prepare_body(data, size)
        try:
            headers = self._write_headers(
                write_id, if_none_match=if_none_match, if_match=if_match, if_version=if_version
            )
            headers["Content-Type"] = content_type or "application/octet-stream"
            headers.update(_meta_headers(meta or {}))
            in_memory = isinstance(body, BytesBody)
            if isinstance(body, BytesBody):
                headers["X-Amber-Content-Blake3"] = await asyncio.to_thread(_digest, body)
            sent = body if in_memory else Hashed(body)
            request = Request(method="PUT", target=target, headers=headers, body=sent, progress=progress, writes=True)
            answer = await self._retrying().fetch(request)
        finally:
            body.close()
        info = info_from_json(answer.json(), path=path, content_type=headers["Content-Type"], meta=_lower(meta or {}))
        # With a write id of the caller's the answer may rightly be that of an earlier write.
        if isinstance(sent, Hashed) and sent.digest is not None and write_id is None and sent.digest != info.etag:
            raise DigestMismatch(
                f"{path}: version {info.version} has the etag {info.etag}, but what was sent has {sent.digest}. "
                "Put it again and delete that version.",
                extra={"expected": sent.digest, "got": info.etag, "version": info.version},
            )
        return info

    async def delete(
        self,
        path: str,
        *,
        version: int | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
        write_id: str | None = None,
    ) -> None:
        """Tombstone the object, or one version of it. ``restore`` undoes it until retention ends.

        Raises:
            NotFound: nothing there to delete.
            PreconditionFailed, QuorumUnavailable, PeerError, OutcomeUnknown: as for put.
        """
        headers = self._write_headers(write_id, if_match=if_match, if_version=if_version)
        target = object_target(path, _query(version=version))
        await self._retrying().fetch(Request(method="DELETE", target=target, headers=headers, writes=True))

    async def restore(
        self,
        path: str,
        *,
        version: int | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
        write_id: str | None = None,
    ) -> ObjectInfo:
        """Lift the tombstone of a version, or of what the last delete took away; the head afterwards.

        Raises:
            NotFound: no such version, or nothing to restore.
            PreconditionFailed, QuorumUnavailable, PeerError, OutcomeUnknown: as for put.
        """
        headers = self._write_headers(write_id, if_match=if_match, if_version=if_version)
        target = object_target(path, {"restore": "" if version is None else str(version)})
        answer = await self._retrying().fetch(Request(method="POST", target=target, headers=headers, writes=True))
        return info_from_json(answer.json(), path=path)

    # -- reads

    def get(
        self,
        path: str,
        *,
        version: int | None = None,
        at: datetime | str | None = None,
        range: ByteRange | None = None,
        consistency: Consistency | None = None,
        progress: Progress | None = None,
    ) -> ObjectReader:
        """A reader of the head, of one version, or of what was the head at a time.

        Use ``async with client.get(…) as reader`` or ``reader = await client.get(…)``; the request is sent then.

        Args:
            path: the object's name.
            version: this version, also when it is tombstoned.
            at: the version that was the head then (a datetime, or ISO 8601).
            range: ``(start, end)``, end exclusive; ``(start, None)`` to the end; ``(-n, None)`` the last n bytes.
            consistency: ``"local"``: whatever the node that is asked has, perhaps stale.
            progress: told how many bytes have come.

        Raises:
            NotFound, RangeNotSatisfiable, QuorumUnavailable, PeerError: when it is opened.
        """
        return ObjectReader(
            self._retrying(),
            object_target(path),
            path,
            query=_query(version=version, at=at),
            headers=_consistency(consistency),
            span=range,
            progress=progress,
        )

    async def get_bytes(
        self,
        path: str,
        *,
        version: int | None = None,
        at: datetime | str | None = None,
        range: ByteRange | None = None,
        consistency: Consistency | None = None,
    ) -> bytes:
        """The whole content (or range) in memory, verified. Raises what :meth:`get` and its reader raise."""
        async with self.get(path, version=version, at=at, range=range, consistency=consistency) as reader:
            return await reader.read()

    async def head(
        self,
        path: str,
        *,
        version: int | None = None,
        at: datetime | str | None = None,
        consistency: Consistency | None = None,
    ) -> ObjectInfo:
        """What is known of the object, without its bytes. Raises NotFound, QuorumUnavailable, PeerError."""
        target = object_target(path, _query(version=version, at=at))
        answer = await self._retrying().fetch(Request(method="HEAD", target=target, headers=_consistency(consistency)))
        return info_from_headers(path, answer.headers)

    async def versions(self, path: str) -> Sequence[ObjectInfo]:
        """Every version, newest first, tombstoned ones marked. Raises NotFound, QuorumUnavailable, PeerError."""
        document = await self._get_json(object_target(path, {"versions": ""}))
        rows = document.get("versions") if isinstance(document, Mapping) else document
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise WireError("The answer lists no versions: is the endpoint an AmberBlob node?")
        return [info_from_json(row, path=path) for row in rows]

    async def list_page(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        limit: int = LIST_LIMIT_MAX,
        cursor: str | None = None,
        tombstoned: bool = False,
        at: datetime | str | None = None,
    ) -> ListPage:
        """One page of the objects whose path begins with ``prefix``, in byte order.

        Args:
            prefix: what the paths begin with.
            delimiter: fold everything up to its first occurrence after the prefix into ``prefixes``.
            limit: 1 to 1,000.
            cursor: that of the page before.
            tombstoned: deleted objects as well, marked.
            at: as it was at that time.
        """
        query = _query(prefix=prefix, delimiter=delimiter, limit=limit, cursor=cursor, at=at)
        if tombstoned:
            query["tombstoned"] = "1"
        document = await self._get_json(listing_target(query))
        try:
            return ListPage(
                objects=tuple(info_from_json(row) for row in document["objects"]),
                prefixes=tuple(str(name) for name in document.get("prefixes", ())),
                cursor=document.get("cursor") or None,
            )
        except (KeyError, TypeError) as error:
            raise WireError("The answer is no listing: is the endpoint an AmberBlob node?") from error

    async def list(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = LIST_LIMIT_MAX,
        tombstoned: bool = False,
        at: datetime | str | None = None,
    ) -> AsyncIterator[ListPage]:
        """Page after page of :meth:`list_page`, until the end."""
        cursor = None
        while True:
            page = await self.list_page(
                prefix, delimiter=delimiter, limit=page_size, cursor=cursor, tombstoned=tombstoned, at=at
            )
            yield page
            cursor = page.cursor
            if cursor is None:
                return

    # -- the cluster

    async def explain(self, path: str) -> Mapping[str, Any]:
        """Slot, replicas, versions, chunks, and where each copy is and in what state."""
        return _mapping(await self._get_json(object_target(path, {"explain": ""})))

    async def cluster(
        self, endpoint: str | None = None, *, slots: SlotsShown | None = None, since: datetime | str | None = None
    ) -> Mapping[str, Any]:
        """What a node knows of the cluster: any node, or the one that is named (asked once).

        Args:
            slots: have ``heal.by_slot`` tell of ``"all"`` slots, or of those that are ``"unhealed"`` (not whole, or not compared).
            since: from when on comparisons of copies count, as :meth:`heal` told; default: those of the last rounds.
        """
        shown = {None: None, "all": "1", "unhealed": "unhealed"}[slots]
        target = cluster_target(_query(slots=shown, since=since))
        if endpoint is None:
            return _mapping(await self._get_json(target))
        retrying = self._retrying()
        return _mapping((await retrying.http.fetch(endpoint, Request(method="GET", target=target))).json())

    async def heal(self) -> Mapping[str, Any]:
        """Have every node compare its copies with the others now and mend what they lack; returns before they have.

        The answer's ``since`` is for :meth:`cluster`; ``silent_nodes`` could not be asked. Raises NotReady, PeerError.
        """
        return _mapping((await self._retrying().fetch(Request(method="POST", target=HEAL_TARGET))).json())

    async def change_membership(
        self, action: str, nodes: Sequence[str], *, dry_run: bool = False, force: bool = False
    ) -> Mapping[str, Any]:
        """Have nodes join, drain, be removed, or removed ones be forgotten; returns the plan, before the nodes have carried it out.

        How far the slots are tells :meth:`cluster` (``membership.moves``). Asking for the same again is safe.

        Args:
            action: join, drain, remove or forget.
            dry_run: plan, and change nothing.
            force: although it leaves fewer copies than there should be, or a node cannot be reached.

        Raises:
            MembershipConflict: it does not go with what the cluster is now. NotFound: a node that is not known.
        """
        wanted = {"action": action, "nodes": list(nodes), "dry_run": dry_run, "force": force}
        request = Request(
            method="POST",
            target=MEMBERSHIP_TARGET,
            headers={"Content-Type": "application/json"},
            body=BytesBody(json.dumps(wanted).encode()),
        )
        return _mapping((await self._retrying().fetch(request)).json())

    @property
    def archive(self) -> ArchiveCalls:
        """The cluster's archive."""
        return ArchiveCalls(lambda request: self._retrying().fetch(request))

    async def ready(self) -> Mapping[str, str | None]:
        """For each endpoint why it does not serve; None when it does. Asks each once, all at the same time."""
        return dict(zip(self.endpoints, await asyncio.gather(*map(self._not_ready, self.endpoints)), strict=True))

    async def _not_ready(self, endpoint: str) -> str | None:
        try:
            await self._retrying().http.fetch(endpoint, Request(method="GET", target="/readyz"))
        except PeerError as error:
            return str(error)
        except AmberError as error:
            return str(error.extra.get("reason") or error)
        return None

    # -- inside

    async def _get_json(self, target: str) -> Any:
        return (await self._retrying().fetch(Request(method="GET", target=target))).json()

    def _retrying(self) -> Retrying:
        if self._open_retrying is None:
            headers = {"User-Agent": "amberblob-python", "Accept-Encoding": "identity"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                headers=headers,
                auto_decompress=False,
                read_bufsize=READ_BUFFER_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect_s),
            )
            # aiohttp would repeat a request whose connection broke without telling: then a write that was perhaps
            # applied and afterwards refused would look like one that was refused. There is no public switch.
            self._session._retry_connection = False
            self._open_retrying = Retrying(Http(self._session, self._timeouts), self._endpoints, self._policy)
        return self._open_retrying

    @staticmethod
    def _write_headers(
        write_id: str | None,
        *,
        if_none_match: str | None = None,
        if_match: str | None = None,
        if_version: int | None = None,
    ) -> dict[str, str]:
        headers = {"X-Amber-Write-Id": write_id if write_id is not None else str(ULID())}
        if write_id is None:
            headers[ATTEMPT_HEADER] = "first"
        if if_none_match is not None:
            headers["If-None-Match"] = _quoted(if_none_match)
        if if_match is not None:
            headers["If-Match"] = _quoted(if_match)
        if if_version is not None:
            headers["X-Amber-If-Version"] = str(if_version)
        for name, value in headers.items():
            _require_sendable(name, value)
        return headers


def _digest(body: BytesBody) -> str:
    return blake3(body.data).hexdigest()


def _query(**parameters: object) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, datetime):
            query[name] = time_parameter(value)
        elif value is not None and value != "":
            query[name] = str(value)
    return query


def _consistency(consistency: Consistency | None) -> dict[str, str]:
    return {} if consistency is None else {"X-Amber-Consistency": consistency}


def _quoted(etag: str) -> str:
    return etag if etag == "*" or etag.startswith(('"', "W/")) else f'"{etag}"'


def _lower(meta: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in meta.items()}


def _meta_headers(meta: Mapping[str, str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in meta.items():
        if not _META_NAME.match(name):
            raise BadRequest(f"{name!r} cannot name metadata; use letters, digits and hyphens", code="bad-header")
        _require_sendable(name, value)
        headers[META_PREFIX + name.lower()] = value
    return headers


def _require_sendable(name: str, value: str) -> None:
    if _UNSENDABLE.search(value):
        raise BadRequest(f"the value of {name} has control characters, which no header can carry", code="bad-header")


def _mapping(document: Any) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise WireError("The answer is not what was asked for: is the endpoint an AmberBlob node?")
    return document
