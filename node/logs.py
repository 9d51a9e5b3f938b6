"""Structured logs on stderr: one JSON object per line, or aligned text on a terminal.

Every line bears the request at hand (:mod:`amberblob.tracing`), so that one request can be followed over all
nodes, and whatever else was bound to the log context (``structlog.contextvars``), such as the peer that asks.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import msgspec
import structlog

from amberblob.tracing import request_id

Lines = Callable[[int, str, dict[str, Any]], None]
"""Logs a line: its level, what happened, and the rest."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode
_json_lines: tuple[int, Lines] | None = None


def _json(event: dict[str, Any], **_: Any) -> bytes:
    return _encode(event)


def frequent_lines(logger: structlog.typing.FilteringBoundLogger) -> tuple[int, Lines]:
    """For what is logged with each request: the lowest level that is logged, and how to log.

    Where the log is JSON the lines are made here, without structlog's processors: 9 µs instead of 22. Elsewhere
    ``logger`` makes them.
    """
    if _json_lines is not None:
        return _json_lines
    bound = logger.bind()
    level = next((level for level in (logging.DEBUG, logging.INFO, logging.WARNING) if bound.is_enabled_for(level)), 99)
    return level, lambda level, event, rest: bound.log(level, event, **rest)


def _lines_to(out: BinaryIO, node: str) -> Lines:
    names = {level: logging.getLevelName(level).lower() for level in (logging.DEBUG, logging.INFO, logging.WARNING)}
    second, written = 0, ""

    def line(level: int, event: str, rest: dict[str, Any]) -> None:
        nonlocal second, written
        now_s = time.time()
        if int(now_s) != second:
            second = int(now_s)
            written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        rest["event"] = event
        rest["level"] = names[level]
        rest["timestamp"] = f"{written}.{int((now_s - second) * 1e6):06d}Z"
        rest["node"] = node
        rest["request_id"] = request_id()
        out.write(_encode(rest) + b"\n")
        out.flush()

    return line


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
    global _json_lines
    factory: Any
    if console:
        shared.append(structlog.dev.ConsoleRenderer())
        factory = structlog.PrintLoggerFactory(sys.stderr)
        _json_lines = None
    else:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
        _json_lines = numeric, _lines_to(sys.stderr.buffer, node)
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    # What libraries log by the standard library is rare and worth seeing.
    logging.basicConfig(
        level=max(numeric, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
