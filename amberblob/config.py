"""A node's configuration: a TOML file, overridden key by key from the environment.

``[cluster] replicas`` is ``AMBERBLOB_CLUSTER_REPLICAS`` there, and so on for every key; lists are separated by
commas. Secrets can be files (``secret_file``, ``token_file``). Relative paths count from the configuration file's
folder. Every mistake is a :class:`~amberblob.errors.ConfigError` that tells where, what was seen, and what is wanted.

``deploy/node.example.toml`` shows every key.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import tomli_w
from msgspec import Meta, Struct

from amberblob.errors import ConfigError
from amberblob.ids import valid_node_id
from amberblob.limits import (
    CHUNK_BYTES_DEFAULT,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    GIB,
    KIB,
    MIB,
    SLOT_COUNT_DEFAULT,
    SLOT_COUNT_MAX,
)

ENVIRONMENT_PREFIX = "AMBERBLOB_"
SECRET_CHARS_MIN = 16
REPLICAS_MAX = 9
RESERVE_BYTES_MIN = 16 * MIB

_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024 * GIB}
_UNITS |= {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_SIZE = re.compile(r"\A([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\Z")
_REGISTRY_URL = re.compile(r"\A[a-z][a-z0-9+.-]*://\S+\Z")
# Kubernetes puts such variables beside a service that happens to be called amberblob-http or the like.
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)\Z")
_WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::"})


class Secret:
    """A text that does not show itself in logs and tracebacks. False when empty."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"


class SizeBytes(int):
    """A number of bytes; in the configuration an integer or a text as ``8MiB``."""


def parse_size(text: str) -> int:
    """Bytes of ``8MiB``, ``64 KiB``, ``1.5GB`` (decimal) or ``4096``.

    Raises:
        ValueError: it is none of these, or no whole number of bytes.
    """
    match = _SIZE.match(text.strip())
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size")
    size_bytes = Fraction(match[1]) * factor
    if size_bytes.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    return size_bytes.numerator


def format_size(size_bytes: int) -> str:
    """The shortest exact text that :func:`parse_size` reads back."""
    for unit, factor in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ValueError: it is neither, or the port is not 1 to 65535.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets")
    if not separator or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text!r} is not host:port with a port from 1 to 65535")
    if any(character.isspace() or character in "/@" for character in host):
        raise ValueError(f"{text!r}: the host is a name or an address, nothing more")
    return host, int(port)


# What each key wants is told by its description; it ends every message about the key.
_Text = Annotated[str, Meta(description="a text")]
_Label = Annotated[str, Meta(max_length=255, description="a label of at most 255 characters")]
_NodeId = Annotated[str, Meta(description="1 to 63 lower-case letters, digits, dots and hyphens")]
_Address = Annotated[str, Meta(description="host:port, for example 127.0.0.1:7700")]
_Advertised = Annotated[str, Meta(description="host:port that others reach this node by; empty: as listen")]
_Folder = Annotated[Path, Meta(description="a folder")]
_File = Annotated[Path | None, Meta(description="a file that holds nothing else")]
_Quorum = Annotated[int, Meta(ge=0, description="0 for the majority, or a number from the majority to replicas")]
_Seconds = Annotated[float, Meta(gt=0, le=3600, description="seconds, more than 0, at most 3600")]


class NodeSection(Struct, frozen=True, kw_only=True):
    """``[node]``: who this node is. ``host`` is a label: two nodes with one label are on one machine."""

    id: _NodeId
    disk: _Folder
    zone: _Label = "default"
    host: _Label = ""


class HttpSection(Struct, frozen=True, kw_only=True):
    """``[http]``: the public face. An empty token lets everybody in."""

    listen: _Address = "127.0.0.1:7700"
    advertise: _Advertised = ""
    token: Annotated[Secret, Meta(description="a text; empty lets everybody in")] = Secret()
    token_file: _File = None

    @property
    def advertised(self) -> str:
        """Where clients reach this node, ``host:port``."""
        return self.advertise or self.listen


class PeerSection(Struct, frozen=True, kw_only=True):
    """``[peer]``: the port for the other nodes."""

    listen: _Address = "127.0.0.1:7800"
    advertise: _Advertised = ""

    @property
    def advertised(self) -> str:
        """Where the other nodes reach this one, ``host:port``."""
        return self.advertise or self.listen


