"""Refusals that only HTTP knows::

RequestError
├── RequestTimeout      408  request-timeout (the client stopped sending)
├── ExpectationFailed   417  expectation-failed (an Expect other than 100-continue)
└── HeaderTooLarge      431  header-too-large
"""

from __future__ import annotations

from amberblob.errors import RequestError


class RequestTimeout(RequestError):
    """The client stopped sending in the middle of its request."""

    code = "request-timeout"
    status = 408
    title = "Request timeout"


class ExpectationFailed(RequestError):
    """The client expects something of the server that it does not do."""

    code = "expectation-failed"
    status = 417
    title = "Expectation failed"


class HeaderTooLarge(RequestError):
    """A header line, or their number, is beyond the bounds."""

    code = "header-too-large"
    status = 431
    title = "Header too large"
