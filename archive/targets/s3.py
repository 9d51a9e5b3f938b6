"""Requests to S3 by boto3, in threads: clients, credentials, errors. The only module that knows boto3.

boto3's own retries are off (``retrying`` does that), and so are the CRC checksums that it adds to every request since 1.36: servers that are
older than these refuse them, or store them as part of the content. Content-MD5 is sent instead, which every server checks.
Credentials are read again when their file has changed, and when the target refuses those that there are.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as failed
import botocore.loaders
import botocore.session
from botocore.config import Config
from urllib3.exceptions import HTTPError

from amberblob.clock import Clock, Randomness, SystemClock, SystemRandomness
from amberblob.config import ArchiveSection
from amberblob.errors import ArchiveDenied, ArchiveError, ArchiveUnavailable, ConfigError
from archive.targets.failures import KeysRefused, Refusal, classify, result_of
from archive.targets.s3keys import Keys
from archive.targets.threads import Closed, Threads
from archive.traffic import Traffic

_THREADS_FOR_READS = 32
_CONNECT_TIMEOUT_MAX_S = 10.0
_DEFAULT_REGION = "us-east-1"
_T = TypeVar("_T")


class S3Requests:
    """One S3 server (or Amazon), with the credentials for it. Buckets are told with each request.

    Attributes:
        section, traffic, clock, chance: as they were given.
    """

    def __init__(
        self,
        section: ArchiveSection,
        traffic: Traffic,
        *,
        clock: Clock | None = None,
        chance: Randomness | None = None,
    ) -> None:
        _check_endpoint(section.endpoint)
        self.section = section
        self.traffic = traffic
        self.clock = clock or SystemClock()
        self.chance = chance or SystemRandomness()
        threads = section.parallel + _THREADS_FOR_READS
        self._connections = 2 * threads
        self._threads = Threads(threads, "archive-s3")
        self._keys = Keys(self._make_client, section.credentials_file)

    @property
    def where(self) -> str:
        """The server, for messages."""
        return self.section.endpoint or f"Amazon S3, region {self.section.region or 'by the AWS configuration'}"

    async def attempt(
        self, kind: str, bucket: str, key: str, function: Callable[[Any], _T], *, finish: bool = False
    ) -> _T:
        """One request: ``function`` is called with a boto3 client, in a thread. Counted as ``kind``.

        Args:
            finish: who is cancelled waits for its end nevertheless, so that it is known to be over.

        Raises:
            ArchiveError: classified.
        """
        run = self._threads.finish if finish else self._threads.run
        try:
            result = await run(lambda: self._guarded(kind, bucket, key, function))
        except ArchiveError as error:
            self.traffic.count(kind, result_of(error))
            raise
        except asyncio.CancelledError:
            self.traffic.count(kind, "cancelled")
            raise
        except Closed:
            raise _closed(bucket, key) from None
        self.traffic.count(kind, "ok")
        return result

    async def pull(self, bucket: str, key: str, function: Callable[[], _T]) -> _T:
        """Take more of an answer that has begun; not counted as a request. Raises: ArchiveError."""
        try:
            return await self._threads.run(lambda: self._translating("stream", bucket, key, function))
        except Closed:
            raise _closed(bucket, key) from None

    def drop(self, function: Callable[[], object]) -> None:
        """Close an answer that nobody wants any more, in a thread: it may have to wait for one that reads there."""
        self._threads.spend(function)

    def close(self) -> None:
        """Let go of connections and threads."""
        self._threads.close()
        self._keys.close()

    # -- in threads

    def _guarded(self, kind: str, bucket: str, key: str, function: Callable[[Any], _T]) -> _T:
        """Once more when the keys are refused, if there are others by now."""
        client = self._translating(kind, bucket, key, self._keys.client)
        try:
            return self._translating(kind, bucket, key, lambda: function(client))
        except KeysRefused:
            newer = self._translating(kind, bucket, key, lambda: self._keys.renewed(client))
            if newer is None:
                raise
            return self._translating(kind, bucket, key, lambda: function(newer))

    def _translating(self, kind: str, bucket: str, key: str, function: Callable[[], _T]) -> _T:
        asked = f"{kind.upper()} s3://{bucket}/{key} ({self.where})"
        try:
            return function()
        except failed.ClientError as error:
            raise self._refused(asked, bucket, error.response) from None
        except (failed.BotoCoreError, HTTPError, OSError, ValueError) as error:
            raise _broken(asked, error, self.section, foreign=self._is_foreign(bucket)) from None

    def _refused(self, asked: str, bucket: str, response: Any) -> ArchiveError:
        told, facts = response.get("Error", {}), response.get("ResponseMetadata", {})
        headers = {str(name).lower(): str(value) for name, value in facts.get("HTTPHeaders", {}).items()}
        if "Region" in told:
            headers.setdefault("x-amz-bucket-region", str(told["Region"]))
        return classify(
            Refusal(
                asked=asked,
                bucket=bucket,
                region=self.section.region,
                status=int(facts.get("HTTPStatusCode", 0)),
                code=str(told.get("Code") or ""),
                message=str(told.get("Message") or ""),
                headers=headers,
                now_ms=self.clock.wall_ms(),
                foreign=self._is_foreign(bucket),
            )
        )

    def _is_foreign(self, bucket: str) -> bool:
        """Whether it is not the archive's own: a source of imports."""
        scheme, _, rest = self.section.target.partition("://")
        return scheme != "s3" or rest.partition("/")[0] != bucket

    def _make_client(self) -> Any:
        """A client with the credentials of now. Slow: the first one takes a quarter of a second."""
        section = self.section
        core = botocore.session.Session(profile=section.profile or ("default" if section.credentials_file else None))
        core.register_component("data_loader", _descriptions())
        if section.credentials_file:
            core.set_config_variable("credentials_file", str(section.credentials_file))
            providers = core.get_component("credential_provider")
            for other in ("env", "container-role", "iam-role"):
                providers.remove(other)  # the file was asked for, and nothing else
        session = boto3.session.Session(botocore_session=core)
        client = session.client(
            "s3",
            endpoint_url=section.endpoint or None,
            region_name=section.region or session.region_name or (_DEFAULT_REGION if section.endpoint else None),
            config=Config(
                s3={"addressing_style": section.addressing},
                signature_version="s3v4",
                connect_timeout=min(section.timeout_s, _CONNECT_TIMEOUT_MAX_S),
                read_timeout=section.timeout_s,
                max_pool_connections=self._connections,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                tcp_keepalive=True,
                user_agent_extra="amberblob",
            ),
        )
        client.meta.events.register("before-call.s3.DeleteObjects", _send_md5)
        return client


