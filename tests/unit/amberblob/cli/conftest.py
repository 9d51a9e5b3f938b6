"""A stand-in for the daemon, so that `amberblob dev` is tested by itself: real processes, no store."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.cluster.harness import free_ports

FAKE_NODE = """
import http.server, os, signal, sys, threading, time
from amberblob.config import NodeConfig


def run(config: NodeConfig) -> int:
    mode = os.environ.get("FAKE_NODE_" + config.node.id.replace("-", "_").upper(), "")
    print("fake node", config.node.id, "starts", flush=True)
    if mode == "dies":
        print("the disk is on fire", flush=True)
        return 3
    config.node.disk.mkdir(parents=True, exist_ok=True)
    assert len(config.cluster.secret.reveal()) >= 16

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        allow_reuse_address = True

    host, _, port = config.http.listen.rpartition(":")
    server = Server((host, int(port)), Handler)
    stop = threading.Event()
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stop.wait()
    print("fake node", config.node.id, "stopped cleanly", flush=True)
    return 0
"""


@pytest.fixture
def fake_node(tmp_path: Path) -> dict[str, str]:
    """The environment in which ``amberblob serve`` runs the stand-in."""
    package = tmp_path / "fake" / "node"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(textwrap.dedent(FAKE_NODE))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMBERBLOB_")}
    # The safe path keeps the current folder, and the real daemon in it, from going before the stand-in.
    return {**environment, "PYTHONPATH": f"{package.parent}:{Path(__file__).parents[4]}", "PYTHONSAFEPATH": "1"}


@pytest.fixture
def port() -> int:
    """The first of three neighbouring free ports, that no other test is given: not even while their node is down."""
    return free_ports(3, in_a_row=True)[0]
