"""``amberblob`` with timeouts that a test can wait for. Nothing else differs from the real program.

Not imported by tests: run as a program by :class:`tests.fuzz.kit.HurriedCluster`.
"""

from __future__ import annotations

import node.http.app
import node.http.connection
import node.transport.connection
import node.transport.server
from amberblob.cli import main

# Still longer than a busy machine may keep a client, or the node itself, from going on.
HEAD_S = 3.0
IDLE_S = 4.0
WRITE_STALL_S = 3.0
UNREAD_BODY_S = 2.0
BODY_STALL_S = 3.0
HANDSHAKE_S = 3.0
PING_INTERVAL_S = 1.0


def hurry() -> None:
    """Shorten every wait for a client or a stranger."""
    timeouts = node.http.connection.Timeouts.__init__.__kwdefaults__
    assert timeouts is not None and set(timeouts) == {"head_s", "idle_s", "write_stall_s", "unread_body_s"}
    timeouts.update(head_s=HEAD_S, idle_s=IDLE_S, write_stall_s=WRITE_STALL_S, unread_body_s=UNREAD_BODY_S)
    defaults = node.http.app.build_app.__kwdefaults__
    assert defaults is not None and "body_stall_s" in defaults
    defaults["body_stall_s"] = BODY_STALL_S
    assert hasattr(node.transport.connection, "HANDSHAKE_TIMEOUT_S")
    vars(node.transport.connection)["HANDSHAKE_TIMEOUT_S"] = HANDSHAKE_S
    options = node.transport.server.PeerServer.__init__.__kwdefaults__
    assert options is not None and "ping_interval_s" in options
    options["ping_interval_s"] = PING_INTERVAL_S


if __name__ == "__main__":
    hurry()
    main()
