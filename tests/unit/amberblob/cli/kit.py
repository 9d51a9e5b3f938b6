"""What the tests of the commands share: a small server that stands in for a node, and a terminal."""

from __future__ import annotations

import http.server
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers by ``answer`` and ``json``; says nothing on stderr."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> None:
        """``length``: of the body that is spoken of, if that is not the one that is sent."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def json(self, document: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


@contextmanager
def standing_in(handler: type[Answering], monkeypatch: pytest.MonkeyPatch, **attributes: object) -> Iterator[str]:
    """Serve by the handler, which gets the attributes; commands go there. The URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), attributes))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in list(os.environ):
        if name.startswith("AMBERBLOB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AMBERBLOB_ENDPOINT", url)
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()


def run_on_terminal(arguments: list[str], *, columns: int) -> tuple[subprocess.CompletedProcess[bytes], bytes]:
    """Run Python with these arguments, its stderr a terminal; how it ended, and all that the terminal showed."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=theirs,
            stdin=subprocess.DEVNULL,
            timeout=100,
            env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
        )
        os.close(theirs)
        theirs = -1
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # how Linux says that the other end is closed
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    return done, shown
