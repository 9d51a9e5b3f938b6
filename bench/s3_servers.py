"""An S3 server to archive to: radosgw where it is installed, else moto's, which is a stand-in and says so."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environment import ENVIRONMENT, HOST
from bench.rivals.common import NotInstalled, Processes, free_ports, listens
from bench.rivals.radosgw import RadosGateway

BUCKET = "bench"
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """A running server with an empty bucket :data:`BUCKET`.

    Attributes:
        title: what it is, for the tables.
        pids: of its processes.
    """

    title: str
    endpoint: str
    access_key: str
    secret_key: str
    pids: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        """For processes that find their credentials in it."""
        return {
            **ENVIRONMENT,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Start one in the folder; it ends with the context. Raises ClusterFailed."""
    try:
        gateway = RadosGateway(folder)
    except NotInstalled:
        with _moto(folder) as server:
            yield server
        return
    with gateway as store:
        server = S3(
            title=store.title,
            endpoint=gateway.endpoint,
            access_key=gateway.access_key,
            secret_key=gateway.secret_key,
            pids=tuple(store.pids),
        )
        _make_bucket(server)
        yield server


@contextmanager
def _moto(folder: Path) -> Iterator[S3]:
    processes, (port,) = Processes(folder), free_ports(1)
    try:
        processes.start("moto", [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)])
        processes.await_true("moto's server listens", lambda: listens(port), _START_TIMEOUT_S)
        server = S3(
            title="moto (a stand-in in Python, not a real S3)",
            endpoint=f"http://{HOST}:{port}",
            access_key=secrets.token_hex(8),
            secret_key=secrets.token_hex(8),
            pids=tuple(processes.pids),
        )
        _make_bucket(server)
        yield server
    finally:
        processes.stop()


def _make_bucket(server: S3) -> None:
    import boto3
    from botocore.config import Config

    client: Any = boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=BUCKET)
