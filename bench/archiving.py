"""Jobs of a cluster's archive, started and waited for, and what they cost, over plain HTTP."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.environment import HOST

_TIMEOUT_S = 60.0
_JOB_TIMEOUT_S = 600.0
_POLL_S = 0.05
_REQUESTS = re.compile(r'^amberblob_archive_requests_total\{kind="([a-z]+)".*?\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDone:
    """A job that did all of its work.

    Attributes:
        seconds: from before it was asked for until it was seen to be done.
        sent_bytes, received_bytes, requests: what all nodes together sent to and fetched from the target meanwhile.
    """

    seconds: float
    counts: dict[str, int]
    sent_bytes: int
    received_bytes: int
    requests: int


def run_job(port: int, kind: str, prefix: str) -> JobDone:
    """Start a job and wait until it is done. Raises RuntimeError when it is not, or left something."""
    before = _traffic(port)
    began = time.monotonic()
    job = _ask(port, "POST", "/archive/jobs", {"kind": kind, "prefix": prefix})["job"]
    while True:
        view = _ask(port, "GET", f"/archive/jobs/{job}")
        seconds = time.monotonic() - began
        if view["state"] not in ("running", "waiting"):
            break
        if seconds > _JOB_TIMEOUT_S:
            raise RuntimeError(f"archive {kind} was not done after {_JOB_TIMEOUT_S:.0f} s: {view}")
        time.sleep(_POLL_S)
    if view["state"] != "done" or view["failures"]:
        raise RuntimeError(
            f"archive {kind} {view['state']}, {view['failures']} problems: {view['problems']} {view['detail']}"
        )
    after = _traffic(port)
    grown = {name: after[name] - before[name] for name in after}
    return JobDone(seconds=seconds, counts=view["counts"], **grown)


def evicted(port: int) -> int:
    """Copies of versions that live by their archive rows."""
    return int(_ask(port, "GET", "/archive")["total"]["evicted"])


def requests_by_kind(ports: Iterable[int]) -> Counter[str]:
    """How many requests of each kind (``get``, ``part`` …) these nodes have made to the target so far, also such as failed."""
    found: Counter[str] = Counter()
    for port in ports:
        connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        for kind, count in _REQUESTS.findall(text):
            found[kind] += int(float(count))
    return found


def _traffic(port: int) -> dict[str, int]:
    total = _ask(port, "GET", "/archive")["total"]
    return {name: int(total[name]) for name in ("sent_bytes", "received_bytes", "requests")}


def _ask(port: int, method: str, target: str, document: Any = None) -> Any:
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_S)
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 202):
            raise RuntimeError(f"{method} {target}: {answer.status} {text[:300]!r}")
        return json.loads(text)
    finally:
        connection.close()
