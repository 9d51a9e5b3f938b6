"""How a check says what is wrong."""

from __future__ import annotations

from typing import Any, Protocol

from amberblob.errors import ConfigError


class Complaint(Protocol):
    """Makes the error about a key's value; ``problem`` says more than what the key wants in general."""

    def __call__(self, section: str, key: str, value: Any, problem: str = "") -> ConfigError: ...
