"""OpenStack Swift: three nodes of proxy, account, container and object server each, and one memcached.

It is set up as its own documentation sets up a small one: a ring of three copies over three devices in three zones,
tempauth with one token for the whole run. What only costs and does not serve is left out: logs of requests, the
replicators, auditors and updaters. Durability is Swift's own default: an object server syncs the file (fsync), renames
it and syncs the folder before it answers, and the proxy answers once two of the three have; a container's row is
written by SQLite with ``synchronous = NORMAL``, which is not a sync per write.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import dedent

from bench.environment import HOST, ROOT
from bench.pairs import Store
from bench.rivals.common import COPIES, NotInstalled, Processes, RivalFailed, free_ports, listens, swift_token

VENV = ROOT / ".venv-swift"
_DEVICE = "disk"
_PART_POWER = 8
_KINDS = ("account", "container", "object")
_START_TIMEOUT_S = 60.0
_MEMCACHED_MIB = 64
_ACCOUNT, _USER = "bench", "bench"
_CONTAINER = f"/v1/AUTH_{_ACCOUNT}/bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of a Swift is: its folder and ports, by node.

    Attributes:
        user: whom the servers run as.
        key: of the one user; also the cluster's hash prefix.
    """

    folder: Path
    user: str
    key: str
    memcached: int
    proxies: tuple[int, ...]
    servers: dict[str, tuple[int, ...]]

    def devices(self, node: int) -> Path:
        """The folder of a node's devices."""
        return self.folder / f"node-{node + 1}"

    def config(self, kind: str, node: int) -> Path:
        """The file of one server's settings."""
        return self.folder / f"{kind}-{node + 1}.conf"


def cluster_config(layout: Layout) -> str:
    """``swift.conf``."""
    return dedent(f"""\
        [swift-hash]
        swift_hash_path_prefix = {layout.key}
        swift_hash_path_suffix = {layout.key}

        [storage-policy:0]
        name = three
        default = yes
        """)


def server_config(layout: Layout, kind: str, node: int) -> str:
    """The settings of an account, container or object server."""
    return dedent(f"""\
        [DEFAULT]
        bind_ip = {HOST}
        bind_port = {layout.servers[kind][node]}
        user = {layout.user}
        swift_dir = {layout.folder}
        devices = {layout.devices(node)}
        mount_check = false
        workers = 0
        log_level = ERROR

        [pipeline:main]
        pipeline = {kind}-server

        [app:{kind}-server]
        use = egg:swift#{kind}
        log_requests = false
        """)


def proxy_config(layout: Layout, node: int) -> str:
    """The settings of a proxy server: the documented pipeline without the log of requests."""
    return dedent(f"""\
        [DEFAULT]
        bind_ip = {HOST}
        bind_port = {layout.proxies[node]}
        user = {layout.user}
        swift_dir = {layout.folder}
        workers = 0
        log_level = ERROR

        [pipeline:main]
        pipeline = catch_errors gatekeeper healthcheck cache tempauth copy dlo versioned_writes proxy-server

        [app:proxy-server]
        use = egg:swift#proxy
        account_autocreate = true

        [filter:tempauth]
        use = egg:swift#tempauth
        user_{_ACCOUNT}_{_USER} = {layout.key} .admin

        [filter:cache]
        use = egg:swift#memcache
        memcache_servers = {HOST}:{layout.memcached}

        [filter:catch_errors]
        use = egg:swift#catch_errors

        [filter:gatekeeper]
        use = egg:swift#gatekeeper

        [filter:healthcheck]
        use = egg:swift#healthcheck

        [filter:copy]
        use = egg:swift#copy

        [filter:dlo]
        use = egg:swift#dlo

        [filter:versioned_writes]
        use = egg:swift#versioned_writes
        """)


