"""What the client makes of attempts that end in different ways."""

from __future__ import annotations

from typing import Any

import pytest

from amberblob.client.http import Request
from amberblob.client.retry import Endpoints, Retrying, RetryPolicy
from amberblob.errors import (
    AmberError,
    DigestMismatch,
    InsufficientStorage,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
    Unauthorized,
    VersionConflict,
)

FULL = InsufficientStorage.of(["node-1", "node-2"])
UNKNOWN = OutcomeUnknown("504 of node-1")


class Scripted:
    """Nodes that answer one after another as they are told."""

    def __init__(self, *answers: AmberError) -> None:
        self.answers = list(answers)

    async def fetch(self, endpoint: str, request: Request, *, within_s: float | None = None) -> Any:
        raise self.answers.pop(0)

    send = fetch


async def told(*answers: AmberError) -> AmberError:
    """What a PUT ends with."""
    retrying = Retrying(Scripted(*answers), Endpoints(["http://a:1", "http://b:1"]), RetryPolicy())  # type: ignore[arg-type]
    headers = {"X-Amber-Write-Id": "w", "X-Amber-Attempt": "first"}
    with pytest.raises(AmberError) as caught:
        await retrying.fetch(Request(method="PUT", target="/objects/x", headers=headers, writes=True))
    return caught.value


async def test_full_disks_hide_no_attempt_before_them():
    """Found by the nemesis: "nothing was stored" was said of a write that appeared as the newest version."""
    error = await told(UNKNOWN, FULL)
    assert isinstance(error, OutcomeUnknown)


@pytest.mark.parametrize("before", [[], [QuorumUnavailable("two are down")]])
async def test_full_disks_are_full_disks_when_nothing_was_in_doubt(before):
    assert await told(*before, FULL) is FULL


@pytest.mark.parametrize("refused", [PreconditionFailed("it exists"), NotFound("none"), VersionConflict("older")])
async def test_a_refusal_for_what_the_object_is_speaks_for_all_attempts(refused):
    assert await told(UNKNOWN, refused) is refused


@pytest.mark.parametrize("error", [DigestMismatch("garbled on its way"), Unauthorized("another token")])
async def test_what_befalls_one_attempt_hides_no_other(error):
    assert isinstance(await told(UNKNOWN, error), OutcomeUnknown)
    assert await told(error) is error
