"""What the tests of ``deploy/`` share: files, schemas, and configurations as a node would read them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from amberblob.config import NodeConfig, load_config

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
SCHEMAS = Path(__file__).parent / "schemas"


def documents(path: Path) -> list[Any]:
    """Every YAML document in a file."""
    return list(yaml.safe_load_all(path.read_text()))


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / name).read_text())


def as_a_node_reads_it(folder: Path, text: str, environment: Mapping[str, str], files: Mapping[str, str]) -> NodeConfig:
    """The configuration of ``text`` and ``environment``; ``files``: by path, what lies there in the container.

    Raises:
        ConfigError: as for the node itself.
    """
    names = {path: str(folder / path.replace("/", "_")) for path in files}
    for path, content in files.items():
        Path(names[path]).write_text(content)
    for path, name in names.items():
        text = text.replace(f'"{path}"', f'"{name}"')
    config = folder / "node.toml"
    config.write_text(text)
    return load_config(config, {name: names.get(value, value) for name, value in environment.items()})


def missing(why: str) -> None:
    """Skip; where everything must run, fail."""
    if os.environ.get("AMBERBLOB_REQUIRE_SERVERS") == "1":
        pytest.fail(why)
    pytest.skip(why)


def seconds(text: str | int) -> float:
    """Of Compose's and systemd's ``60s``, ``10m`` or ``60``."""
    match = re.fullmatch(r"(\d+)(s|m|min)?", str(text))
    assert match is not None, text
    return int(match[1]) * (60 if match[2] in ("m", "min") else 1)


STOP_S_MIN = 45
"""A node that stops gives requests [limits] shutdown_timeout_s = 10 s, their leftovers as much, peers 5 s and more; then it syncs."""
