"""Real AmberBlob nodes on this machine, for tests: start, kill, stop, pause; and a client that trusts no library of ours.

Every process is ended by its own pid in :meth:`Cluster.close`, and by the kernel if pytest itself dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import inspect
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import tomli_w
from blake3 import blake3
from multidict import CIMultiDict
from yarl import URL

from tests.processes import stand_still

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
SECRET = "a-secret-of-the-cluster-tests"
DEADLINE_S = 60.0
"""A wait that succeeds costs nothing, and the machine may have more to do than this."""

POLL_S = 0.02
KIB = 1024
MIB = 1024 * KIB

LIVE: weakref.WeakSet[Cluster] = weakref.WeakSet()
"""Every cluster that was not closed; their logs are shown when a test fails."""


# -- waiting


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], what: str, *, deadline_s: float = DEADLINE_S
) -> Any:
    """Ask again and again until the answer is true, and return it. Fails with ``what`` after ``deadline_s``."""
    end = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(POLL_S)


def until_sync(condition: Callable[[], Any], what: str, *, deadline_s: float = DEADLINE_S) -> Any:
    """:func:`until` without an event loop."""
    end = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(POLL_S)


PORTS = range(10_240, 20_000)
"""Below those of outgoing connections, so that a node that is down keeps its own; and not those of the benchmarks."""

_ours: set[int] = set()
_claims: list[int] = []
"""The file of claims, once it is open."""


def free_ports(count: int, *, in_a_row: bool = False) -> list[int]:
    """Ports that nobody listens on, and that no test of any process is given as long as this one lives."""
    ports: list[int] = []
    for _ in range(10_000):
        first = random.choice(PORTS)
        if not in_a_row:
            ports += filter(_claim, [first])
        elif all(map(_claim, row := range(first, first + count))):
            ports += row
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


def _claim(port: int) -> bool:
    """Take a port for this process, which may not listen there all the time. The kernel gives it back when the process ends."""
    if port in _ours:
        return False
    if not _claims:
        # One file for all who test here, wherever each has its temporary files.
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
        file = Path(folder, f"amberblob-test-ports-{os.getuid()}")
        _claims.append(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        fcntl.lockf(_claims[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _ours.add(port)
    return _is_free(port)


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


# -- processes


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def environment() -> dict[str, str]:
    """Ours, without what would configure the nodes, and without certificates of authorities.

    aiohttp loads those when it is imported, a tenth of the time that a node takes to start. No node of the tests speaks TLS.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AMBERBLOB_")}
    return {**ours, "SSL_CERT_FILE": os.devnull}


