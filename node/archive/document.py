"""What the bucket is told of the cluster itself."""

from __future__ import annotations

from archive.segments import FORMAT, ClusterDocument
from registry.routes import ClusterInfo


def document_of(info: ClusterInfo) -> ClusterDocument:
    """``cluster.json`` of a cluster."""
    return ClusterDocument(
        format=FORMAT,
        cluster=info.cluster_id,
        name=info.name,
        slot_count=info.slot_count,
        chunk_bytes=info.chunk_bytes,
        replicas=info.replicas,
        created_at_ms=info.created_at_ms,
    )
