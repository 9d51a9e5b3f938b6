"""What an S3 server's refusals mean: from status, code and headers to the ArchiveError tree, with what was seen and what to do now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing, ArchiveUnavailable

_TEXT_CHARS_MAX = 300


class Throttled(ArchiveUnavailable):
    """The target says that this is too much, or too fast.

    Attributes:
        wait_s: that long it wants to be left alone; 0: it did not say.
    """

    def __init__(
        self,
        detail: str = "",
        wait_s: float = 0.0,
        *,
        code: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, code=code, extra=extra)
        self.wait_s = wait_s


class KeysRefused(ArchiveDenied):
    """Refused, perhaps because the keys are old: newer ones may help."""


class Unsupported(ArchiveError):
    """The server does not know this kind of request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer that is not the wanted one.

    Attributes:
        asked: what of whom, for messages: ``GET s3://bucket/key (http://host:port)``.
        bucket, region: as configured.
        status: of HTTP. code, message: the server's; of a HEAD the code is the status.
        headers: of the answer, names in lower case.
        now_ms: this machine's time, epoch milliseconds.
        foreign: the bucket is not that of the archive, but one that was imported from.
    """

    asked: str
    bucket: str
    region: str
    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    now_ms: int = 0
    foreign: bool = False

    @property
    def seen(self) -> str:
        """For messages."""
        text = " ".join(self.message.split())[:_TEXT_CHARS_MAX]
        code = "" if self.code in ("", str(self.status)) else f" {self.code}"
        return f"{self.asked}: {self.status}{code}" + (f" ({text})" if text and text != self.code else "")


_THROTTLES = frozenset({
    "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException",
    "RequestLimitExceeded", "TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded", "SlowDownRead", "SlowDownWrite",
})  # fmt: skip
_ON_THE_WAY = frozenset({
    "BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "RequestTimeout",
    "OperationAborted", "ConditionalRequestConflict", "NoSuchUpload", "InvalidPart", "InvalidPartOrder", "InternalError", "ServiceUnavailable",
})  # fmt: skip
_KEYS = {
    "InvalidAccessKeyId": "it does not know the access key",
    "SignatureDoesNotMatch": "the secret key is not the one of the access key",
    "ExpiredToken": "the temporary credentials have expired",
    "ExpiredTokenException": "the temporary credentials have expired",
    "TokenRefreshRequired": "the temporary credentials have expired",
    "RequestExpired": "the temporary credentials, or the request, have expired",
    "InvalidToken": "the session token is not valid",
    "InvalidSecurity": "the credentials are not valid",
    "NotSignedUp": "the account has no S3",
}
_WHERE_KEYS = "Mend the keys in the file that [archive] credentials_file and profile name, or in the node's usual AWS credentials; they are read again by themselves."
_REDIRECTS = frozenset({
    "PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
    "InvalidRegion", "301", "307",
})  # fmt: skip
_FULL = frozenset({"XMinioStorageFull", "InsufficientCapacity", "InsufficientStorage"})
_DENIED_ELSEWISE = frozenset({"InvalidObjectState", "QuotaExceeded"})
_UNKNOWN = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented"})


def classify(refusal: Refusal) -> ArchiveError:
    """The error that says whose fault it is, and what helps."""
    code, status, seen = refusal.code, refusal.status, refusal.seen
    if code in _THROTTLES or status == 429 or "reduce your request rate" in refusal.message.lower():
        return Throttled(
            f"{seen}. The target throttles; jobs slow down by themselves. If it goes on, lower [archive] parallel or requests_per_s.",
            _retry_after_s(refusal.headers),
        )
    if code == "RequestTimeTooSkewed":
        return ArchiveDenied(f"{seen}. {_skew(refusal)} Set this machine's clock (NTP); it goes on by itself then.")
    if code in _ON_THE_WAY:
        return ArchiveUnavailable(f"{seen}. This may be over soon: try again.")
    if code in _KEYS:
        return KeysRefused(f"{seen}. The target says that {_KEYS[code]}. {_WHERE_KEYS}")
    if refusal.foreign and (error := _of_source(refusal)) is not None:
        return error
    if code == "NoSuchBucket":
        return ArchiveDenied(
            f"{seen}. There is no bucket {refusal.bucket!r} there: make it, or mend [archive] target and endpoint. Nothing is given up as lost."
        )
    if code in _REDIRECTS or status in (301, 307, 308):
        return _elsewhere(refusal)
    if code == "InvalidObjectState":
        return ArchiveDenied(
            f"{seen}. It was moved to a cold storage class: restore it there, and end the lifecycle rule that moves it."
        )
    if code == "QuotaExceeded":
        return ArchiveDenied(
            f"{seen}. The quota of the bucket or its user is used up: raise it, or let `amberblob archive gc` make room."
        )
    if code in _FULL or status == 507:
        return ArchiveUnavailable(f"{seen}. The target is full: make room there; it goes on by itself then.")
    return _by_status(refusal)


def _of_source(refusal: Refusal) -> ArchiveError | None:
    """What an operator has to mend is not [archive] but what was imported from; None: it is nothing of that kind."""
    code, status, seen = refusal.code, refusal.status, refusal.seen
    if code == "NoSuchBucket":
        return ArchiveDenied(
            f"{seen}. There is no bucket {refusal.bucket!r} at the endpoint of [archive], which imports use as well. If an import begins: mend the "
            "source's URL. If it was imported from: bring the bucket back."
        )
    if code in _REDIRECTS or status in (301, 307, 308):
        region = refusal.headers.get("x-amz-bucket-region", "another region")
        return ArchiveDenied(
            f"{seen}. The source's bucket {refusal.bucket!r} is in {region}, not where [archive] region and endpoint are: check the source's URL, or "
            "copy what it has into a bucket there."
        )
    if status in (401, 403) and code not in _DENIED_ELSEWISE:
        return KeysRefused(
            f"{seen}. Check the source's URL: others' buckets (and, without ListBucket, missing objects) look like this, too. If it is right, the credentials of [archive], which imports use as "
            f"well, lack a right: they need s3:ListBucket and s3:GetObject on bucket {refusal.bucket!r}."
        )
    return None


def _by_status(refusal: Refusal) -> ArchiveError:
    seen, status, code = refusal.seen, refusal.status, refusal.code
    if code in _UNKNOWN or status in (405, 501):
        return Unsupported(f"{seen}. The server does not know this kind of request.")
    if code in ("NoSuchKey", "NoSuchVersion") or status == 404:
        return ArchiveMissing(f"{seen}. The object is gone; somebody or something else than this cluster removed it.")
    if code == "PreconditionFailed" or status == 412:
        return ArchiveDamaged(f"{seen}. The object was overwritten by somebody else since its ETag was noted.")
    if code == "InvalidRange" or status == 416:
        return ArchiveDamaged(f"{seen}. The object is shorter than it was when it was stored.")
    if status in (401, 403):
        return KeysRefused(
            f"{seen}. The credentials lack a right: the archive needs s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucket and "
            f"ListBucketMultipartUploads on bucket {refusal.bucket!r}. (Without ListBucket a missing object looks like this too.) {_WHERE_KEYS}"
        )
    if status >= 500 or status == 408:
        return ArchiveUnavailable(f"{seen}. The target fails: try again, and look at it if that goes on.")
    return ArchiveDenied(
        f"{seen}. The target does not take the request as it is: check [archive] endpoint, addressing and region."
    )


def _elsewhere(refusal: Refusal) -> ArchiveError:
    region = refusal.headers.get("x-amz-bucket-region", "")
    mend = f"set [archive] region to {region}" if region else "set [archive] region and endpoint to those of the bucket"
    return ArchiveDenied(
        f"{refusal.seen}. Bucket {refusal.bucket!r} is in another region than {refusal.region or 'the default one'!r}: {mend}."
    )


def _skew(refusal: Refusal) -> str:
    try:
        theirs_ms = int(parsedate_to_datetime(refusal.headers["date"]).timestamp() * 1000)
    except (KeyError, ValueError, TypeError):
        return "This machine's clock and the target's are too far apart."
    seconds = (refusal.now_ms - theirs_ms) / 1000
    return f"This machine's clock is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the target's."


def _retry_after_s(headers: dict[str, str]) -> float:
    """What the header ``Retry-After`` wants; a date in it is not looked at."""
    try:
        return min(max(float(headers.get("retry-after", "0")), 0.0), 60.0)
    except ValueError:
        return 0.0


def result_of(error: ArchiveError) -> str:
    """How a request ended, as :attr:`archive.traffic.Traffic.requests` counts it."""
    for kind, result in _RESULTS:
        if isinstance(error, kind):
            return result
    return "error"


_RESULTS: tuple[tuple[type[ArchiveError], str], ...] = (
    (Throttled, "throttled"),
    (ArchiveUnavailable, "unavailable"),
    (ArchiveDenied, "denied"),
    (ArchiveMissing, "missing"),
    (ArchiveDamaged, "damaged"),
)
