"""How the command line speaks: results on stdout, everything else on stderr, JSON for machines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from amberblob.errors import AmberError, PeerError

_STEPS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class CommandFailed(Exception):
    """The command was refused or failed; ``str()`` says what and why, ``hint`` what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def debugging() -> bool:
    """Whether the user wants tracebacks."""
    return os.environ.get("AMBERBLOB_DEBUG", "") not in ("", "0")


def say(text: str) -> None:
    """A line of result on stdout, flushed, so that it comes through a pipe at once."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line for people on stderr. A reader that went away is no reason to fail."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def say_json(document: Any) -> None:
    """One JSON document on stdout, one line, so that ``while read`` works as well as ``jq``."""
    say(json.dumps(document, ensure_ascii=False))


def complain(message: str, hint: str = "") -> None:
    """An error: one line with what and why, and one with what to do next if there is something to say."""
    note(f"amberblob: {' '.join(message.split())}")
    if hint:
        note(f"  {' '.join(hint.split())}")


def describe(error: AmberError) -> tuple[str, str]:
    """An error of the store as ``(message, hint)`` for :func:`complain`."""
    if isinstance(error, PeerError) and error.extra.get("sent") is False:
        return str(
            error.detail
        ), "Does the cluster run? Name its nodes with --endpoint; `amberblob dev` starts a local one."
    request_id = error.extra.get("request_id")
    hint = f"code {error.code}, request {request_id}" if request_id else ""
    return f"{error.title}: {error.detail}" if error.detail != error.title else error.title, hint


def on_terminal(*, stderr: bool = False) -> bool:
    """Whether stdout (or stderr) is a terminal."""
    try:
        return (sys.stderr if stderr else sys.stdout).isatty()
    except ValueError:  # closed
        return False


def human_size(size_bytes: int) -> str:
    """``1536`` → ``1.5 KiB``."""
    amount = float(size_bytes)
    for step in _STEPS:
        if amount < 1024 or step == _STEPS[-1]:
            return f"{size_bytes} B" if step == "B" else f"{amount:.1f} {step}"
        amount /= 1024
    raise AssertionError("the last step returns")


def printable(text: str) -> str:
    """Names come from strangers: control characters are shown, not sent to the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
