"""What lies in folders that somebody changes meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in order; what goes meanwhile is not there. (A glob takes that for an error.)"""
    return sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names)
