"""``python -m bench.rivals.install``: get what the rivals need, and say what was done; ``make bench-rivals``.

Swift comes from PyPI, pinned with its dependencies by hashes (``swift.lock``), into a virtual environment of its own;
memcached and Ceph are Debian's. What cannot be installed here is said with the command that would do it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rivals import radosgw, swift
from bench.rivals.common import NotInstalled

_LOCK = Path(__file__).parent / "swift.lock"
_PIP = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something to install: how one sees its version, and the Debian packages that it is or needs."""

    title: str
    packages: tuple[str, ...]
    version: Callable[[], str]


SWIFT = Part(
    title="Swift",
    packages=("liberasurecode-dev", "memcached"),
    version=lambda: (swift.find_memcached(), swift.find_version(swift.VENV))[1],
)
RADOSGW = Part(
    title="radosgw",
    packages=("radosgw", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common"),
    version=radosgw.find_version,
)


def found(part: Part) -> str | None:
    """Its version, or None where it is not whole."""
    try:
        return part.version()
    except NotInstalled:
        return None


def apt_command(packages: Sequence[str]) -> list[str]:
    """What installs Debian packages without questions."""
    return ["apt-get", "install", "--yes", "--no-install-recommends", *packages]


def venv_commands(venv: Path, python: str) -> list[list[str]]:
    """What makes Swift's own virtual environment."""
    return [[python, "-m", "venv", str(venv)], [str(venv / "bin" / "python"), *_PIP, "-r", str(_LOCK)]]


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Those that dpkg does not know as installed; all of them where there is no dpkg."""
    missing = []
    for package in packages:
        command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return list(packages)
        if done.stdout != "installed":
            missing.append(package)
    return missing


def install_packages(packages: Sequence[str]) -> str:
    """Have apt-get install those that are missing; what is in the way, or nothing."""
    missing = missing_packages(packages)
    command = apt_command(missing)
    if not missing:
        return ""
    if shutil.which("apt-get") is None:
        return f"there is no apt-get here; get these packages of your system: {' '.join(missing)}"
    if os.geteuid() != 0:
        return f"needs root: sudo {' '.join(command)}"
    return _run(command, {"DEBIAN_FRONTEND": "noninteractive"})


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    print("  " + " ".join(command), flush=True)
    try:
        subprocess.run(
            command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"failed: {error}"
    return ""


def _install_swift() -> str:
    problems = [install_packages(SWIFT.packages)]  # pip may do without liberasurecode-dev: most machines have a wheel
    for command in venv_commands(swift.VENV, sys.executable):
        problems.append(_run(command))
    return "; ".join(filter(None, problems))


def main() -> int:
    """Install what is missing; returns 0 if all is there, 1 if something is not."""
    complete = True
    for part, install in ((SWIFT, _install_swift), (RADOSGW, lambda: install_packages(RADOSGW.packages))):
        version = found(part)
        if version is not None:
            print(f"{part.title} {version}: already installed")
            continue
        print(f"{part.title}: installing", flush=True)
        problem, version = install(), found(part)
        if version is not None:
            print(f"{part.title} {version}: installed")
        else:
            complete = False
            print(f"{part.title}: not installed; {problem or 'it is still not whole'}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
