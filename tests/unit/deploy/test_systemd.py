"""deploy/systemd: what systemd says of the unit, without a systemd that runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.unit.deploy.kit import DEPLOY, STOP_S_MIN, missing, seconds

UNIT = DEPLOY / "systemd" / "amberblob@.service"
EXPOSURE_MAX = 2.0
"""`systemd-analyze security` counts from 0 (sandboxed) to 10. What is left is mostly that a store needs the network."""


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        missing("systemd-analyze is not installed: apt-get install systemd (nothing of it has to run)")
    assert found is not None
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here."""
    text = UNIT.read_text()
    assert "/opt/amberblob/bin/amberblob" in text
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/amberblob/bin/amberblob", sys.executable))
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_systemd_finds_nothing_wrong(analyze, unit):
    done = run(analyze, "verify", "--man=no", str(unit))
    ours = [
        line for line in done.stderr.splitlines() if "amberblob" in line
    ]  # it looks at the machine's own units, too
    assert (done.returncode, ours) == (0, []), done.stderr


def test_systemd_finds_mistakes(analyze, unit):
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=strct\nNoSuchKey=1"))
    done = run(analyze, "verify", "--man=no", str(unit))
    assert "protect system" in done.stderr and "NoSuchKey" in done.stderr


def test_it_may_do_little(analyze, unit):
    done = run(analyze, "security", "--offline=true", str(unit))
    if "unrecognized option" in done.stderr:
        missing("this systemd-analyze cannot judge a file: systemd 250 or newer can")
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert match is not None, done.stdout + done.stderr
    assert float(match[1]) <= EXPOSURE_MAX


def settings() -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def test_it_is_stopped_with_time_and_started_again():
    found = settings()
    [stop] = found["TimeoutStopSec"]
    assert seconds(stop) >= STOP_S_MIN
    assert found["Restart"] == ["on-failure"] and found["LimitNOFILE"] == ["65536"]
    assert found["ExecStart"] == ["/opt/amberblob/bin/amberblob serve --config /etc/amberblob/%i.toml"]
    assert found["StateDirectory"] == ["amberblob/%i"], "which is what makes /var/lib/amberblob/%i writable"
    assert found["ProtectSystem"] == ["strict"] and found["NoNewPrivileges"] == ["yes"]


def test_the_user_is_made(tmp_path):
    users = (DEPLOY / "systemd" / "amberblob.sysusers.conf").read_text()
    assert settings()["User"] == settings()["Group"] == ["amberblob"]
    assert re.search(r"^u amberblob ", users, re.MULTILINE)
    if (sysusers := shutil.which("systemd-sysusers")) is not None:
        (tmp_path / "etc").mkdir()
        done = run(sysusers, f"--root={tmp_path}", str(DEPLOY / "systemd" / "amberblob.sysusers.conf"))
        assert done.returncode == 0, done.stderr
        assert re.search(r"^amberblob:.*:/var/lib/amberblob:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    for line in (DEPLOY / "systemd" / "amberblob.tmpfiles.conf").read_text().splitlines():
        if not line.startswith("#"):
            kind, path, mode, user, group, age = line.split()
            assert (kind, group, age) == ("d", "amberblob", "-") and user in ("root", "amberblob")
            assert path in ("/etc/amberblob", "/var/lib/amberblob") and mode == "0750"
