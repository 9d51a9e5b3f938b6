"""Values for the tests of the registry."""

from __future__ import annotations

from registry.routes import NodeInfo


def info(name: str, disk: str = "") -> NodeInfo:
    """A node with a disk that is named after it."""
    return NodeInfo(
        node_id=name,
        disk_id=disk or f"disk-{name}",
        zone="z",
        host="",
        http_address=f"{name}:1",
        peer_address=f"{name}:2",
        capacity_bytes=100,
        version="0",
        started_at_ms=0,
    )