class ClusterSection(Struct, frozen=True, kw_only=True):
    """``[cluster]``: what all nodes of a cluster have alike."""

    name: _NodeId = "amberblob"
    secret: Annotated[Secret, Meta(description=f"at least {SECRET_CHARS_MIN} characters, alike on every node")] = (
        Secret()
    )
    secret_file: _File = None
    registry: Annotated[str, Meta(description="a URL, for example embedded:///var/lib/amberblob/registry.sqlite3")]
    bootstrap_nodes: Annotated[
        tuple[str, ...], Meta(description="the ids of the nodes that the cluster begins with")
    ] = ()
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX, description=f"a number from 1 to {REPLICAS_MAX}")] = 3
    slot_count: Annotated[
        int, Meta(ge=1, le=SLOT_COUNT_MAX, description=f"a power of two, at most {SLOT_COUNT_MAX}")
    ] = SLOT_COUNT_DEFAULT
    write_quorum: _Quorum = 0
    read_quorum: _Quorum = 0

    @property
    def majority(self) -> int:
        """The least number of replicas of which any two choices overlap."""
        return self.replicas // 2 + 1

    @property
    def effective_write_quorum(self) -> int:
        """Replicas that must have a write before it is acknowledged."""
        return self.write_quorum or self.majority

    @property
    def effective_read_quorum(self) -> int:
        """Replicas that a strong read asks."""
        return self.read_quorum or self.majority


class StorageSection(Struct, frozen=True, kw_only=True):
    """``[storage]``: sizes in bytes. Below ``reserve`` of free space new bytes are refused."""

    chunk_size: Annotated[SizeBytes, Meta(description="a size from 64KiB to 64MiB")] = SizeBytes(CHUNK_BYTES_DEFAULT)
    reserve: Annotated[SizeBytes, Meta(description="a size of at least 16MiB")] = SizeBytes(256 * MIB)
    max_open_slots: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX, description="how many slot databases stay open")] = 256


class LogSection(Struct, frozen=True, kw_only=True):
    """``[log]``: ``auto`` is console on a terminal and json elsewhere."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="one of debug, info, warning, error")
    ] = "info"
    format: Annotated[Literal["json", "console", "auto"], Meta(description="one of json, console, auto")] = "auto"


class LimitsSection(Struct, frozen=True, kw_only=True):
    """``[limits]``: deadlines in seconds, and how much may go on at once.

    Attributes:
        request_timeout_s: one request of a client, without the time that its body takes to arrive.
        peer_timeout_s: one answer of a peer.
        shutdown_timeout_s: how long requests under way may take to end when the node stops.
        requests_max: clients' requests under way; more are answered 503.
    """

    request_timeout_s: _Seconds = 10.0
    peer_timeout_s: _Seconds = 5.0
    shutdown_timeout_s: _Seconds = 10.0
    requests_max: Annotated[int, Meta(ge=1, le=100_000, description="a number from 1 to 100000")] = 1024


class NodeConfig(Struct, frozen=True, kw_only=True):
    """Everything that an operator may set."""

    node: NodeSection
    cluster: ClusterSection
    http: HttpSection = HttpSection()
    peer: PeerSection = PeerSection()
    storage: StorageSection = StorageSection()
    log: LogSection = LogSection()
    limits: LimitsSection = LimitsSection()


_SECTIONS: dict[str, type[Struct]] = {
    "node": NodeSection,
    "http": HttpSection,
    "peer": PeerSection,
    "cluster": ClusterSection,
    "storage": StorageSection,
    "log": LogSection,
    "limits": LimitsSection,
}
_KEYS: dict[str, dict[str, Any]] = {
    section: get_type_hints(struct, include_extras=True) for section, struct in _SECTIONS.items()
}
"""By section and key: the annotated type, whose description says what the key wants."""


def load_config(path: Path, environ: Mapping[str, str]) -> NodeConfig:
    """The configuration of ``path``, overridden from ``environ``; checked as a whole.

    Raises:
        ConfigError: naming the file or variable, the key, what was seen, and what it wants.
    """
    return _Loader(path, environ).load()


def render_config(config: NodeConfig) -> str:
    """TOML that :func:`load_config` reads back to an equal configuration. Secrets without a file are in it."""
    sections: dict[str, dict[str, Any]] = {}
    for section in _SECTIONS:
        values = sections[section] = {}
        struct = getattr(config, section)
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            if value is None or (isinstance(value, Secret) and (not value or getattr(struct, f"{field.name}_file"))):
                continue
            values[field.name] = _rendered(value)
    return tomli_w.dumps(sections)


def _rendered(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, SizeBytes):
        return format_size(value)
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was found, and where."""

    value: Any
    source: str
    from_environment: bool = False

    def error(self, section: str, key: str, problem: str = "") -> ConfigError:
        """What is wrong with this value; ``problem`` says more than what the key wants in general."""
        shown = "***" if _is_secret(section, key) else repr(self.value)
        return ConfigError(f"{self.source}: [{section}] {key} = {shown}: {problem or 'wants ' + _wants(section, key)}.")


