"""deploy/Dockerfile, carried out in a clean folder: it builds from the lock file, and what it builds runs as nobody special."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import free_ports
from tests.unit.deploy.dockerfile import (
    Image,
    Stage,
    Unfetched,
    ignored,
    make_base,
    make_context,
    read_dockerfile,
    words_of,
)
from tests.unit.deploy.kit import DEPLOY, ROOT, missing

USER = 7700
REQUIRED = "AMBERBLOB_REQUIRE_IMAGE"
"""Set to 1, the image must be built. Else a package index that cannot be reached is no fault of ours: where the packages are is not what
is tested here."""
OPENS = """
from registry.factory import open_registry
for url in ("etcd://127.0.0.1:1", "redis://127.0.0.1:1/0"):
    open_registry(url)
import amberblob
print(amberblob.__file__)
"""
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return read_dockerfile((DEPLOY / "Dockerfile").read_text())


def test_the_last_stage_is_small_and_nobody_special(stages):
    build, last = stages
    assert build.base == last.base and re.fullmatch(r"python:3\.\d+-slim-\w+", last.base)
    assert last.last("USER") == f"{USER}:{USER}"
    assert last.last("VOLUME") == "/var/lib/amberblob"
    assert last.last("EXPOSE").split() == ["7700", "7800"]
    # Nothing is downloaded or compiled in it, so no tool for that has to be.
    assert not any("pip" in text or "apt" in text for name, text in last.steps if name == "RUN")
    order = [name for name, _ in last.steps]
    assert order.index("USER") > max(at for at, name in enumerate(order) if name in ("RUN", "COPY"))
    installs = [text for name, text in build.steps if name == "RUN" and "pip" in text and "install" in text]
    assert all("--require-hashes" in text or "--no-deps" in text for text in installs) and len(installs) == 2


def test_the_python_is_one_that_we_run_on(stages):
    version = tuple(map(int, re.findall(r"\d+", stages[-1].base)[:2]))
    assert f">={version[0]}.{version[1]}" in (ROOT / "pyproject.toml").read_text() or version > (3, 11)


def test_only_what_is_needed_goes_to_the_engine():
    patterns = (ROOT / ".dockerignore").read_text()
    for path in ("amberblob/wire.py", "node/main.py", "pyproject.toml", "requirements.lock", "deploy/container.toml"):
        assert not ignored(patterns, path), path
    for path in (
        ".git/config",
        "tests/unit/x.py",
        "deploy/compose/secrets/token",
        "amberblob/__pycache__/a.pyc",
        ".venv/x",
    ):
        assert ignored(patterns, path), path


def test_unknown_instructions_are_not_passed_over():
    with pytest.raises(ValueError, match="ONBUILD"):
        read_dockerfile("FROM a\nONBUILD RUN x\n")


def test_only_an_index_that_is_away_excuses_a_failure(tmp_path: Path):
    step = Stage("base", "", [("RUN", "echo not pip >&2; false")])
    with pytest.raises(AssertionError, match="not pip"):
        Image(step, tmp_path, tmp_path, {}).carry_out()
    for said, raised in (
        ("WARNING: Retrying (Retry(total=1)) after connection broken by NewConnectionError", Unfetched),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", AssertionError),
        ("ERROR: No matching distribution found for etcd3", AssertionError),
    ):
        step = Stage("base", "", [("RUN", f"echo 'pip: {said}' >&2; false")])
        with pytest.raises(raised):
            Image(step, tmp_path, tmp_path, {}).carry_out()


@pytest.fixture(scope="module")
def image(stages: list[Stage]) -> Iterator[Image]:
    """Both stages, carried out. Only root can make users and give files away."""
    if os.geteuid() != 0:
        missing("making users and giving files away needs root: run this test as root")
    folder = Path(tempfile.mkdtemp(prefix="amberblob-image-", dir=_for_everybody()))
    folder.chmod(0o755)
    try:
        (folder / "context").mkdir()
        make_context(ROOT, folder / "context")
        root = folder / "root"
        root.mkdir()
        make_base(root)
        Image(stages[0], root, folder / "context", {}).carry_out()
        last = Image(stages[1], root, folder / "context", {"build": root})
        last.carry_out()
        yield last
    except Unfetched as error:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(f"the image's packages cannot be downloaded ({REQUIRED}=1 makes that a failure): {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _for_everybody() -> str:
    """A folder for temporary files in which any user gets to what is there: TMPDIR may be somebody's own."""
    for folder in (tempfile.gettempdir(), "/var/tmp", "/tmp"):
        at = Path(folder).resolve()
        if all(parent.stat().st_mode & stat.S_IXOTH for parent in (at, *at.parents)):
            return folder
    raise AssertionError("no folder for temporary files is open to other users: name one in TMPDIR")


