"""What is asked of the archive's jobs: the body of ``POST /archive/jobs``, as clients write it and nodes read it."""

from __future__ import annotations

from typing import Literal

import msgspec

JobKind = Literal["run", "verify", "restore", "gc", "export", "recover", "import"]


class JobWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job, as somebody wants it.

    Attributes:
        kind: what is to be done.
        job: a ULID of the caller's own, by which a repeated request is known to be one; empty: a new one.
        prefix: only paths that begin with it.
        dry_run: tell what would be done, and do nothing.
        bytes_per_s, requests_per_s: at most so much per node; 0: as configured.
        source: of an import the bucket's URL; of a recover the archive's, if it is not the configured one.
        options: further ones of a kind, by name.
    """

    kind: JobKind
    job: str = ""
    prefix: str = ""
    dry_run: bool = False
    bytes_per_s: int = 0
    requests_per_s: float = 0.0
    source: str = ""
    options: dict[str, str] = {}
