"""A registry by its URL. Each backend is imported only when it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from urllib.parse import urlsplit

from amberblob.clock import Clock, SystemClock
from amberblob.errors import ConfigError
from registry.interface import Registry

Opener = Callable[[str, Clock, bool], Registry]


def _embedded(url: str, clock: Clock, create: bool) -> Registry:
    from registry.embedded import EmbeddedRegistry, path_of_url

    return EmbeddedRegistry(path_of_url(url), clock=clock, create=create)


def _memory(url: str, clock: Clock, create: bool) -> Registry:
    from registry.memory import MemoryRegistry, shared_store

    return MemoryRegistry(shared_store(urlsplit(url).netloc), clock=clock)


def _etcd(url: str, clock: Clock, create: bool) -> Registry:
    from registry.etcd import etcd_registry

    return etcd_registry(url)


def _redis(url: str, clock: Clock, create: bool) -> Registry:
    from registry.redis import redis_registry

    return redis_registry(url)


_BACKENDS: dict[str, Opener] = {
    "embedded": _embedded,
    "memory": _memory,
    "etcd": _etcd,
    "redis": _redis,
    "rediss": _redis,
}
"""By URL scheme. A new backend adds its opener and a line here, and a line in the contract suite."""


def open_registry(url: str, *, clock: Clock | None = None, create: bool = True) -> Registry:
    """The registry that ``url`` names. Does no input or output yet: a registry that is down is met by its methods.

    Args:
        url: ``embedded:///absolute/path/registry.sqlite3`` (processes of one machine share the file), or
            ``memory://name`` (this process only), or a server: ``etcd://host:port,host2:port2``,
            ``redis://:password@host:port/db`` (``rediss://`` with TLS).
        clock: for lease expiry; the system's when None. Servers go by their own.
        create: whether a registry that does not exist may be made (embedded only). Pass False once the node belongs to a
            cluster, so that a lost registry is noticed and not replaced by an empty one.

    Raises:
        ConfigError: an unknown scheme, a malformed URL, or a package that its client needs is not installed.
    """
    scheme, separator, _ = url.partition("://")
    opener = _BACKENDS.get(scheme) if separator else None
    if opener is None:
        near = difflib.get_close_matches(scheme, _BACKENDS, n=1)
        hint = f" Did you mean {near[0]}://?" if near else ""
        known = ", ".join(f"{name}://" for name in sorted(_BACKENDS))
        given = f"{scheme}://…" if separator else "a word without ://"  # not the whole: it may hold a password
        raise ConfigError(f"[cluster] registry = {given}: no such kind of registry; there are {known}.{hint}")
    return opener(url, clock or SystemClock(), create)
