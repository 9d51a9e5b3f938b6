"""Every test here that asks for ``target`` runs on every kind of target. A new one adds a way to open it.

Ceph's radosgw is one of them only where AMBERBLOB_TEST_CEPH is set (``make test-ceph``).
"""

import os
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from amberblob.clock import SystemClock
from amberblob.config import ArchiveSection
from archive.targets.factory import open_target
from archive.targets.folder import prepare_folder
from archive.targets.memory import MemoryTarget
from archive.traffic import Traffic
from tests.archive_proxy import bad_days
from tests.archive_servers import CEPH_ASKED, ceph_server, moto_server

MIB = 1024 * 1024
PART_BYTES = 5 * MIB
"""The least that S3 takes."""

S3_KINDS = ["moto", "ceph"] if os.environ.get(CEPH_ASKED) else ["moto"]
KINDS = ["memory", "folder", *S3_KINDS]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Who is cancelled looks when everything is taken back, also on a machine that stands still."""
    monkeypatch.setattr("archive.targets.s3upload._CLEANING_S", 60.0)
    monkeypatch.setattr("archive.targets.strands.CANCELLED_S", 60.0)


@pytest.fixture(scope="session")
def moto():
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def ceph():
    with ceph_server() as server:
        yield server


@pytest.fixture
def s3_server(request):
    """Gives the S3 server of that name."""
    return lambda kind: request.getfixturevalue(kind)


@pytest.fixture
def section(request, s3_server):
    """Gives a configuration for a place of its own on the S3 server of that name."""

    def make(kind: str, **changes: Any):
        server = s3_server(kind)
        changes = {"part_size": PART_BYTES, **changes}
        changes = {"target": f"s3://{server.bucket}/{uuid.uuid4().hex}", **changes}
        return server.section(**changes)

    return make


@dataclass
class Opened:
    """A target, and what it counts."""

    target: Any
    traffic: Traffic
    kind: str


@pytest.fixture(params=KINDS)
async def opened(request, tmp_path, section):
    traffic = Traffic(SystemClock())
    match request.param:
        case "memory":
            target: Any = MemoryTarget(traffic=traffic)
        case "folder":
            prepare_folder(tmp_path / "archive")
            target = open_target(ArchiveSection(target=(tmp_path / "archive").as_uri()), traffic)
        case kind:
            target = open_target(section(kind), traffic)
    yield Opened(target, traffic, request.param)
    await target.close()


@pytest.fixture
def target(opened):
    return opened.target


@pytest.fixture
def proxy(moto):
    """Bad days before moto."""
    with bad_days(moto) as running:
        yield running
