"""Structured logs on stderr: one JSON object per line, or aligned text on a terminal.

Every line bears the request at hand (:mod:`amberblob.tracing`), so that one request can be followed over all
nodes, and whatever else was bound to the log context (``structlog.contextvars``), such as the peer that asks.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import msgspec
import structlog

from amberblob.tracing import request_id


def _json(event: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


def configure_logs(*, level: str, format: Literal["json", "console", "auto"], node: str) -> None:
    """Set up logging for this process. ``format`` auto is console on a terminal, JSON elsewhere."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    numeric = logging.getLevelNamesMapping()[level.upper()]

    def name_node(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["node"] = node
        return event

    def name_request(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        at_hand = request_id()
        if at_hand:
            event.setdefault("request_id", at_hand)
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_node,
        name_request,
    ]
    if console:
        shared.append(structlog.dev.ConsoleRenderer())
    else:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries log by the standard library is rare and worth seeing.
    logging.basicConfig(
        level=max(numeric, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
