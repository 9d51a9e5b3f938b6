"""S3 servers for tests, on free ports, with a fresh bucket each time: moto's in a thread of this process, and a whole small Ceph.

``with moto_server() as s3: target = open_target(s3.section(), ...)``. Real nodes use the same section: its credentials are in a file.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from amberblob.config import ArchiveSection

HOST = "127.0.0.1"
REGION = "us-east-1"
ACCESS_KEY = "AKIDOFTHETESTS"
SECRET_KEY = "secret-key-of-the-tests"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running S3 server and an empty bucket there.

    Attributes:
        endpoint: ``http://host:port``.
        bucket: exists.
        credentials_file: the keys, as ``[archive] credentials_file`` wants them.
    """

    endpoint: str
    bucket: str
    credentials_file: Path
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION

    @property
    def url(self) -> str:
        """What ``[archive] target`` may be."""
        return f"s3://{self.bucket}/archive"

    def section(self, **changes: Any) -> ArchiveSection:
        """A configuration that works here; ``changes`` are further keys of it."""
        given: dict[str, Any] = {
            "target": self.url,
            "endpoint": self.endpoint,
            "region": self.region,
            "addressing": "path",
            "credentials_file": self.credentials_file,
            "timeout_s": 30.0,
            **changes,
        }
        return ArchiveSection(**given)

    def client(self) -> Any:
        """A plain boto3 client, to look at the bucket and to do what somebody else might do to it."""
        return _client(self.endpoint, self.region, self.access_key, self.secret_key)

    def make_bucket(self, name: str = "") -> str:
        """One more bucket; its name."""
        name = name or f"bucket-{uuid.uuid4().hex}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, prefix: str = "") -> list[str]:
        """All keys of the bucket that begin with ``prefix``, ascending."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]


@functools.cache
def _client(endpoint: str, region: str, access_key: str, secret_key: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
        ),
    )


def write_credentials(path: Path, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, token: str = "") -> Path:
    """A file as ``~/.aws/credentials``."""
    lines = ["[default]", f"aws_access_key_id = {access_key}", f"aws_secret_access_key = {secret_key}"]
    if token:
        lines.append(f"aws_session_token = {token}")
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto's S3 behind a real HTTP server. Half a second to start, for the import; make it module-scoped all the same."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="amberblob-moto-") as folder:
            port = server.get_host_and_port()[1]
            s3 = S3Server(
                endpoint=f"http://{HOST}:{port}",
                bucket=f"bucket-{uuid.uuid4().hex}",
                credentials_file=write_credentials(Path(folder) / "credentials"),
            )
            s3.make_bucket(s3.bucket)
            yield s3
    finally:
        server.stop()


CEPH_ASKED = "AMBERBLOB_TEST_CEPH"
"""Tests on a real radosgw run only where this is set (``make test-ceph``): it takes a minute to start."""


@contextlib.contextmanager
def ceph_server() -> Iterator[S3Server]:
    """Debian's radosgw before a small Ceph of its own. The test skips when Ceph is not installed."""
    import pytest

    from bench.rivals.common import NotInstalled
    from bench.rivals.radosgw import RadosGateway

    with tempfile.TemporaryDirectory(prefix="amberblob-ceph-") as folder:
        try:
            gateway = RadosGateway(Path(folder))
        except NotInstalled as error:
            pytest.skip(str(error))
        with gateway:
            s3 = S3Server(
                endpoint=gateway.endpoint,
                bucket=f"bucket-{uuid.uuid4().hex}",
                credentials_file=write_credentials(
                    Path(folder) / "credentials", gateway.access_key, gateway.secret_key
                ),
                access_key=gateway.access_key,
                secret_key=gateway.secret_key,
            )
            s3.make_bucket(s3.bucket)
            yield s3
