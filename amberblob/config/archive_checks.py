"""What no single value of ``[archive]`` shows."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from amberblob.config.complaint import Complaint
from amberblob.config.sections import (
    ARCHIVE_EVERY_S_MIN,
    LONE_BYTES_MAX,
    LONE_BYTES_MIN,
    PACK_BYTES_MAX,
    PACK_BYTES_MIN,
    PART_BYTES_MAX,
    PART_BYTES_MIN,
    RATE_BYTES_PER_S_MIN,
    ArchiveRule,
    ArchiveSection,
)
from amberblob.config.values import format_duration, parse_hours, split_address

_BUCKET = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]\Z")
_PREFIX_PART = re.compile(r"\A[A-Za-z0-9!_.*'()=+@,:-]{1,200}\Z")
_PREFIX_CHARS_MAX = 400
"""Names below it have up to 512 characters; S3 allows 1,024 bytes together."""
_ENDPOINT = re.compile(r"\A(https?)://([^/?#@\s]+)/?\Z")


class ArchiveChecks:
    """All checks of one ``[archive]``."""

    def __init__(self, complaint: Complaint) -> None:
        self._error = complaint

    def check(self, archive: ArchiveSection, disk: Path) -> None:
        """Raises ConfigError at the first mistake; ``disk``: the node's folder."""
        self._target(archive, disk)
        self._endpoint(archive)
        self._sizes(archive)
        self._rules(archive)
        self._jobs(archive)

    def _target(self, archive: ArchiveSection, disk: Path) -> None:
        target = archive.target
        scheme, separator, rest = target.partition("://")
        if not target:
            return  # what says how S3 is reached may stand there all the same: an import takes from another bucket
        if not separator or scheme not in ("s3", "file"):
            raise self._error("archive", "target", target)
        elif scheme == "s3":
            self._bucket(target, rest)
        else:
            self._folder(target, rest, disk)

    def _bucket(self, target: str, rest: str) -> None:
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise self._error("archive", "target", target, "names no bucket: wants s3://bucket or s3://bucket/prefix")
        if "@" in bucket:
            problem = "holds credentials, which everybody would see: put them into credentials_file or the environment"
            raise self._error("archive", "target", target, problem)
        if not _BUCKET.match(bucket):
            problem = f"{bucket!r} is no name of a bucket: 3 or more letters, digits, dots and hyphens"
            raise self._error("archive", "target", target, problem)
        parts = prefix.rstrip("/").split("/") if prefix else []
        if len(prefix) > _PREFIX_CHARS_MAX:
            raise self._error("archive", "target", target, f"wants a prefix of at most {_PREFIX_CHARS_MAX} characters")
        if any(part in (".", "..") or not _PREFIX_PART.match(part) for part in parts):
            problem = "wants a prefix of letters, digits and -_.=+@,:!*'() between single slashes"
            raise self._error("archive", "target", target, problem)

    def _folder(self, target: str, rest: str, disk: Path) -> None:
        folder = Path(unquote(rest))
        if not rest.startswith("/") or folder == Path("/") or ".." in folder.parts:
            problem = "wants a whole path after file://, for example file:///mnt/archive"
            raise self._error("archive", "target", target, problem)
        if "?" in rest or "#" in rest:
            raise self._error(
                "archive", "target", target, "wants nothing after the folder; write ? as %3F and # as %23"
            )
        if folder.is_relative_to(disk) or disk.is_relative_to(folder):
            problem = f"and the node's disk ({disk}) lie one in the other; what goes from the disk must be elsewhere"
            raise self._error("archive", "target", target, problem)

    def _endpoint(self, archive: ArchiveSection) -> None:
        if not archive.endpoint:
            return
        match = _ENDPOINT.match(archive.endpoint)
        try:
            port = ":443" if match and match[1] == "https" else ":80"
            host = match[2] if match else ""
            split_address(host if re.search(r":[0-9]+\Z", host) else host + port)
        except ValueError:
            match = None
        if match is None or host.startswith(":"):
            problem = "wants http://host:port or https://host, nothing after it, and no user name in it"
            raise self._error("archive", "endpoint", archive.endpoint, problem)

    def _sizes(self, archive: ArchiveSection) -> None:
        for key, lowest, highest in (
            ("pack_size", PACK_BYTES_MIN, PACK_BYTES_MAX),
            ("lone_size", LONE_BYTES_MIN, LONE_BYTES_MAX),
            ("part_size", PART_BYTES_MIN, PART_BYTES_MAX),
        ):
            if not lowest <= getattr(archive, key) <= highest:
                raise self._error("archive", key, getattr(archive, key))
        if archive.lone_size > archive.pack_size:
            problem = f"wants at most pack_size ({archive.pack_size}): a smaller chunk must fit a pack"
            raise self._error("archive", "lone_size", archive.lone_size, problem)
        if 0 < archive.bytes_per_s < RATE_BYTES_PER_S_MIN:
            raise self._error("archive", "bytes_per_s", archive.bytes_per_s)

    def _rules(self, archive: ArchiveSection) -> None:
        prefixes = [rule.prefix for rule in archive.rules]
        for rule in archive.rules:
            named = f"the rule for prefix {rule.prefix!r}"
            if prefixes.count(rule.prefix) > 1:
                raise self._error("archive", "rules", prefixes, f"prefix {rule.prefix!r} has two rules")
            if not archive.target and rule.action != "keep":
                problem = f"{named} wants [archive] target: there is nowhere to send it"
                raise self._error("archive", "rules", prefixes, problem)
            if problem := contradiction(rule):
                raise self._error("archive", "rules", prefixes, f"{named} {problem}")

    def _jobs(self, archive: ArchiveSection) -> None:
        seen: set[tuple[str, str]] = set()
        for number, job in enumerate(archive.jobs, 1):
            named = f"no. {number} ({job.job})"
            shown = [each.job for each in archive.jobs]
            if not archive.target:
                raise self._error("archive", "jobs", shown, f"{named} wants [archive] target: there is no archive")
            if job.every < ARCHIVE_EVERY_S_MIN:
                problem = f"{named}: every = {format_duration(job.every)}: wants at least 1m"
                raise self._error("archive", "jobs", shown, problem)
            try:
                parse_hours(job.between)
            except ValueError as error:
                problem = f'{named}: between = {job.between!r}: {error}; wants hours as "01:00-05:30", by UTC'
                raise self._error("archive", "jobs", shown, problem) from error
            if (job.job, job.between) in seen:
                raise self._error("archive", "jobs", shown, f"{named} is there twice for the same hours")
            seen.add((job.job, job.between))


def contradiction(rule: ArchiveRule) -> str:
    """What a rule says that its action has no use for; empty: nothing."""
    conditions = {
        "older_than": rule.older_than,
        "not_read_for": rule.not_read_for,
        "larger_than": rule.larger_than,
        "versions": rule.versions == "old",
    }
    marks = {"evict_above": rule.evict_above, "evict_to": rule.evict_to}
    if rule.action == "write-through" and (given := [key for key, value in conditions.items() if value]):
        return f"has {given[0]}, but write-through is for every PUT at once; leave it out, or use archive"
    if rule.action == "keep" and (given := [key for key, value in conditions.items() if value]):
        return f"has {given[0]}, but keep sends nothing at any time; leave it out"
    if rule.action != "archive-and-evict" and (given := [key for key, value in marks.items() if value]):
        return f"has {given[0]}, but {rule.action} lets no bytes go; leave it out, or use archive-and-evict"
    if rule.evict_to and not rule.evict_above:
        return "has evict_to without evict_above: bytes go at once then; give both, or neither"
    if rule.evict_to > rule.evict_above:
        return f"has evict_to = {rule.evict_to:g}: wants at most evict_above ({rule.evict_above:g})"
    return ""
