"""Clients that do all there is to do with a few keys, and write down exactly what they were told.

Each operation is one :class:`~sim.history.Call`, with all its tries: a write that has a write id is tried again through
another node, with the same id, until its outcome is known or patience ends. What a try's end means is api.md's word:

* 2xx, 404, 409, 412: known.
* 503, 507, no connection: this try did nothing. If no try before it was doubtful, the whole call did nothing.
* 504, no answer in time, a connection lost: doubtful; the call stays open in the check until a later try tells.

Everything else is an anomaly, and a failure of the run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from amberblob import AsyncClient
from amberblob.client.types import ObjectInfo
from amberblob.errors import (
    AmberError,
    ClusterError,
    InsufficientStorage,
    NotFound,
    OutcomeUnknown,
    PeerError,
    PreconditionFailed,
    VersionConflict,
)
from node.protocol.operations import NO_CONDITIONS, Conditions
from sim.history import Call, Seen
from tests.cluster.harness import KIB, Answer, check_answer, content, etag_of, object_url

PATIENCE_S = 4.5
"""How long one try waits for its answer; more than the nodes' own deadline."""

TRIES_MAX = 5

AT_HOME = 0.85
"""How often a client asks its own node first: so a node that does not answer keeps only some of the clients busy."""

META = "X-Amber-Meta-Call"

KINDS = {
    "put": 17,
    "put-large": 3,
    "put-if-absent": 6,
    "put-if-match": 6,
    "put-if-version": 5,
    "put-version": 4,
    "delete": 5,
    "delete-if": 3,
    "delete-version": 6,
    "restore": 4,
    "restore-version": 4,
    "restore-if": 1,
    "get": 15,
    "get-part": 3,
    "head": 5,
    "get-version": 8,
    "head-version": 2,
    "versions": 6,
}
CHOICES = [kind for kind, weight in KINDS.items() for _ in range(weight)]


@dataclass
class Sent:
    """What a put sent: enough to know its bytes again."""

    number: int
    seed: str
    size: int
    etag: str

    def data(self) -> bytes:
        return content(self.seed, self.size)


