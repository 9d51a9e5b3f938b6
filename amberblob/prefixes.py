"""Prefixes, groups and what comes after them, in byte order of UTF-8 (which is code point order of Python's str)."""

from __future__ import annotations

_LAST = "\U0010ffff"
_SURROGATES = range(0xD800, 0xE000)


def after_prefix(prefix: str) -> str | None:
    """The smallest text greater than everything that begins with ``prefix``; None when there is none."""
    text = prefix
    while text:
        last = ord(text[-1])
        if last < ord(_LAST):
            following = last + 1
            if following in _SURROGATES:
                following = _SURROGATES.stop
            return text[:-1] + chr(following)
        text = text[:-1]
    return None


def group_of(path: str, prefix: str, delimiter: str) -> str | None:
    """The group that a path falls into: its text up to and with the first delimiter after the prefix."""
    if not delimiter:
        return None
    found = path.find(delimiter, len(prefix))
    return None if found < 0 else path[: found + len(delimiter)]
