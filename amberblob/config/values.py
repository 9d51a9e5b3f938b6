"""The kinds of values that TOML does not have: secrets, sizes, durations, addresses."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from amberblob.limits import GIB, KIB, MIB

DAY_S = 86_400
DURATION_DAYS_MAX = 36_500
"""A hundred years: beyond it somebody means "all", and milliseconds since 1970 would leave what other systems take."""

_SIZE_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024 * GIB}
_SIZE_UNITS |= {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": DAY_S}
_NUMBER_AND_UNIT = re.compile(r"\A([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\Z")
_HOURS = re.compile(r"\A([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])\Z")
_FOR_EVER = "all"


class Secret:
    """A text that does not show itself in logs and tracebacks. False when empty."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"


class SizeBytes(int):
    """A number of bytes; in the configuration an integer or a text as ``8MiB``."""


def parse_size(text: str) -> int:
    """Bytes of ``8MiB``, ``64 KiB``, ``1.5GB`` (decimal) or ``4096``.

    Raises:
        ValueError: it is none of these, or no whole number of bytes.
    """
    match = _NUMBER_AND_UNIT.match(text.strip())
    factor = _SIZE_UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size")
    size_bytes = Fraction(match[1]) * factor
    if size_bytes.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    return size_bytes.numerator


def format_size(size_bytes: int) -> str:
    """The shortest exact text that :func:`parse_size` reads back."""
    for unit, factor in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


class Duration(float):
    """A number of seconds; in the configuration a number or a text as ``12h``."""


class Keep(float):
    """For how many seconds something is kept; in the configuration also ``all``: for ever (infinity)."""

    @property
    def for_ever(self) -> bool:
        """Whether it never ends."""
        return math.isinf(self)


def parse_duration(text: str) -> float:
    """Seconds of ``30s``, ``15 m``, ``12h``, ``1.5d`` or ``90`` (seconds).

    Raises:
        ValueError: it is none of these, or longer than a hundred years.
    """
    match = _NUMBER_AND_UNIT.match(text.strip())
    factor = _TIME_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no duration")
    return check_duration(float(Fraction(match[1]) * factor))


def check_duration(seconds: float) -> float:
    """The number itself, if it is a duration. Raises ValueError."""
    if not 0 <= seconds <= DURATION_DAYS_MAX * DAY_S:  # false for what is no number, too
        raise ValueError(f"{seconds} is no duration")
    return seconds


def parse_keep(text: str) -> float:
    """As :func:`parse_duration`; ``all`` is infinity. Raises ValueError."""
    return math.inf if text.strip() == _FOR_EVER else parse_duration(text)


def parse_hours(text: str) -> tuple[int, int] | None:
    """Minutes after midnight at which ``01:00-05:30`` begins and ends; ``22:00-04:00`` goes over midnight. None: empty, at any time.

    Raises:
        ValueError: it is neither, or begins when it ends.
    """
    if not text:
        return None
    match = _HOURS.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no span of hours")
    begin, end = (int(match[part]) * 60 + int(match[part + 1]) for part in (1, 3))
    if begin == end:
        raise ValueError(f"{text!r} begins when it ends")
    return begin, end


def format_duration(seconds: float) -> str:
    """The shortest exact text that :func:`parse_keep` reads back."""
    if math.isinf(seconds):
        return _FOR_EVER
    for unit, factor in (("d", DAY_S), ("h", 3600), ("m", 60)):
        if seconds and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    # repr() would write small numbers as 1e-07, which nobody reads back.
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ValueError: it is neither, or the port is not 1 to 65535.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets")
    if not separator or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{text!r} is not host:port with a port from 1 to 65535")
    if any(character.isspace() or character in "/@" for character in host):
        raise ValueError(f"{text!r}: the host is a name or an address, nothing more")
    return host, int(port)


def without_password(url: str) -> str:
    """A URL to be shown: what stands before its ``@`` is not."""
    return re.sub(r"//.*@", "//***@", url)
