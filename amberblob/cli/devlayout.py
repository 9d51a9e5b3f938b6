"""What ``amberblob dev`` keeps in its data folder, and the ports it hands out.

::

    DIR/dev.lock             held while a dev runs; contains its pid
    DIR/dev.json             how many nodes, which registry: what must not change between runs
    DIR/secret               the cluster's secret, made once, mode 0600
    DIR/registry.sqlite3     the embedded registry
    DIR/node-1/node.toml     keys that dev does not manage are kept when it rewrites the file
    DIR/node-1/disk          the node's disk
    DIR/node-1/log           what the node says
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import secrets
import shlex
import socket
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import tomli_w

from amberblob.cli.devarchive import with_archive
from amberblob.cli.output import CommandFailed
from amberblob.config import load_config
from amberblob.config.values import without_password
from amberblob.errors import ConfigError

HOST = "127.0.0.1"
NODES_DEFAULT = 3
REPLICAS = 3
"""Also of a cluster that has fewer nodes yet: more can be joined. What a folder was made with stays."""
_PEER_PORT_TRIES_MAX = 200

_Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevNode:
    """One node of the local cluster."""

    name: str
    folder: Path
    port: int
    peer_port: int

    @property
    def config_file(self) -> Path:
        return self.folder / "node.toml"

    @property
    def log_file(self) -> Path:
        return self.folder / "log"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def command(self) -> list[str]:
        """What starts the node, now or by hand after it was killed."""
        # The script rather than `python -m`: that would put the current folder, and whatever `node` or `registry` lies
        # in it, before our own packages.
        script = Path(sys.executable).with_name("amberblob")
        program = [str(script)] if script.is_file() else [sys.executable, "-m", "amberblob"]
        return [*program, "serve", "--config", str(self.config_file)]

    @property
    def command_line(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevLayout:
    """The data folder, ready to start nodes on."""

    folder: Path
    nodes: tuple[DevNode, ...]
    environment: dict[str, str]


@contextmanager
def open_layout(
    folder: Path, *, nodes: int | None, port: int, registry: str | None, archive: Mapping[str, str] | None = None
) -> Iterator[DevLayout]:
    """Lock the folder, write or complete what belongs in it, and hold the lock until the end.

    ``archive``: from :func:`amberblob.cli.devarchive.archive_keys`; what the files have already stays.

    Raises:
        CommandFailed: another dev runs on it, it was made for something else, or a port is taken.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        count, registry_url = _settle(folder, nodes, registry)
        if port + count - 1 > 65_535:
            raise CommandFailed(f"{count} nodes from port {port} on need ports above 65535", "Give a lower --port.")
        for public_port in range(port, port + count):
            _require_free(public_port)
        _make_secret(folder / "secret")
        taken = set(range(port, port + count))
        members: list[DevNode] = []
        for index in range(count):
            name = f"node-{index + 1}"
            node_folder = folder / name
            node_folder.mkdir(exist_ok=True)
            old = _read_toml(node_folder / "node.toml")
            peer_port = _choose_peer_port(_old_peer_port(old), taken)
            taken.add(peer_port)
            members.append(DevNode(name=name, folder=node_folder, port=port + index, peer_port=peer_port))
        before = {node.config_file: node.config_file.read_bytes() for node in members if node.config_file.exists()}
        for node in members:
            replicas = _section(_read_toml(node.config_file), "cluster").get("replicas", REPLICAS)
            managed = _managed_keys(node, [member.name for member in members], registry_url, replicas)
            _write_config(node.config_file, managed, archive or {})
        environment = _without_managed(os.environ)
        try:
            for node in members:
                load_config(node.config_file, environment)  # a mistake in a file is told here, not by three logs
        except ConfigError:
            if archive:
                # A mistyped --archive must not stay: the next start with the right one would be refused as a change of the archive.
                _put_back([node.config_file for node in members], before)
            raise
        yield DevLayout(folder=folder, nodes=tuple(members), environment=environment)


def _managed_keys(node: DevNode, names: list[str], registry_url: str, replicas: int) -> _Sections:
    """The part of node.toml that dev decides anew at every start."""
    return {
        # Each node counts as a machine of its own: that two replicas are never on one is kept in play as well.
        "node": {"id": node.name, "disk": "disk", "host": node.name},
        "http": {"listen": f"{HOST}:{node.port}", "advertise": f"{HOST}:{node.port}"},
        "peer": {"listen": f"{HOST}:{node.peer_port}", "advertise": f"{HOST}:{node.peer_port}"},
        "cluster": {
            "name": "dev",
            "secret_file": "../secret",
            "registry": registry_url,
            "bootstrap_nodes": names,
            "replicas": replicas,
        },
    }