@dataclass
class Facts:
    """All that is known of the run so far, shared by its clients."""

    endpoints: list[str]
    keys: list[str]
    calls: list[Call] = field(default_factory=list)
    sent: dict[str, dict[str, Sent]] = field(default_factory=dict)
    """By path and etag."""
    chosen: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    """By path and version: (etag, blob id), as first told."""
    twice: list[str] = field(default_factory=list)
    """(path, version) told with two contents."""
    wrong_bytes: list[str] = field(default_factory=list)
    anomalies: list[str] = field(default_factory=list)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By operation and what its last try was answered."""
    tries: Counter[str] = field(default_factory=Counter)
    """By what any try was answered."""
    bytes_checked: int = 0
    numbers: int = 0
    began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        return time.monotonic() - self.began

    def call(self, path: str, kind: str, **options: Any) -> Call:
        self.numbers += 1
        call = Call(self.numbers, path, kind, self.now(), **options)
        self.calls.append(call)
        return call

    def told(self, path: str, version: int, etag: str, blob_id: str) -> None:
        """Somebody was told that this version has this content: everybody must be."""
        known = self.chosen.setdefault((path, version), (etag, blob_id))
        if known != (etag, blob_id):
            self.twice.append(f"{path} version {version}: {known}, and {(etag, blob_id)}")
        if etag not in self.sent.get(path, {}):
            self.wrong_bytes.append(f"{path} version {version}: nobody sent {etag}")

    def check_bytes(self, path: str, version: int, etag: str, body: bytes) -> None:
        self.bytes_checked += len(body)
        if etag_of(body) != etag:
            self.wrong_bytes.append(f"{path} version {version}: {len(body)} bytes do not match {etag}")


class Lost(Exception):
    """No answer. ``sent``: the request may have arrived."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Http:
    """One try is one request: nothing is repeated behind our back."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(
        self,
        endpoint: str,
        method: str,
        target: str,
        *,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> Answer:
        """The answer, read to its end and checked. Raises Lost; AssertionError for what api.md does not allow."""
        try:
            async with self._session.request(
                method,
                URL(endpoint + target, encoded=True),
                headers=headers,
                data=data,
                skip_auto_headers=["Content-Type"],
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                body = await response.read()
                answer = Answer(response.status, CIMultiDict(response.headers), body)
        except aiohttp.ClientConnectorError as error:
            raise Lost(f"no connection ({type(error).__name__})", sent=False) from None
        except TimeoutError:
            raise Lost("no answer in time", sent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(f"connection lost ({type(error).__name__})", sent=True) from None
        return check_answer(answer, head=method == "HEAD")


def http_session() -> aiohttp.ClientSession:
    """One try is one request.

    aiohttp by itself repeats a PUT or DELETE whose connection broke, and then tells only of the second try: "connection
    refused", although the first may have been applied. There is no public way to forbid it.
    """
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), auto_decompress=False)
    assert session._retry_connection, "aiohttp has changed: does it still repeat requests?"
    session._retry_connection = False
    return session


def seen_of(answer: Answer) -> Seen:
    """The head that an answer tells of. (A 404 to a HEAD has no document to tell what the path has had.)"""
    if answer.status == 404:
        told = answer.json if answer.body else {}
        highest = told.get("version_max", 0 if told.get("type") == "no-such-object" else None)
        return Seen(0, None, highest)
    return Seen(answer.version, answer.etag)


def version_told(answer: Answer) -> tuple[str, bool]:
    return answer.etag, "X-Amber-Tombstoned-At" not in answer.headers


def history_told(answer: Answer) -> tuple[Seen, tuple[tuple[int, str, bool], ...]]:
    """What ``?versions`` tells. Raises AssertionError when it contradicts itself."""
    if answer.status == 404:
        return seen_of(answer), ()
    rows = answer.json["versions"]
    numbers = [row["version"] for row in rows]
    assert numbers == sorted(set(numbers), reverse=True), f"versions are not in order: {numbers}"
    live = [row for row in rows if not row["tombstoned"]]
    heads = [row["version"] for row in rows if row["is_head"]]
    assert heads == [row["version"] for row in live[:1]], f"heads {heads} of {rows}"
    head = Seen(live[0]["version"], live[0]["etag"]) if live else Seen(0)
    return head, tuple((row["version"], row["etag"], not row["tombstoned"]) for row in rows)


def write_result(call: Call, answer: Answer) -> tuple[Any, ...]:
    """What a write was told, for the check. Raises AssertionError for an answer that no write may have."""
    match call.kind, answer.status:
        case "put", 201:
            assert answer.json["etag"] == call.content, f"other bytes than sent: {answer.json}"
            return "ok", answer.json["version"]
        case "put", 409:
            assert answer.problem == "version-conflict", answer.json
            return 409, answer.json["version_max"]
        case "delete", 204:
            return ("ok",)
        case "delete-version", 204:
            return "ok", call.version
        case "restore", 200:
            return "done", answer.json["version"]
        case (("delete" | "delete-version" | "restore"), 404):
            return (404,)
        case _, 412:
            assert call.conditions != NO_CONDITIONS, "412 without a condition"
            return 412, answer.version, answer.etag if answer.version else None
        case _:
            raise AssertionError(f"{call.kind} was answered {answer.status}: {answer.body[:300]!r}")


class Client:
    """One client: an operation every so often, one at a time."""

    def __init__(self, name: int, seed: int, facts: Facts, http: Http, *, rate: float) -> None:
        self.name = name
        self.chance = random.Random(f"client {name} of {seed}")
        self.facts = facts
        self.http = http
        self.rate = rate
        self.home = facts.endpoints[name % len(facts.endpoints)]
        self.heads: dict[str, Seen] = {}
        self.highest: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began = time.monotonic()
            await self.once()
            pause_s = self.chance.uniform(0.5, 1.5) / self.rate - (time.monotonic() - began)
            try:
                await asyncio.wait_for(stop.wait(), max(pause_s, 0.001))
            except TimeoutError:
                continue

    async def once(self) -> None:
        """One operation, to its end."""
        # Some keys are liked better, so that there are both races and long histories.
        keys = self.facts.keys
        path = keys[min(int(self.chance.expovariate(4.0) * len(keys)), len(keys) - 1)]
        kind = self.chance.choice(CHOICES)
        try:
            if kind.startswith(("get", "head", "versions")):
                await self._read(path, kind)
            else:
                await self._write(path, kind)
        except AssertionError as error:
            self.facts.anomalies.append(f"client {self.name}, {kind} of {path}: {error}")

    # -- reads

    async def _read(self, path: str, kind: str) -> None:
        facts, chance = self.facts, self.chance
        query, version = "", None
        if kind.endswith("-version"):
            version = self._some_version(path)
            query = f"version={version}"
        elif kind == "versions":
            query = "versions"
        elif kind == "get-part":
            first = chance.randrange(40)
            query = f"start={first}&end={first + 1 + chance.randrange(200_000)}"
        method = "HEAD" if kind.startswith("head") else "GET"
        call_kind = "read-all" if kind == "versions" else "read-version" if version is not None else "read"
        call = facts.call(path, call_kind, version=version)
        call.tries = 1
        call.void = True
        endpoint = self._nodes()[0]
        try:
            answer = await self.http(endpoint, method, object_url(path, query))
        except Lost as error:
            self._note(call, kind, str(error), endpoint)
            return
        finally:
            call.ended = facts.now()
        self._note(call, kind, str(answer.status), endpoint)
        if answer.status == 503:
            return
        self._take_read(call, kind, answer)
        call.void = False

    def _take_read(self, call: Call, kind: str, answer: Answer) -> None:
        facts, path = self.facts, call.path
        if kind == "get-part" and answer.status == 416:
            return  # says nothing of the head
        assert answer.status in (200, 206, 404), f"{kind} was answered {answer.status}: {answer.body[:300]!r}"
        found = answer.status != 404
        if kind == "versions":
            call.result = ("read", history_told(answer))
            if found:
                for row in answer.json["versions"]:
                    facts.told(path, row["version"], row["etag"], row["blob_id"])
                    self._know(path, row["version"])
            return
        if found:
            facts.told(path, answer.version, answer.etag, answer.blob_id)
            self._know(path, answer.version)
            self._check_body(path, kind, answer)
        if call.kind == "read-version":
            assert not found or answer.version == call.version, f"version {answer.version} for {call}"
            call.result = ("read", version_told(answer) if found else None)
            return
        seen = seen_of(answer)
        call.result = ("read", seen)
        self.heads[path] = seen

    def _check_body(self, path: str, kind: str, answer: Answer) -> None:
        facts = self.facts
        sent = facts.sent.get(path, {}).get(answer.etag)
        if sent is None:
            return  # told already
        assert answer.headers[META] == str(sent.number), f"the meta of another version: {answer.headers}"
        if kind.startswith("head"):
            assert int(answer.headers["Content-Length"]) == sent.size, answer.headers
        elif kind == "get-part":
            part = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")[0]
            first, last = (int(number) for number in part.split("-"))
            facts.bytes_checked += len(answer.body)
            if answer.body != sent.data()[first : last + 1]:
                facts.wrong_bytes.append(
                    f"{path} version {answer.version}, bytes {part}: {len(answer.body)} wrong ones"
                )
        else:
            facts.check_bytes(path, answer.version, answer.etag, answer.body)

    # -- writes

    async def _write(self, path: str, kind: str) -> None:
        facts, chance = self.facts, self.chance
        call = self._write_call(path, kind)
        method, query = {
            "put": ("PUT", "" if call.version is None else f"version={call.version}"),
            "delete": ("DELETE", ""),
            "delete-version": ("DELETE", f"version={call.version}"),
            "restore": ("POST", "restore" if call.version is None else f"restore={call.version}"),
        }[call.kind]
        data: bytes | None = None
        headers = _condition_headers(call.conditions)
        if call.kind == "put":
            data = self._content(call, kind)
            headers[META] = str(call.number)
        if chance.random() < 0.75:
            call.write_id = f"{path}-{call.number}"
            headers["X-Amber-Write-Id"] = call.write_id
        tells_first = chance.random() < 0.5
        tries_max = chance.randint(2, TRIES_MAX) if call.write_id else 1
        nodes = self._nodes()
        while True:
            endpoint = nodes[call.tries % len(nodes)]
            call.tries += 1
            attempt = dict(headers)
            if call.write_id and tells_first and not call.doubtful:
                attempt["X-Amber-Attempt"] = "first"
            try:
                answer = await self.http(endpoint, method, object_url(path, query), headers=attempt, data=data)
            except Lost as error:
                call.doubtful |= error.sent
                self._note(call, kind, str(error), endpoint)
            except AssertionError:
                call.doubtful = True
                raise
            else:
                self._note(call, kind, str(answer.status), endpoint)
                if answer.status == 504:
                    call.doubtful = True
                elif answer.status not in (503, 507):
                    self._take_write(call, answer)
                    return
            if call.tries >= tries_max:
                break
            await asyncio.sleep(chance.uniform(0.05, 0.4) * call.tries)
        if not call.doubtful:
            call.void = True
        call.ended = facts.now()

    def _content(self, call: Call, kind: str) -> bytes:
        """What a put sends."""
        chance, path = self.chance, call.path
        size = chance.randint(100, 300) * KIB if kind == "put-large" else chance.choice((20, 200, 3000, 60_000))
        sent = Sent(call.number, f"{path}#{call.number}", size, "")
        data = sent.data()
        sent.etag = call.content = etag_of(data)
        call.inline = size <= 64 * KIB
        self.facts.sent.setdefault(path, {})[sent.etag] = sent
        return data

    def _take_write(self, call: Call, answer: Answer) -> None:
        call.ended = self.facts.now()
        try:
            call.result = write_result(call, answer)
        except AssertionError:
            call.doubtful = True
            raise
        if answer.status == 412 and answer.version:
            self.facts.told(call.path, answer.version, answer.etag, answer.blob_id)
            self.heads[call.path] = Seen(answer.version, answer.etag)
        elif answer.status in (200, 201):
            told = answer.json
            self.facts.told(call.path, told["version"], told["etag"], told["blob_id"])
            self._know(call.path, told["version"])
            self.heads[call.path] = Seen(told["version"], told["etag"])

    def _write_call(self, path: str, kind: str) -> Call:
        facts, chance = self.facts, self.chance
        head = self.heads.get(path, Seen(0))
        conditions = NO_CONDITIONS
        match kind:
            case "put-if-absent":
                conditions = Conditions(absent=True)
            case "put-if-match" if head.etag is not None and chance.random() < 0.9:
                conditions = Conditions(etags=(head.etag,))
            case "put-if-match":
                conditions = Conditions(etags=("*",))
            case "put-if-version":
                conditions = Conditions(version=head.version)
            case "delete-if" | "restore-if" if head.etag is not None and chance.random() < 0.5:
                conditions = Conditions(etags=(head.etag,))
            case "delete-if" | "restore-if":
                conditions = Conditions(version=head.version)
            case _:
                pass
        version: int | None = None
        if kind == "put-version":
            version = self.highest.get(path, 0) + chance.choice((0, 1, 1, 2, 3)) or 1
        elif kind in ("delete-version", "restore-version"):
            version = self._some_version(path)
        call_kind = kind if kind == "delete-version" else kind.partition("-")[0]
        return facts.call(path, call_kind, version=version, conditions=conditions)

    def _nodes(self) -> list[str]:
        """Whom to ask, one after the other."""
        nodes = self.chance.sample(self.facts.endpoints, len(self.facts.endpoints))
        if self.chance.random() < AT_HOME:
            nodes.sort(key=lambda node: node != self.home)
        return nodes

    def _some_version(self, path: str) -> int:
        highest = self.highest.get(path, 0)
        return max(1, highest - int(self.chance.expovariate(0.4)) + self.chance.choice((0, 0, 0, 1)))

    def _know(self, path: str, version: int) -> None:
        self.highest[path] = max(self.highest.get(path, 0), version)

    def _note(self, call: Call, kind: str, what: str, endpoint: str) -> None:
        self.facts.tries[what] += 1
        node = self.facts.endpoints.index(endpoint) + 1
        call.story = (*call.story, f"{what} by node-{node} at {self.facts.now():.3f}")
        self.facts.statuses[kind, what] += 1


class LibraryClient(Client):
    """The same through amberblob.client: all that it does not call unknown must be what it says."""

    def __init__(self, name: int, seed: int, facts: Facts, http: Http, library: AsyncClient, *, rate: float) -> None:
        super().__init__(name, seed, facts, http, rate=rate)
        self.library = library

    async def _write(self, path: str, kind: str) -> None:
        call = self._write_call(path, kind)
        data = self._content(call, kind) if call.kind == "put" else b""
        call.write_id = "the library's"
        call.tries = 1
        said = "done"
        try:
            call.result = await self._told(call, data)
        except (PreconditionFailed, VersionConflict, NotFound) as error:
            said = str(error.status)
            call.result = (error.status,)
            assert error.code != "write-id-reused", error
            assert error.status != 412 or call.conditions != NO_CONDITIONS, "412 without a condition"
        except OutcomeUnknown:
            said = "unknown"
            call.doubtful = True
        except (ClusterError, InsufficientStorage, PeerError) as error:
            said = "not done"
            call.story = (f"{error.code}: {error.detail[:200]}",)
            call.void = True
        except AmberError as error:
            call.doubtful = True
            raise AssertionError(f"the library says {error!r}") from error
        finally:
            call.ended = self.facts.now()
            self._count(call, kind, said)

    async def _told(self, call: Call, data: bytes) -> tuple[Any, ...]:
        """Do the write; what its answer means for the check."""
        library, path, conditions = self.library, call.path, call.conditions
        if_match = conditions.etags[0] if conditions.etags else None
        if call.kind == "put":
            info = await library.put(
                path,
                data,
                meta={"call": str(call.number)},
                version=call.version,
                if_none_match="*" if conditions.absent else None,
                if_match=if_match,
                if_version=conditions.version,
            )
            assert info.etag == call.content, f"other bytes than sent: {info}"
            self._take_info(info)
            return "ok", info.version
        if call.kind == "restore":
            info = await library.restore(path, version=call.version, if_match=if_match, if_version=conditions.version)
            self._take_info(info)
            return "done", info.version
        await library.delete(path, version=call.version, if_match=if_match, if_version=conditions.version)
        return ("ok",) if call.version is None else ("ok", call.version)

    async def _read(self, path: str, kind: str) -> None:
        version = self._some_version(path) if kind.endswith("-version") else None
        call_kind = "read-all" if kind == "versions" else "read-version" if version is not None else "read"
        call = self.facts.call(path, call_kind, version=version)
        call.tries = 1
        said = "done"
        try:
            call.result = ("read", await self._seen(call, kind))
        except NotFound:
            said = "404"
            call.result = ("read", {"read": Seen(0), "read-all": (Seen(0, None, 0), ())}.get(call_kind))
        except (ClusterError, PeerError) as error:
            said = "not done"
            call.story = (f"{error.code}: {error.detail[:200]}",)
            call.void = True
        except AmberError as error:
            call.void = True
            raise AssertionError(f"the library says {error!r}") from error
        finally:
            call.ended = self.facts.now()
            self._count(call, kind, said)

    async def _seen(self, call: Call, kind: str) -> Any:
        """Do the read. The library verifies the bytes itself; they are compared with what was sent all the same."""
        path, version = call.path, call.version
        if kind == "versions":
            infos = await self.library.versions(path)
            for info in infos:
                self._take_info(info, is_head=False)
            live = [info for info in infos if not info.tombstoned]
            head = Seen(live[0].version, live[0].etag) if live else Seen(0)
            return head, tuple((info.version, info.etag, not info.tombstoned) for info in infos)
        if kind.startswith("head"):
            info = await self.library.head(path, version=version)
        else:
            async with self.library.get(path, version=version) as reader:
                info = reader.info
                self.facts.check_bytes(path, info.version, info.etag, await reader.read())
        self._take_info(info, is_head=version is None)
        if version is None:
            return Seen(info.version, info.etag)
        assert info.version == version, f"version {info.version} for {call}"
        return info.etag, not info.tombstoned

    def _take_info(self, info: ObjectInfo, *, is_head: bool = True) -> None:
        self.facts.told(info.path, info.version, info.etag, info.blob_id)
        self._know(info.path, info.version)
        if is_head:
            self.heads[info.path] = Seen(info.version, info.etag)

    def _count(self, call: Call, kind: str, said: str) -> None:
        self.facts.statuses[f"{kind} (lib)", said] += 1
        if said == "not done" and "insufficient-storage" in call.story[0]:
            self.facts.tries["507"] += 1


def _condition_headers(conditions: Conditions) -> dict[str, str]:
    headers: dict[str, str] = {}
    if conditions.absent:
        headers["If-None-Match"] = "*"
    if conditions.etags:
        headers["If-Match"] = ", ".join(etag if etag == "*" else f'"{etag}"' for etag in conditions.etags)
    if conditions.version is not None:
        headers["X-Amber-If-Version"] = str(conditions.version)
    return headers


def by_path(calls: Iterable[Call]) -> dict[str, list[Call]]:
    """The calls of each path, in the order in which they were made."""
    paths: dict[str, list[Call]] = {}
    for call in calls:
        paths.setdefault(call.path, []).append(call)
    return paths
