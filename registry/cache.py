"""The last route table seen, kept beside the disk, so that a node starts and serves while the registry is down."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from amberblob.errors import RegistryUnavailable
from registry.routes import RouteTable, decode, encode, unknown_format

_log = structlog.get_logger(__name__)


def load_cache(path: Path) -> RouteTable | None:
    """The table in the file; None when there is none or it cannot be read or relied on (which is logged). Blocks briefly."""
    try:
        table = decode(path.read_bytes(), RouteTable, str(path))
        if (unknown := unknown_format(table.cluster)) is not None:
            raise RegistryUnavailable(unknown)
        return table
    except FileNotFoundError:
        return None
    except (OSError, RegistryUnavailable) as error:
        _log.warning("route cache unreadable, going on without it", path=str(path), error=str(error))
        return None


def save_cache(path: Path, table: RouteTable) -> None:
    """Replace the file by ``table``, whole or not at all, durable on return. Blocks: call it in a thread.

    Raises:
        OSError: the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(encode(table))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
