"""AmberBlob: a distributed, replicated, versioned blob store.

What a user imports::

    from amberblob import Client

    with Client("http://127.0.0.1:7700") as client:
        client.put("hello.txt", b"hello")
        print(client.get_bytes("hello.txt"))

``AsyncClient`` is the same for asyncio, ``errors`` the tree of what can go wrong. The names are loaded when they are
first used, so that ``import amberblob`` costs next to nothing; the server's packages are never imported from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amberblob import errors as errors
    from amberblob.client import AsyncClient as AsyncClient
    from amberblob.client import Client as Client
    from amberblob.client import ObjectInfo as ObjectInfo

__all__ = ["AsyncClient", "Client", "ObjectInfo", "errors", "version"]

_FROM_CLIENT = frozenset({"AsyncClient", "Client", "ObjectInfo"})


def version() -> str:
    """The installed version of AmberBlob."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("amberblob")
    except PackageNotFoundError:
        return "0+unknown"


def __getattr__(name: str) -> Any:
    import importlib

    if name in _FROM_CLIENT:
        return getattr(importlib.import_module("amberblob.client"), name)
    if name == "errors":
        return importlib.import_module("amberblob.errors")
    raise AttributeError(f"module 'amberblob' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
