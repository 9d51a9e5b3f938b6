"""``/archive``: how the archive is; its jobs. The shapes are those of :mod:`node.archive.status`."""

from __future__ import annotations

import msgspec

from amberblob.archivejobs import JobWanted
from amberblob.errors import BadRequest
from amberblob.limits import PATH_BYTES_MAX
from node.http.bodies import whole_body
from node.http.call import Answer, Call, Context, json_answer

RATE_MAX = 2**63 - 1
OPTIONS_MAX = 64
TEXT_CHARS_MAX = 4096


async def archive(context: Context, call: Call) -> Answer:
    """The target, whether it is reached, and each node's share."""
    call.query(frozenset())
    return json_answer(200, await context.archive.view())


async def jobs(context: Context, call: Call) -> Answer:
    """All jobs that are remembered, newest first."""
    call.query(frozenset())
    return json_answer(200, await context.archive.jobs())


async def start(context: Context, call: Call) -> Answer:
    """Begin a job on all nodes."""
    call.query(frozenset())
    return json_answer(202, await context.archive.start(await _wanted(context, call)))


async def job(context: Context, call: Call) -> Answer:
    """One job, on all nodes."""
    call.query(frozenset())
    return json_answer(200, await context.archive.job(call.target.encoded_path))


async def stop(context: Context, call: Call) -> Answer:
    """Stop a job on all nodes."""
    call.query(frozenset())
    return json_answer(202, await context.archive.stop(call.target.encoded_path))


async def _wanted(context: Context, call: Call) -> JobWanted:
    body = await whole_body(context, call)
    try:
        wanted = msgspec.json.decode(body, type=JobWanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(
            'The body is not {"kind": "run", "verify", "restore", "gc", "export", "recover" or "import", "prefix": "", "dry_run": false, '
            f'"bytes_per_s": 0, "requests_per_s": 0, "source": "", "options": {{}}}}: {error}.',
            code="bad-request",
        ) from None
    if not 0 <= wanted.bytes_per_s <= RATE_MAX or not 0 <= wanted.requests_per_s <= RATE_MAX:
        raise BadRequest("bytes_per_s and requests_per_s are 0 (as configured) or more.", code="bad-request")
    if len(wanted.prefix.encode()) > PATH_BYTES_MAX:
        raise BadRequest(f"The prefix is longer than {PATH_BYTES_MAX} bytes.", code="bad-request")
    texts = [wanted.source, *wanted.options, *wanted.options.values()]
    if len(wanted.options) > OPTIONS_MAX or any(len(text) > TEXT_CHARS_MAX for text in texts):
        raise BadRequest(
            f"At most {OPTIONS_MAX} options, of at most {TEXT_CHARS_MAX} characters each.", code="bad-request"
        )
    return wanted