def spawn(*arguments: str, output: Any, errors: Any = subprocess.STDOUT, code: Path = ROOT) -> subprocess.Popen[bytes]:
    """``amberblob <arguments>`` as a process that does not outlive this one. ``code``: the checkout that is run."""
    return subprocess.Popen(
        [sys.executable, "-m", "amberblob", *arguments],
        cwd=code,
        env={**environment(), "PYTHONPATH": str(code)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        preexec_fn=_die_with_parent,
    )


def run_serve(config: Path, *, timeout_s: float = DEADLINE_S) -> tuple[int, str]:
    """``amberblob serve`` that is expected to end by itself: its exit status and what it said."""
    process = spawn("serve", "--config", str(config), output=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"serve did not end within {timeout_s:g} s:\n{output.decode()}") from None
    return process.returncode, output.decode()


@dataclass
class Node:
    """One node: its folder, its ports, its process if it runs, and the checkout that it is started from."""

    name: str
    folder: Path
    http_port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None
    paused: bool = False
    code: Path = ROOT
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def write_config(self) -> None:
        """Put the settings into the file; change :attr:`settings` and call it again for a node configured otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(tomli_w.dumps(self.settings))


class Cluster:
    """Nodes 0 to ``nodes - 1``, over which the first routes are laid out. Nothing is started yet.

    ``replicas``: how many copies the cluster is to keep; as many as there are nodes, but three at most, if it is not said.
    """

    def __init__(
        self,
        *,
        nodes: int = 3,
        slot_count: int = 64,
        log_level: str = "info",
        secret: str = SECRET,
        limits: Mapping[str, float] | None = None,
        registry_url: str | None = None,
        replicas: int | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="amberblob-test-"))
        self.registry_folder = self.folder / "registry"
        self.registry_folder.mkdir()
        self.registry = self.registry_folder / "registry.sqlite3"
        self.slot_count = slot_count
        self._registry_url = registry_url or f"embedded://{self.registry}"
        self._bootstrap_nodes = [f"node-{index + 1}" for index in range(nodes)]
        self._replicas = min(3, nodes) if replicas is None else replicas
        self._secret, self._log_level, self._limits = secret, log_level, dict(limits or {})
        ports = free_ports(2 * nodes)
        self.nodes = [
            self._new_node(name, ports[2 * index], ports[2 * index + 1])
            for index, name in enumerate(self._bootstrap_nodes)
        ]
        LIVE.add(self)

    def add_node(self, name: str | None = None) -> int:
        """A further node, of the same registry and cluster, with a disk of its own; its index. It is not started yet."""
        index = len(self.nodes)
        self.nodes.append(self._new_node(name or f"node-{index + 1}", *free_ports(2)))
        return index

    def _new_node(self, name: str, http_port: int, peer_port: int) -> Node:
        node = Node(name, self.folder / name, http_port, peer_port)
        node.settings = {
            "node": {"id": name, "disk": "disk", "host": name},
            "http": {"listen": f"{HOST}:{http_port}"},
            "peer": {"listen": f"{HOST}:{peer_port}"},
            "cluster": {
                "name": "test",
                "secret": self._secret,
                "registry": self._registry_url,
                "bootstrap_nodes": self._bootstrap_nodes,
                "replicas": self._replicas,
                "slot_count": self.slot_count,
            },
            "storage": {"reserve": "16MiB"},
            "log": {"level": self._log_level, "format": "json"},
            "limits": dict(self._limits),
        }
        node.write_config()
        return node

    # -- one node

    def start(self, index: int) -> None:
        """Start a node that does not run; see :meth:`wait_ready`."""
        node = self.nodes[index]
        assert not node.running, f"{node.name} runs already"
        with open(node.log, "ab") as log:
            node.process = spawn("serve", "--config", str(node.config), output=log, code=node.code)
        node.paused = False

    def kill(self, index: int) -> None:
        """SIGKILL, and wait for the end."""
        node = self.nodes[index]
        assert node.process is not None
        node.process.kill()
        node.process.wait()

    def terminate(self, index: int) -> None:
        """SIGTERM, without waiting."""
        node = self.nodes[index]
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)

    def stop(self, index: int, *, timeout_s: float = DEADLINE_S) -> int:
        """SIGTERM, and wait for the end; the exit status."""
        self.terminate(index)
        process = self.nodes[index].process
        assert process is not None
        return process.wait(timeout_s)

    def pause(self, index: int) -> None:
        """SIGSTOP: its connections stay open, and nobody answers."""
        node = self.nodes[index]
        stand_still(node.pid)
        node.paused = True

    def resume(self, index: int) -> None:
        """SIGCONT."""
        node = self.nodes[index]
        os.kill(node.pid, signal.SIGCONT)
        node.paused = False

    def endpoint(self, index: int) -> str:
        return self.nodes[index].url

    @property
    def endpoints(self) -> list[str]:
        return [node.url for node in self.nodes]

    def rss(self, index: int) -> int:
        """Resident memory in bytes."""
        return self._memory(index, "VmRSS")

    def peak_rss(self, index: int) -> int:
        """The most resident memory since :meth:`reset_peak`, in bytes."""
        return self._memory(index, "VmHWM")

    def reset_peak(self, index: int) -> None:
        Path(f"/proc/{self.nodes[index].pid}/clear_refs").write_text("5")

    def _memory(self, index: int, key: str) -> int:
        status = Path(f"/proc/{self.nodes[index].pid}/status").read_text()
        match = re.search(rf"{key}:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * KIB

    def log_text(self, index: int) -> str:
        node = self.nodes[index]
        return node.log.read_text(errors="replace") if node.log.exists() else ""

    def log_lines(self, index: int) -> list[dict[str, Any]]:
        """What a node logged, but for lines that are just being written, or that a SIGKILL cut off."""
        entries = []
        for line in self.log_text(index).splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict)]

    # -- all nodes

    def start_all(self) -> None:
        for index, node in enumerate(self.nodes):
            if not node.running:
                self.start(index)

    async def wait_ready(self, *indices: int, deadline_s: float = 2 * DEADLINE_S) -> None:
        """Until these nodes (all, if none is named) say ready and see every node that runs."""
        async with aiohttp.ClientSession() as session:
            for index in indices or range(len(self.nodes)):
                await until(
                    lambda index=index: self._ready(session, index), f"node {index} ready", deadline_s=deadline_s
                )

    async def _ready(self, session: aiohttp.ClientSession, index: int) -> bool:
        node = self.nodes[index]
        if not node.running:
            raise AssertionError(f"{node.name} ended with {node.process and node.process.returncode}")
        try:
            timeout = aiohttp.ClientTimeout(total=10)
            async with session.get(f"{node.url}/readyz", timeout=timeout) as response:
                if response.status != 200:
                    return False
            async with session.get(f"{node.url}/cluster", timeout=timeout) as response:
                reachable = {entry["node"] for entry in (await response.json())["nodes"] if entry["reachable"]}
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return reachable >= {other.name for other in self.nodes if other.running and not other.paused}

    async def heal(self) -> None:
        """Every node runs and is ready, whatever a test left behind."""
        for index, node in enumerate(self.nodes):
            if node.running and node.paused:
                self.resume(index)
        self.start_all()
        await self.wait_ready()

    def close(self) -> None:
        """End every process and remove the folder."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        LIVE.discard(self)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tails(self, lines: int = 40) -> Iterator[tuple[str, str]]:
        for index, node in enumerate(self.nodes):
            tail = [line for line in self.log_text(index).splitlines() if '"event":"request"' not in line][-lines:]
            yield f"{node.name} ({'runs' if node.running else 'does not run'})", "\n".join(tail)

    # -- the registry, if it is embedded

    @property
    def registry_away(self) -> Path:
        return self.folder / "registry-is-away"

    def take_registry_away(self) -> None:
        """The folder is gone: whoever asks gets an error at once. Nobody is in the middle of a transaction."""
        lock = self.hang_registry()
        try:
            os.rename(self.registry_folder, self.registry_away)
        finally:
            lock.rollback()
            lock.close()

    def bring_registry_back(self) -> None:
        if self.registry_away.exists():
            os.rename(self.registry_away, self.registry_folder)

    def hang_registry(self) -> sqlite3.Connection:
        """Whoever asks waits, until the connection that is returned is closed."""
        lock = sqlite3.connect(self.registry, timeout=DEADLINE_S, isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN EXCLUSIVE")
        return lock

    # -- disks

    def slot_folder(self, index: int, path: str) -> Path:
        """Where a node keeps the slot of an object's path."""
        slot = int.from_bytes(blake3(path.encode()).digest(8), "big") % self.slot_count
        return self.nodes[index].disk / "slots" / str(slot)

    def chunk_files(self, index: int, path: str, blob_id: str) -> list[Path]:
        folder = self.slot_folder(index, path) / "blobs" / blob_id / "chunks"
        return sorted(file for file in found(folder, "*") if re.fullmatch("[0-9a-f]{64}", file.name))

    def staged(self) -> list[Path]:
        """Whatever lies in a staging folder of any node."""
        return [entry for node in self.nodes for entry in found(node.disk, "slots/*/staging/*")]

    def disk_bytes(self, index: int) -> int:
        """What the blobs and the databases of a node's slots take. The node may remove folders meanwhile."""
        folders = os.walk(self.nodes[index].disk / "slots")
        return sum(_size_of(Path(folder, name)) for folder, _, names in folders for name in names)

    def blob_folders(self) -> set[Path]:
        return {entry for node in self.nodes for entry in found(node.disk, "slots/*/blobs/*")}

    def quarantined(self, index: int) -> list[Path]:
        return found(self.nodes[index].disk / "quarantine", "*")


def found(folder: Path, pattern: str) -> list[Path]:
    """What matches a glob. Nodes may remove folders meanwhile, which a glob takes for an error: then it looks again."""
    while True:
        try:
            return list(folder.glob(pattern))
        except FileNotFoundError:
            continue


def is_sound(file: Path) -> bool:
    """Whether a chunk is there, with the bytes that its name says. It may be taken away or replaced meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return etag_of(file.read_bytes()) == file.name
    return False


def _size_of(file: Path) -> int:
    """In bytes; nothing of a folder, or of what was removed meanwhile."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0


# -- speaking HTTP


@dataclass(frozen=True)
class Answer:
    """One answer, read to its end."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def version(self) -> int:
        return int(self.headers["X-Amber-Version"])

    @property
    def etag(self) -> str:
        return self.headers["ETag"].strip('"')

    @property
    def blob_id(self) -> str:
        return self.headers["X-Amber-Blob-Id"]

    @property
    def problem(self) -> str:
        """The short code of an error."""
        return str(self.json["type"])


def check_answer(answer: Answer, *, head: bool = False, older: bool = False) -> Answer:
    """What api.md says of every answer and of every error. ``older``: of a node of a version that said less."""
    request_id = answer.headers.get("X-Amber-Request-Id")
    assert request_id, f"no X-Amber-Request-Id: {answer}"
    if answer.status == 503:
        assert int(answer.headers["Retry-After"]) >= 0
    code = answer.headers.get("X-Amber-Error")
    assert (code is None) == (answer.status < 400) or older, answer
    if answer.status >= 400 and not head:
        assert answer.headers["Content-Type"].split(";")[0] == "application/problem+json", answer
        problem = answer.json
        assert problem["status"] == answer.status, problem
        assert problem["request_id"] == request_id, problem
        for member in ("type", "title", "detail"):
            assert isinstance(problem[member], str) and problem[member], problem
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", problem["type"]), problem
        assert code == problem["type"] or older, answer
    return answer


def object_url(path: str, query: str = "") -> str:
    """The request target of an object."""
    return "/objects/" + quote(path, safe="/") + (f"?{query}" if query else "")


class Api:
    """Requests to the nodes of a cluster, to the next one each time unless one is named. Checks every answer."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self._session = session
        self._turn = itertools.count()
        self.nodes = list(range(len(cluster.nodes)))
        """Which nodes take turns."""
        self.patience_s = 0.0
        """For so long an unexpected 503 or 504 is met as users do: with the same request once more, a write under its write id, so
        that it is applied once."""

    async def __call__(
        self,
        method: str,
        target: str,
        *,
        node: int | None = None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        timeout_s: float = 2 * DEADLINE_S,
        expect100: bool = False,
    ) -> Answer:
        """One request; ``target`` is sent as it stands."""
        if node is None:
            node = self.nodes[next(self._turn) % len(self.nodes)]
        async with self._session.request(
            method,
            URL(self.cluster.endpoint(node) + target, encoded=True),
            headers=headers,
            data=data,
            skip_auto_headers=["Content-Type"],
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
            expect100=expect100,
        ) as response:
            body = await response.read()
            answer = Answer(response.status, CIMultiDict(response.headers), body)
            return check_answer(answer, head=method == "HEAD", older=self.cluster.nodes[node].code != ROOT)

    # The usual requests, with the usual answer expected.

    async def put(self, path: str, data: Any = b"", *, expect: int = 201, query: str = "", **options: Any) -> Answer:
        return await self._expect(expect, "PUT", object_url(path, query), data=data, **options)

    async def get(self, path: str, *, expect: int = 200, query: str = "", **options: Any) -> Answer:
        return await self._expect(expect, "GET", object_url(path, query), **options)

    async def head(self, path: str, *, expect: int = 200, query: str = "", **options: Any) -> Answer:
        return await self._expect(expect, "HEAD", object_url(path, query), **options)

    async def delete(self, path: str, *, expect: int = 204, query: str = "", **options: Any) -> Answer:
        return await self._expect(expect, "DELETE", object_url(path, query), **options)

    async def restore(self, path: str, version: int | None = None, *, expect: int = 200, **options: Any) -> Answer:
        query = "restore" if version is None else f"restore={version}"
        return await self._expect(expect, "POST", object_url(path, query), **options)

    async def versions(self, path: str, **options: Any) -> list[dict[str, Any]]:
        answer = await self._expect(200, "GET", object_url(path, "versions"), **options)
        return list(answer.json["versions"])

    async def page(self, *, expect: int = 200, node: int | None = None, **query: Any) -> Any:
        text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
        return (await self._expect(expect, "GET", f"/objects?{text}", node=node)).json

    async def list_all(self, **query: Any) -> tuple[list[dict[str, Any]], list[str], int]:
        """Every page: objects, prefixes, and how many pages it took."""
        objects: list[dict[str, Any]] = []
        prefixes: list[str] = []
        for pages in itertools.count(1):
            page = await self.page(**query)
            objects += page["objects"]
            prefixes += page["prefixes"]
            if "cursor" not in page:
                return objects, prefixes, pages
            query["cursor"] = page["cursor"]
        raise AssertionError

    async def absent(self, path: str) -> None:
        """Through every node: no such object, and no version of it."""
        for node in self.nodes:
            await self.get(path, expect=404, node=node)
            await self.get(path, query="versions", expect=404, node=node)

    async def decided(self, path: str, data: bytes, *, headers: Mapping[str, str], node: int) -> Answer:
        """A conditional PUT, repeated as users do while a busy machine has no time for it: 201 or 412, if the cluster is well.

        ``data`` is nobody else's: a 412 that tells of it after a 504 means that the try without an answer was the one that was applied.
        """
        doubtful = False
        end = time.monotonic() + 2 * DEADLINE_S
        while True:
            answer = await self("PUT", object_url(path), node=node, data=data, headers=headers)
            if answer.status not in (503, 504) or time.monotonic() > end:
                break
            doubtful |= answer.status == 504
            await asyncio.sleep(random.uniform(0.1, 0.5))
        if doubtful and answer.status == 412 and answer.headers.get("ETag", "").strip('"') == etag_of(data):
            return replace(answer, status=201)
        return answer

    async def _expect(self, status: int, method: str, target: str, **options: Any) -> Answer:
        end = time.monotonic() + self.patience_s
        if self.patience_s and method not in ("GET", "HEAD"):
            options["headers"] = {"X-Amber-Write-Id": secrets.token_hex(16), **(options.get("headers") or {})}
        answer = await self(method, target, **options)
        while answer.status in {503, 504} - {status} and time.monotonic() < end:
            await asyncio.sleep(10 * POLL_S)
            answer = await self(method, target, **options)
        assert answer.status == status, f"{method} {target}: {answer.status}, not {status}: {answer.body[:600]!r}"
        return answer


@contextlib.asynccontextmanager
async def api_of(cluster: Cluster) -> AsyncIterator[Api]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        # aiohttp repeats a broken PUT or DELETE in silence, which would count an answer for another request's.
        assert session._retry_connection, "aiohttp has changed: does it still repeat requests?"
        session._retry_connection = False
        yield Api(cluster, session)


async def raw(cluster: Cluster, node: int, request: bytes, *, half_close: bool = False) -> Answer | None:
    """Send bytes as they are; the one answer, or None if the connection ends without one."""
    reader, writer = await asyncio.open_connection(HOST, cluster.nodes[node].http_port)
    try:
        with contextlib.suppress(OSError):  # "not connected", too
            writer.write(request)
            await writer.drain()
            if half_close:
                writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            return await read_answer(reader)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer | None:
    """The next answer on a connection, checked."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    lines = head.decode("latin-1").split("\r\n")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines[1:]:
        if line:
            name, _, value = line.partition(":")
            headers.add(name, value.strip())
    body = await reader.readexactly(int(headers.get("Content-Length", 0)))
    return check_answer(Answer(int(lines[0].split()[1]), headers, body))


def name_of(nodeid: str) -> str:
    """An object's name for the test with this id, fit for a URL."""
    return f"{re.sub('[^a-z0-9]+', '-', nodeid.rpartition('::')[2])}/{etag_of(nodeid.encode())[:8]}"


def etag_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def content(seed: int | str, size: int) -> bytes:
    """Bytes that look random and can be made again."""
    return blake3(str(seed).encode()).digest(size)


def logs_for(report: Any) -> None:
    """Add the tail of every live cluster's logs to the report of a failed test."""
    if report.failed:
        for cluster in list(LIVE):
            for name, tail in cluster.log_tails():
                report.sections.append((f"log of {name} in {cluster.folder.name}", tail))
