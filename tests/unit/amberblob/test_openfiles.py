"""Clients, databases and the rest share the open files."""

from __future__ import annotations

import resource

import pytest

from amberblob.openfiles import DATABASES_MAX, DATABASES_MIN, connections_max, databases_max, strangers_max, uploads_max


def allow(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, soft))


@pytest.mark.parametrize("wanted", [16, 256, 4096])
@pytest.mark.parametrize("soft", [200, 256, 300, 1000, 1024, 4096, 10_000, 65_536, 1 << 20])
def test_together_they_take_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch, soft: int, wanted: int) -> None:
    allow(monkeypatch, soft)
    connections, databases, uploads, strangers = (
        connections_max(wanted),
        databases_max(wanted),
        uploads_max(),
        strangers_max(),
    )
    assert connections is not None and uploads is not None and strangers is not None
    # A database has its log, its index and a file that a transaction needs.
    left = soft - connections - 4 * databases - uploads - strangers
    assert left >= min(soft // 16, 512) and connections >= soft // 4 - 1
    assert min(wanted, DATABASES_MIN) <= databases <= wanted


def test_most_of_many_are_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 65_536)
    assert (connections_max(), databases_max(), uploads_max(), strangers_max()) == (59_392, DATABASES_MAX, 4096, 512)


def test_too_few_are_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 20)
    assert (connections_max(), databases_max(), uploads_max(), strangers_max()) == (16, DATABASES_MIN, 2, 1)


def test_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, resource.RLIM_INFINITY)
    assert (connections_max(), databases_max(), uploads_max(), strangers_max()) == (None, DATABASES_MAX, None, None)
