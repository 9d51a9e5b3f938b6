"""The target that ``[archive]`` names, and buckets to import from. S3's library is imported only when S3 is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amberblob.config import ArchiveSection
from amberblob.errors import ConfigError
from archive.targets.folder import FolderTarget
from archive.targets.interface import Source, Target
from archive.targets.names import split_file, split_s3, without_user
from archive.traffic import Traffic

if TYPE_CHECKING:
    from archive.targets.s3 import S3Requests


def open_target(section: ArchiveSection, traffic: Traffic) -> Target:
    """The archive's target. Nothing is asked of it yet: :meth:`~archive.targets.interface.Target.probe` tells whether it works.

    It is for who does not wait (clients' reads); jobs use ``target.paced(traffic.job(...))``.

    Raises:
        ConfigError: there is no target, or one that cannot be.
    """
    match section.target.partition("://")[0]:
        case "s3":
            from archive.targets.s3target import S3Target

            bucket, prefix = split_s3(section.target)
            return S3Target(_requests(section, traffic), bucket, prefix)
        case "file":
            return FolderTarget(Path(split_file(section.target)), traffic, timeout_s=section.timeout_s)
        case _:
            raise ConfigError(
                f"[archive] target is {without_user(section.target)!r}; it wants s3://bucket/prefix or file:///folder"
            )


class Sources:
    """Buckets of others, opened when they are asked for, with the endpoint and credentials of ``[archive]``."""

    def __init__(self, section: ArchiveSection, traffic: Traffic) -> None:
        self._section = section
        self._traffic = traffic
        self._requests: S3Requests | None = None
        self._open: dict[str, Source] = {}

    def find(self, url: str) -> tuple[Source, str]:
        """The bucket of ``s3://bucket/rest``, whole, and the rest: a key of it, or what its keys begin with. Raises: ConfigError."""
        bucket, rest = split_s3(url)
        if bucket not in self._open:
            from archive.targets.s3target import S3Target

            if self._requests is None:
                self._requests = _requests(self._section, self._traffic)
            self._open[bucket] = S3Target(self._requests, bucket, "", strict=False)
        return self._open[bucket], rest

    async def close(self) -> None:
        """Let go of connections and threads."""
        self._open.clear()
        if self._requests is not None:
            self._requests.close()
            self._requests = None


def open_source(url: str, section: ArchiveSection, traffic: Traffic) -> Source:
    """One bucket of somebody else's, whole, whatever comes after its name. Its names are its keys. Raises: ConfigError."""
    return Sources(section, traffic).find(url)[0]


def _requests(section: ArchiveSection, traffic: Traffic) -> S3Requests:
    try:
        from archive.targets.s3 import S3Requests
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("boto3", "botocore"):
            raise
        raise ConfigError("an archive in S3 needs boto3, which is not installed: pip install 'amberblob[s3]'") from None
    return S3Requests(section, traffic)
