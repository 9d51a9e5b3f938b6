"""A configuration as TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from amberblob.config.sections import SECTIONS, NodeConfig
from amberblob.config.values import Duration, Keep, Secret, SizeBytes, format_duration, format_size


def render_config(config: NodeConfig) -> str:
    """TOML that :func:`load_config` reads back to an equal configuration. Secrets without a file are in it."""
    sections: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
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
    if isinstance(value, Duration | Keep):
        return format_duration(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return {name: _rendered(part) for name, part in msgspec.structs.asdict(value).items() if part is not None}
    return [_rendered(part) for part in value] if isinstance(value, tuple) else value
