"""The digests that a client gives along with a body. Pure.

``Content-Digest`` is RFC 9530: a structured-field dictionary of byte sequences, ``sha-256=:<base64>:``.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping

from multidict import CIMultiDictProxy

from amberblob.errors import BadRequest

Digest = tuple[str, bytes]

ALGORITHMS: Mapping[str, int] = {"blake3": 32, "sha-256": 32, "sha-512": 64}
"""What is verified, and how many bytes each digest has."""

_HEX = re.compile(r"\A[0-9a-fA-F]{64}\Z")
_MEMBER = re.compile(r"\A([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?:[ \t]*;[^,]*)?\Z")


def digests_of(headers: CIMultiDictProxy[str]) -> tuple[Digest, ...]:
    """Every digest that the body must have.

    Raises:
        BadRequest: bad-header.
    """
    found: list[Digest] = []
    for value in headers.getall("X-Amber-Content-Blake3", ()):
        if _HEX.match(value) is None:
            raise _bad("X-Amber-Content-Blake3 must be 64 hexadecimal digits.")
        found.append(("blake3", bytes.fromhex(value)))
    lines = headers.getall("Content-Digest", ())
    if lines:
        found.extend(parse_content_digest(",".join(lines)))
    return tuple(found)


def parse_content_digest(value: str) -> list[Digest]:
    """The digests of a Content-Digest header whose algorithms are known.

    Raises:
        BadRequest: bad-header; also when none is known, as the client would believe it verified.
    """
    found: dict[str, bytes] = {}
    for member in value.split(","):
        match = _MEMBER.match(member.strip(" \t"))
        if match is None:
            raise _bad("Content-Digest must look like sha-256=:<base64>: (RFC 9530).")
        algorithm, encoded = match.groups()
        if algorithm not in ALGORITHMS:
            continue
        try:
            digest = binascii.a2b_base64(encoded.encode(), strict_mode=True)
        except binascii.Error:
            raise _bad(f"Content-Digest: the {algorithm} digest is not base64.") from None
        if len(digest) != ALGORITHMS[algorithm]:
            raise _bad(f"Content-Digest: a {algorithm} digest has {ALGORITHMS[algorithm]} bytes, not {len(digest)}.")
        found[algorithm] = digest
    if not found:
        raise _bad(f"Content-Digest names no algorithm that is verified here. Use one of {', '.join(ALGORITHMS)}.")
    return list(found.items())


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, code="bad-header")
