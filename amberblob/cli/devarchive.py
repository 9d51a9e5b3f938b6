"""The ``[archive]`` section that ``amberblob dev --archive`` writes into each node's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from amberblob.cli.output import CommandFailed

_FILE = "file://"
_S3 = "s3://"


def archive_keys(archive: str | None, endpoint: str | None) -> dict[str, str]:
    """What the user gave as keys of ``[archive]``; empty: nothing was given, and the files stay as they are.

    Args:
        archive: ``s3://bucket/prefix``, ``file:///folder``, or a folder, which is made, and marked as an archive.
        endpoint: of an S3 that is not Amazon's.

    Raises:
        CommandFailed: neither an S3 URL nor a folder, or the two do not go together.
    """
    if archive is None:
        if endpoint is not None:
            raise CommandFailed(
                "--archive-endpoint says where an S3 is, and no archive was given", "Add --archive s3://BUCKET."
            )
        return {}
    if archive.startswith(_S3):
        if not urlsplit(archive).netloc:
            raise CommandFailed(f"{archive!r} names no bucket", "Give --archive s3://BUCKET or s3://BUCKET/PREFIX.")
        return {"target": archive, "endpoint": endpoint or ""}
    if endpoint is not None:
        raise CommandFailed(
            "--archive-endpoint is for an S3 archive, not for a folder", "Leave it out, or give --archive s3://BUCKET."
        )
    if archive.startswith(_FILE):
        folder = Path(unquote(archive.removeprefix(_FILE)))
        if not folder.is_absolute():
            raise CommandFailed(
                f"{archive!r} is not a whole path", "Write file:///folder with three slashes, or the folder alone."
            )
    elif "://" in archive:
        raise CommandFailed(f"{archive!r} is no archive", "It is s3://BUCKET, s3://BUCKET/PREFIX, or a folder.")
    else:
        folder = Path(archive).absolute()
    from archive.targets.folder import prepare_folder

    prepare_folder(folder)
    return {"target": folder.as_uri(), "endpoint": ""}


def with_archive(document: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """A node's file with these keys in its ``[archive]``. One without any rule gets one: everything, away from the disk.

    Raises:
        CommandFailed: it has another archive already. What went there is found there only.
    """
    section = document.get("archive")
    kept = dict(section) if isinstance(section, Mapping) else {}
    if not keys:
        return dict(document)
    if kept.get("target", keys["target"]) != keys["target"]:
        raise CommandFailed(
            f"this cluster's archive is {kept['target']}, and what is there is found nowhere else",
            "Leave out --archive; for another archive give another folder with --data.",
        )
    kept.update({name: value for name, value in keys.items() if value})
    if not keys["endpoint"]:
        kept.pop("endpoint", None)
    kept.setdefault("rules", [{"prefix": "", "action": "archive-and-evict"}])
    return {**document, "archive": kept}