def _write_config(file: Path, managed: _Sections, archive: Mapping[str, str]) -> None:
    """Write the managed keys into the file; others that the user put there stay."""
    document = with_archive(_read_toml(file), archive)
    for section, keys in managed.items():
        document[section] = {**_section(document, section), **keys}
    header = "# Written by `amberblob dev` at every start; keys that are not dev's own are kept.\n\n"
    _write_file(file, (header + tomli_w.dumps(document)).encode(), mode=0o644)


def _put_back(files: Sequence[Path], before: Mapping[Path, bytes]) -> None:
    """Each file as it was, or gone if it was not there."""
    for file in files:
        if file in before:
            _write_file(file, before[file], mode=0o644)
        else:
            file.unlink(missing_ok=True)


def _without_managed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables that would make all nodes the same one."""
    probe = DevNode(name="", folder=Path(), port=0, peer_port=0)
    managed = {
        f"AMBERBLOB_{section}_{key}".upper()
        for section, keys in _managed_keys(probe, [], "", REPLICAS).items()
        for key in keys
    }
    managed.add("AMBERBLOB_CLUSTER_SECRET")
    return {name: value for name, value in environ.items() if name not in managed}


def _old_peer_port(document: dict[str, Any]) -> int | None:
    _, _, port = str(_section(document, "peer").get("listen", "")).rpartition(":")
    return int(port) if port.isascii() and port.isdigit() and 0 < int(port) <= 65_535 else None


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name, {})
    return section if isinstance(section, dict) else {}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder / "dev.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise CommandFailed(
                f"another `amberblob dev` (pid {pid}) runs on {folder}",
                "Stop it first, or give another folder with --data. To start one killed node again, "
                "use the `serve` command that dev printed.",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _settle(folder: Path, nodes: int | None, registry: str | None) -> tuple[int, str]:
    """How many nodes and which registry: what the folder was made with, unless it is new."""
    file = folder / "dev.json"
    embedded = "embedded://" + quote((folder / "registry.sqlite3").as_posix())
    try:
        kept = json.loads(file.read_bytes())
        kept_nodes, kept_registry = int(kept["nodes"]), kept["registry"]
    except FileNotFoundError:
        count = NODES_DEFAULT if nodes is None else nodes
        # The embedded registry is kept as null, so that the folder may be moved. A URL may carry a password: 0600.
        _write_file(file, json.dumps({"nodes": count, "registry": registry}).encode() + b"\n", mode=0o600)
        return count, registry or embedded
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{file} is damaged ({error})", "Repair it or give another folder with --data.") from error
    if nodes is not None and nodes != kept_nodes:
        raise CommandFailed(
            f"{folder} holds a cluster of {kept_nodes} nodes, not {nodes}",
            f"Leave out --nodes or give --nodes {kept_nodes}; for a new cluster give another folder with --data.",
        )
    if registry is not None and registry != kept_registry:
        raise CommandFailed(
            f"{folder} holds a cluster with another registry ({without_password(kept_registry or 'embedded')})",
            "Leave out --registry; for a new cluster give another folder with --data.",
        )
    return kept_nodes, kept_registry or embedded


def _require_free(port: int) -> None:
    if (error := _bind_error(port)) is None:
        return
    if error.errno == errno.EACCES:
        raise CommandFailed(f"port {port} is not allowed for this user", "Give a --port of 1024 or more.")
    raise CommandFailed(
        f"port {port} on {HOST} is already in use",
        "Give other ports with --port, or stop what listens there (perhaps a node that you started by hand).",
    )


def _bind_error(port: int) -> OSError | None:
    """Why nobody could listen on the port now; None when it is free."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None


def _choose_peer_port(kept: int | None, taken: set[int]) -> int:
    """The kept port if it is free, else a random free one outside of the range for outgoing connections.

    Inside of that range a node that is down could lose its port to anybody's outgoing connection; worse, a peer that
    keeps dialling a dead port of the range will one day be connected to itself.
    """
    if kept is not None and kept not in taken and _bind_error(kept) is None:
        return kept
    low, high = _outgoing_range()
    candidates = range(10_240, low) if low > 12_000 else range(high + 1, 65_536)
    for _ in range(_PEER_PORT_TRIES_MAX):
        port = random.choice(candidates) if len(candidates) > 0 else random.randrange(10_240, 65_536)
        if port not in taken and _bind_error(port) is None:
            return port
    raise CommandFailed("found no free port for the nodes to speak to each other", "Close what holds so many ports.")


def _outgoing_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32_768, 60_999


def _make_secret(file: Path) -> None:
    if not file.exists():
        _write_file(file, secrets.token_urlsafe(32).encode() + b"\n", mode=0o600)


def _write_file(file: Path, content: bytes, *, mode: int) -> None:
    """Replace the file as a whole; it never exists with other permissions or half its content."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{file} is not TOML: {error}", "Repair or remove it; dev writes a new one.") from error
