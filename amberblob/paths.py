"""Object names and their percent-encoding, shared by the server and the client. Pure.

A path is 1 to 1,024 bytes of UTF-8. Nothing is ever normalised: ``a//b``, ``/a`` and ``a/`` are names of their
own, and a name that another program could normalise into a different one (``.`` and ``..`` as segments,
backslashes) or that a C string cannot hold (NUL) is refused rather than repaired. A repair would let two
spellings of one name meet, or worse, let one name reach another one's bytes.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from amberblob.errors import BadRequest, Forbidden
from amberblob.limits import PATH_BYTES_MAX

RESERVED = ".amber"
"""The product's own corner of the name space: this name, and everything below it."""

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LOOSE_SLASH = re.compile(r"(?:\A|(?<=/))/")
_DOT_SEGMENTS = frozenset((".", ".."))


def percent_decode(text: str) -> bytes:
    """The bytes that percent-encoded text stands for; surrogate escapes stand for the raw bytes they came from.

    Raises:
        ValueError: a ``%`` that two hexadecimal digits do not follow.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if "%" not in text:
        return raw
    if _BAD_ESCAPE.search(text) is not None:
        raise ValueError("a '%' must be followed by two hexadecimal digits")
    return unquote_to_bytes(raw)


def decode_path(encoded: str) -> str:
    """The name that a percent-encoded path means, checked.

    Raises:
        BadRequest: bad-path (bad escape, not UTF-8, empty, NUL, backslash, dot segment) or path-too-long.
        Forbidden: reserved-path.
    """
    try:
        raw = percent_decode(encoded)
    except ValueError as error:
        raise BadRequest(
            f"The path's percent-encoding is broken: {error}. Encode '%' itself as %25.", code="bad-path"
        ) from None
    if len(raw) > PATH_BYTES_MAX:
        raise _too_long(len(raw))
    try:
        # Python's decoder is strict: overlong forms and encoded surrogates are errors.
        path = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"The path is not UTF-8 (byte {error.start} of it). Encode names as UTF-8 before percent-encoding them.",
            code="bad-path",
        ) from None
    _check_name(path)
    return path


def check_path(path: str) -> str:
    """The same checks for a name that is not encoded; returns it unchanged. Raises as :func:`decode_path` does."""
    try:
        size_bytes = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        raise BadRequest("The path cannot be written as UTF-8: it holds a lone surrogate.", code="bad-path") from None
    if size_bytes > PATH_BYTES_MAX:
        raise _too_long(size_bytes)
    _check_name(path)
    return path


def encode_path(path: str) -> str:
    """The path as it stands in a URL after ``/objects/``.

    Slashes stay readable, except those that a proxy might merge (a leading one, or one that follows another):
    they are written as ``%2F``, which means the same.
    """
    return _LOOSE_SLASH.sub("%2F", quote(path, safe="/"))


def _too_long(size_bytes: int) -> BadRequest:
    return BadRequest(
        f"The path is {size_bytes} bytes long; at most {PATH_BYTES_MAX} bytes (UTF-8, decoded) are allowed. Use a shorter name.",
        code="path-too-long",
    )


def _check_name(path: str) -> None:
    if not path:
        raise BadRequest("The path is empty: an object's name has at least one byte.", code="bad-path")
    if "\0" in path:
        raise BadRequest("The path holds a NUL byte. Use another name.", code="bad-path")
    if "\\" in path:
        raise BadRequest("The path holds a backslash. Separate parts of a name by '/'.", code="bad-path")
    if "." in path:
        # "." and ".." can only be segments where a dot stands first or follows a slash.
        if not _DOT_SEGMENTS.isdisjoint(path.split("/")):
            raise BadRequest("The path has '.' or '..' as a segment. Use the full name without them.", code="bad-path")
        if path.startswith(RESERVED) and path[len(RESERVED) : len(RESERVED) + 1] in ("", "/"):
            raise Forbidden(
                f"Names below {RESERVED}/ belong to AmberBlob itself. Use another name.", code="reserved-path"
            )
