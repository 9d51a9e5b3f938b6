"""Clients, databases and the rest share the open files."""

from __future__ import annotations

import resource

import pytest

from amberblob.openfiles import DATABASES_MAX, DATABASES_MIN, connections_max, databases_max


def allow(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, soft))


@pytest.mark.parametrize("soft", [200, 256, 300, 1000, 1024, 4096, 10_000, 65_536, 1 << 20])
def test_together_they_take_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    allow(monkeypatch, soft)
    connections, databases = connections_max(), databases_max()
    assert connections is not None
    # A database with its log, its index and a file that a transaction needs.
    others = soft - connections - 4 * databases
    assert others >= min(soft // 4, 512) and connections >= soft // 4
    assert DATABASES_MIN <= databases <= DATABASES_MAX


def test_most_of_many_are_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 65_536)
    assert (connections_max(), databases_max()) == (64_000, DATABASES_MAX)


def test_too_few_are_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 20)
    assert (connections_max(), databases_max()) == (16, DATABASES_MIN)


def test_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, resource.RLIM_INFINITY)
    assert (connections_max(), databases_max()) == (None, DATABASES_MAX)
