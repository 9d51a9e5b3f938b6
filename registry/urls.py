"""The parts of a registry's URL that servers have: addresses, user, password, options. Pure but for password files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from amberblob.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """``scheme://[user[:password]@]host[:port][,host…][/path][?option=value]``.

    Attributes:
        endpoints: host and port, in the order given; an IPv6 address without its brackets.
        path: without the slash before it.
    """

    scheme: str
    endpoints: tuple[tuple[str, int], ...]
    user: str
    password: str = field(repr=False)
    path: str
    options: dict[str, str]

    @property
    def where(self) -> str:
        """For messages: no user, no password."""
        return f"{self.scheme}://" + ",".join(address_of(*endpoint) for endpoint in self.endpoints)


def address_of(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_url(url: str, *, port: int, form: str, options: Collection[str]) -> ServerUrl:
    """Take a URL apart.

    Args:
        port: where none is given.
        form: how such a URL looks, for the message.
        options: the names that may be given. ``password_file`` is one for every server: a file whose first line it is.

    Raises:
        ConfigError: malformed. The message does not repeat the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        user_info, at, addresses = parts.netloc.rpartition("@")
        user, _, password = user_info.partition(":") if at else ("", "", "")
        endpoints = tuple(_endpoint(address, port) for address in addresses.split(","))
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise _malformed(str(error), form) from None
    unknown = given.keys() - {*options, "password_file"}
    if unknown or parts.fragment:
        raise _malformed(f"unknown option {min(unknown)!r}" if unknown else "a # that is not written as %23", form)
    password = unquote(password)
    file = given.pop("password_file", None)
    if file is not None:
        if password:
            raise _malformed("both a password and password_file", form)
        password = _first_line(Path(file))
    return ServerUrl(parts.scheme, endpoints, unquote(user), password, unquote(parts.path).lstrip("/"), given)


def _endpoint(address: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{address}")
    if not parts.hostname or parts.netloc != address or parts.port == 0:
        raise ValueError("not host or host:port between :// and /")
    return parts.hostname, parts.port or default_port


def _first_line(file: Path) -> str:
    try:
        return file.read_text().split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[cluster] registry: its password_file {file} cannot be read: {error}") from None


def _malformed(what: str, form: str) -> ConfigError:
    return ConfigError(f"[cluster] registry: {what}; wants {form}")
