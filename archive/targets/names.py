"""Names of objects, and the URLs of where they are. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from amberblob.errors import ArchiveMissing, ConfigError

NAME_CHARS_MAX = 512
PROBES = "probe/"
"""Small objects that are stored to see what becomes of them, and deleted at once."""
LIST_MAX = 1000
DELETE_MAX = 1000
PIECE_BYTES_MAX = 1024 * 1024
"""Of what :meth:`archive.targets.interface.Target.read` yields."""

_NAME = re.compile(r"[A-Za-z0-9!_.*'()=+,@-]+(/[A-Za-z0-9!_.*'()=+,@-]+)*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def check_name(name: str) -> None:
    """Refuse what is no name of an archive's object: it may have come from another node, and must not lead out of the archive.

    Raises:
        ArchiveMissing: there cannot be such an object.
    """
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name) or not _stays(name):
        raise ArchiveMissing(f"{name[:NAME_CHARS_MAX]!r} cannot be the name of an object of the archive")


def _stays(name: str) -> bool:
    """Whether no part is hidden, or leads elsewhere: all of these begin with a dot."""
    return not any(part.startswith(".") for part in name.split("/"))


def check_prefix(prefix: str) -> None:
    """As :func:`check_name`, of the beginning of a name: empty, or cut anywhere. Raises: ArchiveMissing."""
    if prefix:
        check_name(prefix.removesuffix("/") if prefix != "/" else prefix)


def split_s3(url: str) -> tuple[str, str]:
    """Bucket and the rest of ``s3://bucket/rest``, which is taken as it is: keys may have any characters. Raises: ConfigError."""
    scheme, _, after = url.partition("://")
    bucket, _, rest = after.partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"not an S3 URL: {without_user(url)!r}; it looks like s3://bucket or s3://bucket/prefix")
    return bucket, rest


def s3_url(bucket: str, key: str) -> str:
    """What :func:`split_s3` takes apart."""
    return f"s3://{bucket}/{key}"


def split_file(url: str) -> str:
    """The absolute path of ``file:///path``. Raises: ConfigError."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if (
        parts.scheme != "file"
        or parts.netloc
        or not path.startswith("/")
        or parts.query
        or parts.fragment
        or "\0" in path
    ):
        raise ConfigError(f"not the URL of a folder: {without_user(url)!r}; it looks like file:///srv/archive")
    return path


def without_user(url: str) -> str:
    """A URL for messages: whatever stands before an ``@`` in its host may be a secret."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
