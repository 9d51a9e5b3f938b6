"""Bad days for S3 in tests: a proxy before a server, that answers some requests otherwise.

``with bad_days(s3) as proxy: proxy.add("GET", "*/packs/*", status(503, "SlowDown"), times=2)``. What no fault fits goes through.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.archive_servers import HOST, S3Server

_HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


@dataclass(kw_only=True, eq=False)
class Bad:
    """What goes wrong with one request.

    Attributes:
        status, code: this answer instead of the server's; 0: the server's.
        headers: sent as well, or instead.
        cut_after: of the answer's body so many bytes come, and then the connection ends.
        stall_after: so many bytes come, and then nothing more until the proxy ends.
        lose: the server does it, and the connection is reset instead of an answer.
        turn: bits of this byte of the answer's body are turned.
    """

    status: int = 0
    code: str = ""
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    lose: bool = False
    turn: int | None = None
    region: str = ""


@dataclass(eq=False)
class Rule:
    """Which requests, and how many of them; ``met``: so many so far."""

    method: str
    path: str
    bad: Bad
    times: int
    met: int = 0


def status(number: int, code: str = "", message: str = "", **headers: str) -> Bad:
    """An error as S3 says it."""
    return Bad(status=number, code=code, message=message, headers={k.replace("_", "-"): v for k, v in headers.items()})


class Proxy:
    """A running proxy. ``requests`` has what came: method, path with its query, and headers, all in order; ``connections``: from where."""

    def __init__(self, upstream: S3Server) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.connections: set[tuple[str, int]] = set()
        self.ended = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}"

    @property
    def s3(self) -> S3Server:
        """The server, seen through the proxy."""
        return replace(self.upstream, endpoint=self.endpoint)

    def add(self, method: str, path: str, bad: Bad, times: int = 1) -> Rule:
        """From now on, so many requests of that method (``*``: any) whose path and query fit the pattern (unquoted, ``*`` and ``?``)."""
        rule = Rule(method, path, bad, times)
        with self._lock:
            self.rules.append(rule)
        return rule

    def heal(self) -> None:
        """No more bad things."""
        with self._lock:
            self.rules.clear()

    def count(self, method: str, path: str = "*") -> int:
        """How many requests of that kind came."""
        with self._lock:
            return sum(each == method and fnmatchcase(unquote(where), path) for each, where, _ in self.requests)

    def match(self, method: str, path: str, headers: dict[str, str]) -> Bad | None:
        with self._lock:
            self.requests.append((method, path, headers))
            for rule in self.rules:
                if rule.method in ("*", method) and rule.met < rule.times and fnmatchcase(unquote(path), rule.path):
                    rule.met += 1
                    return rule.bad
        return None

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    """Nobody waits a second for another try to connect."""


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        self.owner.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bad = self.owner.match(self.command, self.path, dict(self.headers.items())) or Bad()
        if bad.status:
            return self._say(bad)
        answer, content = self._forward(body)
        if bad.lose:
            return self._reset()
        if bad.turn is not None:
            content = content[: bad.turn] + bytes([content[bad.turn] ^ 255]) + content[bad.turn + 1 :]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP and name.lower() not in {each.lower() for each in bad.headers}:
                self.send_header(name, value)
        for name, value in bad.headers.items():
            self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if bad.cut_after is not None:
            self.wfile.write(content[: bad.cut_after])
            self.close_connection = True
            return
        if bad.stall_after is not None:
            self.wfile.write(content[: bad.stall_after])
            self.wfile.flush()
            self.owner.ended.wait(60)
            return self._reset()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        where = urlsplit(self.owner.upstream.endpoint)
        connection = http.client.HTTPConnection(where.hostname or HOST, where.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _say(self, bad: Bad) -> None:
        region = f"<Region>{bad.region}</Region>" if bad.region else ""
        text = f"<Error><Code>{bad.code}</Code><Message>{bad.message}</Message>{region}</Error>" if bad.code else ""
        content = b"" if self.command == "HEAD" else text.encode()
        self.send_response(bad.status)
        for name, value in bad.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        """As a connection that breaks: the other side sees a reset, not an end."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def bad_days(s3: S3Server) -> Iterator[Proxy]:
    """A proxy before that server."""
    proxy = Proxy(s3)
    try:
        yield proxy
    finally:
        proxy.close()
