"""The other stores: their settings, what is said where they are not installed, their processes."""

from __future__ import annotations

import configparser
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import app
from bench.environment import ENVIRONMENT
from bench.report import markdown
from bench.results import Document, Section
from bench.rivals import beside, install, radosgw, swift
from bench.rivals.common import NotInstalled, Processes, RivalFailed, free_ports, listens
from bench.scenarios import SCENARIOS

SWIFT = swift.Layout(
    folder=Path("/tmp/of-swift"),
    user="someone",
    key="secret",
    memcached=30_001,
    proxies=(30_002, 30_003, 30_004),
    servers={"account": (1, 2, 3), "container": (4, 5, 6), "object": (7, 8, 9)},
)
CEPH = radosgw.Layout(folder=Path("/tmp/of-ceph"), fsid="0-1-2", monitor=30_001, gateway=30_002)


def _parsed(text):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return parser


# -- Swift


def test_a_ring_has_three_copies_in_three_zones():
    create, add, rebalance = swift.ring_commands("builder", SWIFT, "object")
    assert create == ["builder", "/tmp/of-swift/object.builder", "create", "8", "3", "0"]
    assert add[2::2] == ["add", "100", "100", "100"]
    assert add[3::2] == ["r1z1-127.0.0.1:7/disk", "r1z2-127.0.0.1:8/disk", "r1z3-127.0.0.1:9/disk"]
    assert rebalance[2:] == ["rebalance"]


@pytest.mark.parametrize("kind", ["account", "container", "object"])
def test_each_server_of_swift_has_its_own_port_and_folder(kind):
    settings = [_parsed(swift.server_config(SWIFT, kind, node)) for node in range(3)]
    assert [int(one["DEFAULT"]["bind_port"]) for one in settings] == list(SWIFT.servers[kind])
    assert [one["DEFAULT"]["devices"] for one in settings] == [f"/tmp/of-swift/node-{node}" for node in (1, 2, 3)]
    for one in settings:
        assert one["DEFAULT"]["bind_ip"] == "127.0.0.1"
        assert one["DEFAULT"]["swift_dir"] == "/tmp/of-swift", "nothing is read from /etc"
        assert one["DEFAULT"]["user"] == "someone"
        assert one["DEFAULT"]["mount_check"] == "false"
        assert one[f"app:{kind}-server"]["use"] == f"egg:swift#{kind}"


def test_the_proxy_asks_for_a_token():
    settings = _parsed(swift.proxy_config(SWIFT, 1))
    pipeline = settings["pipeline:main"]["pipeline"].split()
    assert pipeline.index("tempauth") < pipeline.index("proxy-server") == len(pipeline) - 1
    assert all(f"filter:{name}" in settings for name in pipeline[:-1])
    assert settings["filter:tempauth"]["user_bench_bench"] == "secret .admin"
    assert settings["filter:cache"]["memcache_servers"] == "127.0.0.1:30001"
    assert settings["DEFAULT"]["bind_port"] == "30003"


def test_durability_is_left_as_it_is():
    for text in (swift.server_config(SWIFT, "object", 0), swift.proxy_config(SWIFT, 0), radosgw.cluster_config(CEPH)):
        assert "sync" not in text and "nobarrier" not in text


def test_without_its_environment_swift_is_not_installed(tmp_path):
    with pytest.raises(NotInstalled, match=r"not installed: Swift in .*nowhere is missing; run `make bench-rivals`"):
        swift.find_version(tmp_path / "nowhere")


def test_an_environment_that_does_not_work_is_not_installed(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "swift-proxy-server").touch()
    with pytest.raises(NotInstalled, match="a Swift that works"):
        swift.find_version(tmp_path)


def test_without_memcached_swift_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match="not installed: memcached is missing"):
        swift.find_memcached()


# -- radosgw


def test_ceph_keeps_three_copies_and_everything_in_its_folder():
    settings = _parsed(radosgw.cluster_config(CEPH))
    assert settings["global"]["mon_host"] == "v2:127.0.0.1:30001"
    assert settings["global"]["osd_pool_default_size"] == "3"
    assert "endpoint=127.0.0.1:30002 tcp_nodelay=1" in settings["client.rgw"]["rgw_frontends"]
    for section, key in (("mon", "mon_data"), ("mgr", "mgr_data"), ("osd", "osd_data"), ("client.rgw", "rgw_data")):
        assert settings[section][key].startswith("/tmp/of-ceph/")
    assert settings["global"]["run_dir"] == settings["global"]["crash_dir"] == "/tmp/of-ceph"
    assert settings["global"]["log_to_file"] == settings["global"]["mon_cluster_log_to_file"] == "false"


def test_without_its_programs_radosgw_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match="not installed: ceph-mon is missing; run `make bench-rivals`"):
        radosgw.find_version()


# -- the run