@functools.cache
def _descriptions() -> Any:
    """What boto3 knows of S3: large, slow to read, and the same for all clients."""
    return botocore.loaders.create_loader()


def _send_md5(params: dict[str, Any], **_: object) -> None:
    """Old servers want it of a DeleteObjects; newer ones take it as well as a CRC."""
    params["headers"]["Content-MD5"] = content_md5(params["body"])
    params.get("context", {}).pop("checksum", None)


def content_md5(body: bytes) -> str:
    """The value of the header."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _check_endpoint(endpoint: str) -> None:
    """Raises: ConfigError; the message does not repeat what may be a password."""
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            "[archive] endpoint wants http://host:port or https://host, without a user or a password (credentials_file has them)"
        )


def _closed(bucket: str, key: str) -> ArchiveError:
    return ArchiveError(f"s3://{bucket}/{key}: this node ends; ask another one")


def _broken(asked: str, error: Exception, section: ArchiveSection, *, foreign: bool = False) -> ArchiveError:
    """What no answer of the server says. Botocore's texts have no secrets, but they may have the whole query: only the cause is told."""
    cause = _cause(error)
    match error:
        case failed.NoCredentialsError() | failed.PartialCredentialsError() | failed.CredentialRetrievalError():
            return KeysRefused(
                f"{asked}: no credentials were found. Name a file in [archive] credentials_file, or give the node some in the usual AWS way "
                "(environment, ~/.aws/credentials, the machine's role)."
            )
        case failed.ProfileNotFound() | failed.ConfigNotFound() | failed.ConfigParseError():
            return KeysRefused(
                f"{asked}: {section.credentials_file or 'the AWS configuration'} cannot be read or has no profile "
                f"{section.profile or 'default'!r}: mend it, or [archive] credentials_file and profile."
            )
        case failed.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error):
            return ArchiveDenied(
                f"{asked}: TLS failed: {cause}. Check [archive] endpoint (http or https?), the server's certificate, and AWS_CA_BUNDLE if its "
                "authority is your own."
            )
        case failed.EndpointConnectionError() | failed.ConnectTimeoutError() | failed.ProxyConnectionError():
            return ArchiveUnavailable(
                f"{asked}: not reached: {cause}. Check [archive] endpoint, the network, and that the server runs."
            )
        case failed.ReadTimeoutError():
            return ArchiveUnavailable(f"{asked}: no progress within [archive] timeout_s = {section.timeout_s:g}.")
        case (
            failed.ParamValidationError()
            | failed.InvalidRegionError()
            | failed.NoRegionError()
            | failed.InvalidEndpointConfigurationError()
        ):
            what = "the source's URL" if foreign else "[archive] target"
            return ArchiveDenied(f"{asked}: {cause}. Mend {what}, or [archive] region and endpoint.")
        case _:
            return ArchiveUnavailable(f"{asked}: the connection broke: {cause}.")


def _cause(error: Exception) -> str:
    """The innermost of the chained texts, on one line."""
    inner = getattr(error, "kwargs", {}).get("error") or error
    inner = getattr(inner, "reason", None) or inner
    text = " ".join(str(inner).split())
    if ">: " in text:
        text = text.rpartition(">: ")[2]  # what urllib3 says of its own objects
    return text[:200] or type(inner).__name__
