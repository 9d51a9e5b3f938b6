"""Which client of S3 is used: another one when the credentials have changed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LOOK_AT_FILE_S = 1.0
_RENEW_S = 5.0
"""Refused keys are looked for anew so often at most, unless their file has changed."""


class Keys:
    """The client, as long as its credentials are good. Used by threads.

    Args:
        make: makes a client with the credentials of now.
        file: where they are, if in a file that was named.
    """

    def __init__(self, make: Callable[[], Any], file: Path | None) -> None:
        self._make = make
        self._file = file
        self._lock = threading.Lock()
        self._client: Any = None
        self._facts: object = None
        self._looked_s = float("-inf")
        self._renewed_s = float("-inf")

    def client(self) -> Any:
        """The client of now; another one when the credentials' file has changed."""
        with self._lock:
            if self._file is not None and time.monotonic() - self._looked_s > _LOOK_AT_FILE_S:
                self._looked_s = time.monotonic()
                facts = _facts(self._file)
                if facts != self._facts:
                    self._facts, self._client = facts, None
            if self._client is None:
                self._client = self._make()
            return self._client

    def renewed(self, refused: Any) -> Any:
        """Another client than the one that was refused; None: its keys are still the newest."""
        with self._lock:
            if self._client is not refused and self._client is not None:
                return self._client
            facts = _facts(self._file) if self._file is not None else None
            if facts == self._facts and time.monotonic() - self._renewed_s < _RENEW_S:
                return None
            self._facts, self._renewed_s = facts, time.monotonic()
            client = self._make()
            if _keys_of(client) == _keys_of(refused):
                return None
            self._client = client
            return client

    def close(self) -> None:
        """Let go of the client's connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _keys_of(client: Any) -> object:
    credentials = client._request_signer._credentials
    return credentials and tuple(credentials.get_frozen_credentials())


def _facts(file: Path) -> object:
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