_Values = dict[str, dict[str, _Given]]


def _wants(section: str, key: str) -> str:
    return str(_KEYS[section][key].__metadata__[0].description)


def _is_secret(section: str, key: str) -> bool:
    return _KEYS[section][key].__origin__ is Secret


class _Loader:
    """One run of :func:`load_config`."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._given: _Values = {section: {} for section in _SECTIONS}

    def load(self) -> NodeConfig:
        self._read_file()
        self._read_environment()
        self._read_secret("http", "token")
        self._read_secret("cluster", "secret")
        config = NodeConfig(**{section: self._section(section) for section in _SECTIONS})
        self._check_addresses(config)
        self._check_cluster(config.cluster)
        self._check_rest(config)
        return config

    # -- gathering

    def _read_file(self) -> None:
        try:
            document = tomllib.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path}: cannot be read: {error}.") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{self._path}: is not valid TOML: {error}.") from error
        for section, values in document.items():
            if section not in _SECTIONS:
                raise ConfigError(f"{self._path}: unknown section [{section}]{_hint(section, _SECTIONS, '[{}]')}.")
            if not isinstance(values, dict):
                raise ConfigError(f"{self._path}: {section} = {values!r}: wants to be a section, [{section}].")
            for key, value in values.items():
                if key not in _KEYS[section]:
                    raise ConfigError(f"{self._path}: [{section}] has no key {key!r}{_hint(key, _KEYS[section])}.")
                self._given[section][key] = _Given(value, str(self._path))

    def _read_environment(self) -> None:
        for section, keys in _KEYS.items():
            prefix = f"{ENVIRONMENT_PREFIX}{section.upper()}_"
            by_name = {prefix + key.upper(): key for key in keys}
            for name, value in self._environ.items():
                if name in by_name:
                    key = by_name[name]
                    self._given[section][key] = _Given(_listed(value, keys[key]), f"environment {name}", True)
                elif name.startswith(prefix) and not _KUBERNETES.search(name):
                    raise ConfigError(f"environment {name}: there is no such key{_hint(name, by_name)}.")

    def _read_secret(self, section: str, key: str) -> None:
        """Put the content of ``<key>_file`` under ``key``. The environment goes before the file."""
        given = self._given[section]
        text, file = given.get(key), given.get(f"{key}_file")
        if text is not None and file is not None and text.value and file.value:
            if text.from_environment == file.from_environment:
                raise file.error(section, f"{key}_file", f"give either {key} or {key}_file, not both")
            if text.from_environment:
                del given[f"{key}_file"]
                return
        if file is None or not file.value:
            given.pop(f"{key}_file", None)
            return
        path = self._absolute(self._convert(section, f"{key}_file", file))
        try:
            content = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise file.error(section, f"{key}_file", f"cannot be read: {error}") from error
        if not content:
            raise file.error(section, f"{key}_file", "the file is empty")
        given[key] = _Given(content, f"{file.source}: {path}")

    # -- converting

    def _section(self, section: str) -> Any:
        values: dict[str, Any] = {}
        for key, given in self._given[section].items():
            value = self._convert(section, key, given)
            values[key] = self._absolute(value) if isinstance(value, Path) else value
        for field in msgspec.structs.fields(_SECTIONS[section]):
            if field.required and field.name not in values:
                raise ConfigError(
                    f"{self._path}: [{section}] {field.name} is missing: wants {_wants(section, field.name)}. "
                    f"({ENVIRONMENT_PREFIX}{section.upper()}_{field.name.upper()} in the environment does as well.)"
                )
        return _SECTIONS[section](**values)

    def _convert(self, section: str, key: str, given: _Given) -> Any:
        try:
            return msgspec.convert(
                given.value, _KEYS[section][key], strict=not given.from_environment, dec_hook=_from_text
            )
        except (msgspec.ValidationError, ValueError) as error:
            raise given.error(section, key) from error

    def _absolute(self, path: Path) -> Path:
        return (self._path.parent / path.expanduser()).absolute()

    def _error(self, section: str, key: str, value: Any, problem: str = "") -> ConfigError:
        """As :meth:`_Given.error`, also for a value that is the default."""
        given = self._given[section].get(key) or _Given(value, f"{self._path} (default)")
        return given.error(section, key, problem)

    # -- checking

    def _check_addresses(self, config: NodeConfig) -> None:
        for section, values in (("http", config.http), ("peer", config.peer)):
            for key, value in (("listen", values.listen), ("advertise", values.advertise)):
                if not value and key == "advertise":
                    continue
                try:
                    host, _ = split_address(value)
                except ValueError as error:
                    raise self._error(section, key, value) from error
                if key == "advertise" and host in _WILDCARD_HOSTS:
                    raise self._error(section, key, value, "nobody can reach such an address; name this node's own")
            if not values.advertise and split_address(values.listen)[0] in _WILDCARD_HOSTS:
                raise self._error(
                    section,
                    "listen",
                    values.listen,
                    f"others cannot reach such an address; set [{section}] advertise too",
                )
        if config.http.listen == config.peer.listen:
            raise self._error(
                "peer", "listen", config.peer.listen, "is [http] listen too; peers need a port of their own"
            )

    def _check_cluster(self, cluster: ClusterSection) -> None:
        if not valid_node_id(cluster.name):
            raise self._error("cluster", "name", cluster.name)
        if not cluster.secret:
            raise ConfigError(
                f"{self._path}: [cluster] secret or secret_file is missing: wants {_wants('cluster', 'secret')}."
            )
        if len(cluster.secret.reveal()) < SECRET_CHARS_MIN:
            raise self._error("cluster", "secret", cluster.secret)
        if not _REGISTRY_URL.match(cluster.registry):
            raise self._error("cluster", "registry", cluster.registry)
        if cluster.slot_count & (cluster.slot_count - 1):
            raise self._error("cluster", "slot_count", cluster.slot_count)
        for key, quorum in (("write_quorum", cluster.write_quorum), ("read_quorum", cluster.read_quorum)):
            if 0 < quorum < cluster.majority:
                raise self._error(
                    "cluster",
                    key,
                    quorum,
                    f"wants at least {cluster.majority}, the majority of {cluster.replicas} replicas: two smaller "
                    "quorums need not overlap, and an acknowledged write could be lost",
                )
            if quorum > cluster.replicas:
                raise self._error(
                    "cluster",
                    key,
                    quorum,
                    f"wants at most {cluster.replicas}, the number of replicas: more never answer",
                )
        self._check_bootstrap(cluster)

    def _check_bootstrap(self, cluster: ClusterSection) -> None:
        nodes = cluster.bootstrap_nodes
        for node in nodes:
            if not valid_node_id(node):
                raise self._error(
                    "cluster", "bootstrap_nodes", nodes, f"{node!r} is no node id: wants {_wants('node', 'id')}"
                )
        if len(set(nodes)) != len(nodes):
            raise self._error("cluster", "bootstrap_nodes", nodes, "a node is named twice")
        if nodes and len(nodes) < cluster.replicas:
            raise self._error(
                "cluster",
                "bootstrap_nodes",
                nodes,
                f"wants at least as many nodes as replicas ({cluster.replicas}), or none",
            )

    def _check_rest(self, config: NodeConfig) -> None:
        if not valid_node_id(config.node.id):
            raise self._error("node", "id", config.node.id)
        chunk_size = config.storage.chunk_size
        if not CHUNK_BYTES_MIN <= chunk_size <= CHUNK_BYTES_MAX:
            raise self._error("storage", "chunk_size", chunk_size)
        if config.storage.reserve < RESERVE_BYTES_MIN:
            raise self._error("storage", "reserve", config.storage.reserve)
        if config.limits.peer_timeout_s > config.limits.request_timeout_s:
            raise self._error(
                "limits",
                "peer_timeout_s",
                config.limits.peer_timeout_s,
                f"wants at most request_timeout_s ({config.limits.request_timeout_s:g})",
            )


def _from_text(kind: type, value: Any) -> Any:
    """The types that TOML does not have. Raises ValueError."""
    if kind is SizeBytes:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return SizeBytes(value)
        return SizeBytes(parse_size(_text(value)))
    if kind is Path and not _text(value):
        raise ValueError("empty")
    return kind(_text(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _listed(value: str, annotated: Any) -> Any:
    """A variable's value; where a list is wanted, its parts between commas."""
    if annotated.__origin__ == tuple[str, ...]:
        return [part for part in (part.strip() for part in value.split(",")) if part]
    return value


def _hint(seen: str, known: Iterable[str], shape: str = "{}") -> str:
    names = list(known)
    near = difflib.get_close_matches(seen, names, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {shape.format(near[0])}?)"
    return " (there are " + ", ".join(shape.format(name) for name in names) + ")"
