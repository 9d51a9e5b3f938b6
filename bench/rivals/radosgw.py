"""Ceph's object gateway: one radosgw before one monitor, one manager and three OSDs, pools of three copies.

The OSDs are BlueStore, each on a plain file of its own that it opens past the page cache, as it does with a disk. The
gateway answers a PUT when all three OSDs have it durably in their logs (writes go to every copy, ``min_size`` says
only when it still takes any). It is asked by its Swift interface, with one token for the whole run. What only costs is
left out: logs, and authentication between Ceph's own processes. CRUSH may put the three copies on one host, else
there would be none.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from bench.environment import HOST
from bench.pairs import Store
from bench.rivals.common import COPIES, NotInstalled, Processes, free_ports, listens, swift_token

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "ceph", "radosgw-admin", "monmaptool")
_CONTAINER = "/swift/v1/bench"
_USER = "bench:bench"
_DISK_BYTES = 16 * 2**30  # a sparse file
_MEMORY_BYTES = 896 * 2**20  # the least that an OSD accepts as its target
_PGS_PER_POOL = 16
_OSD_PORTS = (31_000, 32_699)
_START_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of a Ceph is."""

    folder: Path
    fsid: str
    monitor: int
    gateway: int

    @property
    def config(self) -> Path:
        """The file of all settings."""
        return self.folder / "ceph.conf"

    def data(self, name: str) -> Path:
        """The folder of one daemon, ``osd.0`` for example."""
        return self.folder / name


def cluster_config(layout: Layout) -> str:
    """``ceph.conf``."""
    return dedent(f"""\
        [global]
        fsid = {layout.fsid}
        mon_host = v2:{HOST}:{layout.monitor}
        public_addr = {HOST}
        cluster_addr = {HOST}
        ms_bind_msgr1 = false
        ms_bind_port_min = {_OSD_PORTS[0]}
        ms_bind_port_max = {_OSD_PORTS[1]}
        auth_cluster_required = none
        auth_service_required = none
        auth_client_required = none
        run_dir = {layout.folder}
        crash_dir = {layout.folder}
        admin_socket =
        log_to_file = false
        log_to_stderr = false
        err_to_stderr = true
        mon_cluster_log_to_file = false
        osd_pool_default_size = {COPIES}
        osd_pool_default_min_size = {COPIES - 1}
        osd_pool_default_pg_num = {_PGS_PER_POOL}
        osd_pool_default_pgp_num = {_PGS_PER_POOL}
        osd_pool_default_pg_autoscale_mode = off
        osd_crush_chooseleaf_type = 0

        [mon]
        mon_data = {layout.folder}/$type.$id
        mon_data_avail_crit = 1

        [mgr]
        mgr_data = {layout.folder}/$type.$id

        [osd]
        osd_data = {layout.folder}/$type.$id
        osd_objectstore = bluestore
        osd_memory_target = {_MEMORY_BYTES}
        bluestore_block_create = true
        bluestore_block_size = {_DISK_BYTES}
        bluestore_block_preallocate_file = false

        [client.rgw]
        rgw_data = {layout.folder}/$type.$id
        rgw_frontends = beast endpoint={HOST}:{layout.gateway} tcp_nodelay=1
        ms_mon_client_mode = crc
        rgw_enable_ops_log = false
        rgw_enable_usage_log = false
        """)


def find_version() -> str:
    """The version of the installed Ceph. Raises NotInstalled."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise NotInstalled(program)
    try:
        done = subprocess.run(["radosgw", "--version"], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()[2]
    except (OSError, subprocess.SubprocessError, IndexError):
        raise NotInstalled("a radosgw that works") from None


class RadosGateway:
    """A whole small Ceph with its gateway in ``folder``. A context manager: inside it runs."""

    def __init__(self, folder: Path) -> None:
        self._version = find_version()
        monitor, gateway = free_ports(2)
        self._layout = Layout(folder=folder.resolve(), fsid=str(uuid.uuid4()), monitor=monitor, gateway=gateway)
        self._processes = Processes(folder, {"PYTHONPATH": ""})
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)
        """Of its S3 interface."""

    @property
    def endpoint(self) -> str:
        """Of its S3 interface."""
        return f"http://{HOST}:{self._layout.gateway}"

    def __enter__(self) -> Store:
        try:
            self._start_monitor()
            self._start_disks()
            token = self._start_gateway()
        except BaseException:
            self._processes.stop()
            raise
        return Store(
            title="radosgw " + ".".join(self._version.split(".")[:2]),
            ports=(self._layout.gateway,),
            base=f"{_CONTAINER}/",
            pids=self._processes.pids,
            headers={"X-Auth-Token": token},
        )

    def __exit__(self, *_: object) -> None:
        self._processes.stop()

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [program, "-c", str(self._layout.config), *arguments]

    def _start_monitor(self) -> None:
        layout, processes = self._layout, self._processes
        layout.config.write_text(cluster_config(layout))
        map_file = str(layout.folder / "monmap")
        address = f"[v2:{HOST}:{layout.monitor}]"
        processes.run(["monmaptool", "--create", "--fsid", layout.fsid, "--addv", "a", address, map_file])
        layout.data("mon.a").mkdir()
        layout.data("mgr.a").mkdir()
        processes.run(self._command("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file))
        processes.start("mon", self._command("ceph-mon", "-f", "-i", "a"))
        processes.start("mgr", self._command("ceph-mgr", "-f", "-i", "a"))

    def _start_disks(self) -> None:
        processes = self._processes
        for number in range(COPIES):
            name = str(uuid.uuid4())
            self._layout.data(f"osd.{number}").mkdir()
            processes.run(self._command("ceph", "osd", "new", name, str(number)))
            processes.run(self._command("ceph-osd", "--mkfs", "-i", str(number), "--osd-uuid", name))
            processes.start(f"osd-{number}", self._command("ceph-osd", "-f", "-i", str(number)))
        processes.await_true("three OSDs are up", self._disks_are_up, _START_TIMEOUT_S)

    def _disks_are_up(self) -> bool:
        stat = json.loads(self._processes.run(self._command("ceph", "osd", "stat", "--format", "json")))
        return bool(stat["num_up_osds"] == COPIES)

    def _start_gateway(self) -> str:
        processes, key = self._processes, secrets.token_hex(8)
        admin = "radosgw-admin"
        name = ("-n", "client.rgw")
        user = _USER.partition(":")[0]
        self._layout.data("client.rgw").mkdir()
        processes.run(
            self._command(admin, *name, "user", "create", "--uid", user, "--display-name", user,
                          "--access-key", self.access_key, "--secret-key", self.secret_key)
        )  # fmt: skip
        processes.run(
            self._command(admin, *name, "subuser", "create", "--uid", user, "--subuser", _USER,
                          "--access", "full", "--key-type", "swift", "--secret", key)
        )  # fmt: skip
        processes.start("rgw", self._command("radosgw", "-f", *name))
        port = self._layout.gateway
        processes.await_true("radosgw listens", lambda: listens(port), _START_TIMEOUT_S)
        return swift_token(port, _USER, key, _CONTAINER)
