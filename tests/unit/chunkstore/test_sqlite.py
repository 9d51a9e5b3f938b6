"""How databases are opened: what a new one begins as."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from chunkstore.schema import INDEX_MIGRATIONS, SLOT_MIGRATIONS
from chunkstore.sqlite import connect, migrate


def contents(connection: sqlite3.Connection) -> list[str]:
    return list(connection.iterdump())


@pytest.mark.parametrize("migrations", [SLOT_MIGRATIONS, INDEX_MIGRATIONS], ids=["slot", "index"])
def test_a_new_database_is_what_the_migrations_make_of_an_empty_one(tmp_path: Path, migrations: tuple[str, ...]):
    """It is copied; an older file is brought forward step by step, and must come to the same."""
    new = connect(tmp_path / "new", cache_kib=64, create=True)
    stepwise = connect(tmp_path / "stepwise", cache_kib=64, create=True)
    try:
        assert migrate(new, migrations) == 0
        for number in range(len(migrations)):
            assert migrate(stepwise, migrations[: number + 1]) == number
        assert contents(new) == contents(stepwise)
        for connection in (new, stepwise):
            assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations),)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert migrate(new, migrations) == len(migrations), "there is nothing left to do"
    finally:
        new.close()
        stepwise.close()