def ring_commands(builder: str, layout: Layout, kind: str) -> list[list[str]]:
    """The commands that make one ring: as many copies as zones, one device in each, equal weights."""
    file = str(layout.folder / f"{kind}.builder")
    devices = [
        word
        for node, port in enumerate(layout.servers[kind])
        for word in (f"r1z{node + 1}-{HOST}:{port}/{_DEVICE}", "100")
    ]
    return [
        [builder, file, "create", str(_PART_POWER), str(COPIES), "0"],
        [builder, file, "add", *devices],
        [builder, file, "rebalance"],
    ]


def find_memcached() -> str:
    """Raises NotInstalled."""
    program = shutil.which("memcached")
    if program is None:
        raise NotInstalled("memcached")
    return program


def find_version(venv: Path) -> str:
    """The version of the Swift in this virtual environment. Raises NotInstalled."""
    if not (venv / "bin" / "swift-proxy-server").is_file():
        raise NotInstalled(f"Swift in {venv}")
    question = "from importlib.metadata import version; print(version('swift'))"
    try:
        done = subprocess.run(
            [venv / "bin" / "python", "-c", question], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        raise NotInstalled(f"a Swift that works in {venv}") from None
    return done.stdout.strip()


class Swift:
    """A whole small Swift in ``folder``. A context manager: inside it runs."""

    def __init__(self, folder: Path, venv: Path = VENV) -> None:
        self._version = find_version(venv)
        self._memcached = find_memcached()
        self._bin = venv / "bin"
        ports = iter(free_ports(1 + COPIES * (1 + len(_KINDS))))
        self._layout = Layout(
            folder=folder.resolve(),
            user=getpass.getuser(),
            key=secrets.token_hex(8),
            memcached=next(ports),
            proxies=tuple(islice(ports, COPIES)),
            servers={kind: tuple(islice(ports, COPIES)) for kind in _KINDS},
        )
        self._processes = Processes(folder, {"PYTHONPATH": ""})

    def __enter__(self) -> Store:
        try:
            self._write_files()
            self._start()
            token = swift_token(self._layout.proxies[0], f"{_ACCOUNT}:{_USER}", self._layout.key, _CONTAINER)
        except BaseException:
            self._processes.stop()
            raise
        return Store(
            title="Swift " + ".".join(self._version.split(".")[:2]),
            ports=self._layout.proxies,
            base=f"{_CONTAINER}/",
            pids=self._processes.pids,
            headers={"X-Auth-Token": token},
        )

    def __exit__(self, *_: object) -> None:
        self._processes.stop()

    def _write_files(self) -> None:
        layout = self._layout
        _check_xattr(layout.folder)
        (layout.folder / "swift.conf").write_text(cluster_config(layout))
        for node in range(COPIES):
            (layout.devices(node) / _DEVICE).mkdir(parents=True)
            layout.config("proxy", node).write_text(proxy_config(layout, node))
            for kind in _KINDS:
                layout.config(kind, node).write_text(server_config(layout, kind, node))
        for kind in _KINDS:
            for command in ring_commands(str(self._bin / "swift-ring-builder"), layout, kind):
                self._processes.run(command)

    def _start(self) -> None:
        layout, processes = self._layout, self._processes
        memory = ["-m", str(_MEMCACHED_MIB), "-u", layout.user]
        processes.start("memcached", [self._memcached, "-l", HOST, "-p", str(layout.memcached), *memory])
        for node in range(COPIES):
            for kind in (*_KINDS, "proxy"):
                program = str(self._bin / f"swift-{kind}-server")
                processes.start(f"{kind}-{node + 1}", [program, str(layout.config(kind, node)), "-v"])
        ports = (layout.memcached, *layout.proxies, *(port for ports in layout.servers.values() for port in ports))
        processes.await_true("Swift listens", lambda: all(map(listens, ports)), _START_TIMEOUT_S)


def _check_xattr(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.name, "user.bench", b"1")
        except OSError as error:
            raise RivalFailed(f"Swift needs a file system with extended attributes; {folder}: {error}") from error