@pytest.mark.parametrize(
    ("only", "rivals", "quick", "names"),
    [
        (None, [], False, [*[name for name in SCENARIOS if name != "list"], *beside.RIVALS, "list"]),
        (None, [], True, [*SCENARIOS]),
        (["get"], [], False, ["get"]),
        (None, ["swift"], True, ["swift"]),
        (["get"], ["radosgw"], False, ["get", "radosgw"]),
        (["get", "swift"], ["swift"], False, ["get", "swift"]),
    ],
)
def test_which_scenarios_run(only, rivals, quick, names):
    assert app.names_of_run(only, rivals, quick) == names


@pytest.mark.parametrize("text", ["", "swift,minio", "swift;radosgw"])
def test_an_unknown_rival_is_wrong_usage(text, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["--rivals", text])
    assert ended.value.code == 2
    assert "there are swift, radosgw" in capsys.readouterr().err


def test_what_is_not_installed_is_said_and_the_run_goes_on(monkeypatch, tmp_path, capsys):
    def missing(folder):
        raise NotInstalled("everything")

    scenario = beside.beside(replace(beside.RIVALS["swift"], start=missing))
    monkeypatch.setitem(app._ALL, "swift", ("Beside OpenStack Swift", scenario))
    monkeypatch.setitem(app._ALL, "radosgw", ("Beside Ceph radosgw", lambda plan, folder, to: to.add("s", "m", "", 1)))
    assert app.main(["--rivals", "swift,radosgw", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "swift: not installed: everything is missing; run `make bench-rivals`" in said
    assert "Beside Ceph radosgw" in said and "s | m | 1.00" in said
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_was_not_installed():
    section = Section(name="swift", title="Beside Swift", note=str(NotInstalled("memcached")))
    document = Document(
        command="", commit="", started_at="", seconds=0, machine={}, load_before="", load_after="", sections=(section,)
    )
    assert "\nNot installed: memcached is missing; run `make bench-rivals`.\n" in markdown(document)


# -- installing


def test_without_root_the_command_is_named(monkeypatch):
    monkeypatch.setattr(install, "missing_packages", list)
    monkeypatch.setattr(install.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(install.os, "geteuid", lambda: 1000)
    said = install.install_packages(("memcached",))
    assert said == "needs root: sudo apt-get install --yes --no-install-recommends memcached"


def test_without_apt_the_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.missing_packages(("memcached", "radosgw")) == ["memcached", "radosgw"]
    assert "there is no apt-get here" in install.install_packages(("memcached", "radosgw"))


def test_what_is_there_is_not_installed_again(monkeypatch):
    monkeypatch.setattr(install, "missing_packages", lambda packages: [])
    assert install.install_packages(("memcached",)) == ""


def test_swift_is_installed_by_hashes_into_its_own_environment():
    create, fill = install.venv_commands(Path("/somewhere"), "/usr/bin/python3")
    assert create == ["/usr/bin/python3", "-m", "venv", "/somewhere"]
    assert fill[0] == "/somewhere/bin/python" and "--require-hashes" in fill
    lock = Path(fill[-1]).read_text()
    assert "\nswift==2.38.0 \\\n" in lock
    pins = [line for line in lock.splitlines() if line and not line.startswith(("#", " "))]
    assert all("==" in line for line in pins)


# -- processes


def test_ports_are_free_and_none_is_twice():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not any(map(listens, ports))


def test_processes_end_with_their_rival(tmp_path):
    processes = Processes(tmp_path)
    processes.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    (pid,) = processes.pids
    os.kill(pid, 0)
    processes.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert processes.pids == []
    processes.stop()


def test_one_that_does_not_want_to_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.rivals.common._STOP_TIMEOUT_S", 0.2)
    processes = Processes(tmp_path)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    processes.start("deaf", [sys.executable, "-c", deaf])
    (pid,) = processes.pids
    processes.await_true("it is deaf", lambda: (tmp_path / "deaf.log").read_text() == "deaf\n", 30)
    processes.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_an_early_end_is_told_with_the_last_words(tmp_path):
    processes = Processes(tmp_path)
    processes.start("server", [sys.executable, "-c", "import sys; sys.exit('no such ring')"])
    with pytest.raises(RivalFailed, match="server ended with status 1: 'no such ring"):
        processes.await_true("it listens", lambda: False, 30)
    processes.stop()


def test_what_never_comes_is_told(tmp_path):
    with pytest.raises(RivalFailed, match="it listens: not after 0 s"):
        Processes(tmp_path).await_true("it listens", lambda: False, 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit('wrong option')", "wrong option"), ("import time; time.sleep(600)", "more")],
)
def test_a_command_that_fails_is_told(tmp_path, code, said):
    with pytest.raises(RivalFailed, match=said):
        Processes(tmp_path).run([sys.executable, "-c", code], timeout_s=60.0 if said == "wrong option" else 1.0)


def test_a_rival_ends_when_the_benchmark_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bench.rivals.common import Processes\n"
        "processes = Processes(Path(sys.argv[1]))\n"
        "processes.start('server', [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(processes.pids[0], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone, which may be while it is read
        while Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