def as_user(image: Image, *words: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        cwd=image.root,
        env=image.environment | environment,
        user=USER,
        group=USER,
        extra_groups=[],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_it_builds_and_a_node_runs_as_nobody_special(image: Image, stages: list[Stage]):
    passwd = (image.root / "etc/passwd").read_text()
    assert passwd.startswith(f"amberblob:x:{USER}:{USER}:") and passwd.strip().endswith("/usr/sbin/nologin")
    data = image.root / "var/lib/amberblob"
    assert (data.stat().st_uid, data.stat().st_mode & 0o777) == (USER, 0o750)

    program = str(image.root / "opt/amberblob/bin/amberblob")
    helped, output = words(as_user(image, program, "--help"))
    assert helped == 0 and b"serve" in output, output
    python = str(image.root / "opt/amberblob/bin/python")
    # The clients of both registries are in it, and the code is its own.
    opened, output = words(as_user(image, python, "-c", OPENS))
    assert opened == 0 and output.decode().strip().startswith(str(image.root / "opt/amberblob/lib")), output

    http, peer = free_ports(2)
    [entry] = words_of(stages[1].last("ENTRYPOINT"))
    assert entry == "amberblob"
    command = [image.inside(word) for word in words_of(stages[1].last("CMD"))]
    config = image.root / "etc/amberblob/node.toml"
    config.write_text(image.inside(config.read_text()))
    node = as_user(
        image,
        program,
        *command,
        AMBERBLOB_NODE_ID="one",
        AMBERBLOB_HTTP_LISTEN=f"127.0.0.1:{http}",
        AMBERBLOB_PEER_LISTEN=f"127.0.0.1:{peer}",
        AMBERBLOB_CLUSTER_REGISTRY=f"embedded://{data}/registry.sqlite3",
        AMBERBLOB_CLUSTER_SECRET="s" * 32,
        AMBERBLOB_CLUSTER_REPLICAS="1",
        AMBERBLOB_CLUSTER_SLOT_COUNT="8",
        AMBERBLOB_CLUSTER_BOOTSTRAP_NODES="one",
        AMBERBLOB_STORAGE_RESERVE="16MiB",
    )
    try:
        until_ready(node, http)
        health = stages[1].last("HEALTHCHECK")
        check = [word.replace(":7700", f":{http}") for word in words_of(health.partition(" CMD ")[2])]
        assert f":{http}/healthz" in check[-1]
        assert words(as_user(image, python, *check[1:])) == (0, b"")
        assert (data / "disk/disk.toml").stat().st_uid == USER
    finally:
        node.terminate()
        ended, output = words(node)
    assert ended == 0, output
    unhealthy, _ = words(as_user(image, python, *check[1:]))
    assert unhealthy != 0, "the check finds that nobody answers"


def words(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """How it ended, and what it said."""
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output


def until_ready(node: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and node.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    node.kill()
    raise AssertionError(f"not ready: {node.communicate()[0].decode()}")


assert sys.platform == "linux", "containers, and these tests, are of Linux"
