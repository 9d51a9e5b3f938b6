"""Reads a Dockerfile of the plain kind that ours is, and carries its steps out below a folder, without a container engine.

Paths of the image are below that folder, so a command's words that begin with one of :data:`PLACES` are led there. Users are
made in the folder's own ``etc/passwd``. What this cannot do it refuses, so that nothing passes unseen.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLACES = ("/opt/amberblob", "/etc/amberblob", "/var/lib/amberblob", "/src")
STEP_S_MAX = 300
CARRIED_OUT = frozenset({"RUN", "COPY", "WORKDIR", "ENV"})
NOTED = frozenset({"USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"})


@dataclass
class Stage:
    """One FROM and what follows."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """The text of the last such instruction."""
        return [text for name, text in self.steps if name == instruction][-1]


def read_dockerfile(text: str) -> list[Stage]:
    """Its stages. Raises ValueError for instructions that are not known here."""
    stages: list[Stage] = []
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    arguments: dict[str, str] = {}
    for line in filter(None, map(str.strip, lines.splitlines())):
        instruction, _, rest = line.partition(" ")
        rest = rest.strip()
        if instruction == "ARG" and not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base), name))
        elif instruction in CARRIED_OUT | NOTED and stages:
            stages[-1].steps.append((instruction, rest))
        else:
            raise ValueError(f"{instruction} is not known to the tests: {line}")
    return stages


def ignored(patterns: str, path: str) -> bool:
    """Whether ``.dockerignore`` keeps a path of the repository out: the last pattern that fits decides."""
    keep_out = False
    for line in patterns.splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.match(rf"{expression}(/|\Z)", path):
            keep_out = not line.startswith("!")
    return keep_out


def make_context(repository: Path, folder: Path) -> None:
    """What an engine would be sent of the repository: a copy without what ``.dockerignore`` keeps out."""
    patterns = (repository / ".dockerignore").read_text()
    for parent, folders, files in os.walk(repository):
        folders[:] = [name for name in folders if name not in (".git", ".venv", ".venv-lock", "__pycache__")]
        for name in files:
            source = Path(parent, name)
            path = str(source.relative_to(repository))
            if not ignored(patterns, path):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder / path)


def make_base(root: Path) -> None:
    """The Python that runs this, copied to where everybody may read it, in place of the base image."""
    prefix, name = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    unwanted = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "tkinter", "config-*", "*.a")
    library = Path(os.__file__).parent
    shutil.copytree(library, root / "base/lib" / name, ignore=unwanted, symlinks=True)
    for shared in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, root / "base/lib")
    (root / "base/bin").mkdir()
    shutil.copy2(Path(sys._base_executable).resolve(), root / "base/bin/python")  # type: ignore[attr-defined]


class Unfetched(Exception):
    """A package could not be downloaded: the index cannot be reached, or is too slow. That says nothing of the Dockerfile."""


_OFFLINE = re.compile(
    r"Retrying \(|Max retries exceeded|Connection(Error| broken| refused| reset)|timed out|name resolution|HTTP error 5\d\d"
)
"""What pip writes of an index that it cannot reach. A hash that is not the one of the lock file is none of these."""


class Image:
    """A stage that is carried out below ``root``. ``stages``: the folders of those before."""

    def __init__(self, stage: Stage, root: Path, context: Path, stages: Mapping[str, Path]) -> None:
        self.root = root
        self._stage = stage
        self._context = context
        self._stages = stages
        self._folder = root
        base = root / "base"
        self.environment = {"PATH": f"{base}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(root)}
        self.environment["LD_LIBRARY_PATH"] = f"{base}/lib"
        for place in ("etc", "tmp"):
            (root / place).mkdir(parents=True, exist_ok=True)
        for name in ("passwd", "group", "shadow", "gshadow"):
            (root / "etc" / name).touch()

    def inside(self, text: str) -> str:
        """The text with every path of the image led below the root."""
        return re.sub(rf"(?<![\w.])({'|'.join(PLACES)})(?=[/:\s\"']|\Z)", lambda match: f"{self.root}{match[1]}", text)

    def carry_out(self) -> None:
        """Every step. Raises AssertionError when one fails, :class:`Unfetched` when that is not its fault."""
        for instruction, text in self._stage.steps:
            match instruction:
                case "RUN":
                    self._run(text)
                case "COPY":
                    self._copy(shlex.split(text))
                case "WORKDIR":
                    self._folder = Path(self.inside(text))
                    self._folder.mkdir(parents=True, exist_ok=True)
                case "ENV":
                    name, _, value = text.partition("=")
                    self.environment[name] = self.inside(value)

    def _run(self, text: str) -> None:
        command = self.inside(text)
        # The cache of this machine stands in for the network; hashes are checked all the same.
        command = command.replace("--no-cache-dir ", "")
        command = re.sub(r"\b(groupadd|useradd) ", rf"\1 --prefix {shlex.quote(str(self.root))} ", command)
        pip = {"PIP_CACHE_DIR": str(Path.home() / ".cache/pip")}
        pip |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        pip |= {"PIP_DEFAULT_TIMEOUT": "20", "PIP_RETRIES": "2"}
        try:
            done = subprocess.run(
                ["/bin/sh", "-e", "-c", command],
                cwd=self._folder,
                env=self.environment | pip,
                capture_output=True,
                text=True,
                timeout=STEP_S_MAX,
            )
        except subprocess.TimeoutExpired as error:
            if "pip" in command:
                raise Unfetched(f"RUN {text}: not within {STEP_S_MAX} s") from error
            raise
        if done.returncode != 0 and "pip" in command and _OFFLINE.search(done.stdout + done.stderr):
            raise Unfetched(f"RUN {text}: {done.stderr[-1000:]}")
        assert done.returncode == 0, f"RUN {text}\n{done.stdout}\n{done.stderr}"

    def _copy(self, words: list[str]) -> None:
        source_root = self._context
        if words[0].startswith("--from="):
            source_root = self._stages[words.pop(0).removeprefix("--from=")]
        *sources, target_word = words
        target = Path(self.inside(target_word)) if target_word.startswith("/") else self._folder / target_word
        for name in sources:
            source = source_root / name.lstrip("/")
            if source == target:
                continue  # a virtual environment knows its own path: both stages may be carried out in one folder
            assert source.exists(), f"COPY {name}: is not there, or .dockerignore keeps it out"
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                into = target / source.name if target_word.endswith("/") else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, into)


def words_of(text: str) -> list[str]:
    """The words of an instruction in its JSON form."""
    words = json.loads(text)
    assert isinstance(words, list)
    return words
