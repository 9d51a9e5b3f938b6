"""``amberblob archive``: cold chunks go to S3 or a folder, and come back. The commands that start a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from amberblob.cli.archivefollow import run_job
from amberblob.cli.archivestatus import follow, show_plan, status, stop
from amberblob.cli.options import Endpoint, Json, wants_json

if TYPE_CHECKING:
    from amberblob.archivejobs import JobKind

app = typer.Typer(
    help="The archive: what goes there, what comes back, and how it is.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Prefix = Annotated[str, typer.Option("--prefix", metavar="PREFIX", help="Only paths that begin with it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Detach = Annotated[bool, typer.Option("--detach", help="Start it, and do not wait for its end.")]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate", metavar="SIZE", help="At most so many bytes per second and node: 10MiB.  [default: as configured]"
    ),
]
Requests = Annotated[
    float | None,
    typer.Option(
        "--requests",
        metavar="N",
        min=0.001,
        help="At most so many requests per second and node.  [default: as configured]",
    ),
]


@app.command()
def run(
    prefix: Prefix = "",
    dry_run: DryRun = False,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Archive what the rules of [[archive.rules]] say, now: send, read back, and evict.

    Every node does its part. A job that is broken off, or whose node dies, goes on where it was.

    \b
    Examples:
      amberblob archive run --dry-run
      amberblob archive run --prefix logs/2025/ --rate 20MiB
    """
    _job("run", prefix, dry_run, detach, rate, requests, endpoint, json_output)


@app.command()
def verify(
    prefix: Prefix = "",
    newer_than: Annotated[
        str | None,
        typer.Option(
            "--newer-than",
            metavar="DURATION",
            help="Leave alone what was read back within so long: 30d, 12h.  [default: read everything]",
        ),
    ] = None,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Read back what the archive has, and compare every byte.

    What is damaged or gone is told, and no copy lives by it any more; the next run sends it again if a disk has it.

    \b
    Examples:
      amberblob archive verify --rate 5MiB --detach
      amberblob archive verify --newer-than 7d      to go on with what a broken-off one has left
    """
    options = {} if newer_than is None else {"newer_than": _duration(newer_than)}
    _job("verify", prefix, False, detach, rate, requests, endpoint, json_output, options=options)


@app.command()
def restore(
    prefix: Prefix = "",
    dry_run: DryRun = False,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Bring evicted bytes back onto the disks. (Reading does not need that.)

    A rule that evicts takes them away again within minutes, unless it waits for a full disk (evict_above): you are warned of it then.

    \b
    Examples:
      amberblob archive restore --prefix albums/2024/ --dry-run
      amberblob archive restore --prefix albums/2024/
    """
    _job("restore", prefix, dry_run, detach, rate, requests, endpoint, json_output)


@app.command()
def gc(
    dry_run: DryRun = False,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Delete from the archive what nothing refers to any more, and rewrite packs that are mostly dead.

    Objects younger than [archive] grace (a day) are left alone. Needs every node: one that is down may refer to something.

    \b
    Examples:
      amberblob archive gc --dry-run
      amberblob archive gc
    """
    _job("gc", "", dry_run, detach, rate, requests, endpoint, json_output)


@app.command()
def export(
    claim: Annotated[
        bool,
        typer.Option(
            "--claim",
            help="The bucket is this cluster's archive from now on, though it is not the one that was archived to. What it lacks is lost to the next verify.",
        ),
    ] = False,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Write what is known of every object (names, versions, tombstones) into the archive too, so that it can be recovered from there alone.

    Only what is new since the last time is sent. What was never archived cannot be recovered: see docs/archive.md.

    \b
    Example:
      amberblob archive run && amberblob archive export
    """
    options = {"claim": "yes"} if claim else {}
    _job("export", "", False, detach, rate, requests, endpoint, json_output, options=options)


@app.command()
def recover(
    cluster: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CLUSTER",
            help="The id of the cluster that was lost, if the archive has several: meta/CLUSTER/.",
        ),
    ] = "",
    prefix: Prefix = "",
    dry_run: DryRun = False,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Build a lost cluster anew from the archive that it exported to: every archived object, version and tombstone.

    Everything is readable at once, and fetched when it is read. The archive stays the new cluster's. Paths that exist here stay as
    they are, so it can be repeated.

    \b
    Examples:
      amberblob archive recover --dry-run
      amberblob archive recover
    """
    options, source = {}, ""
    if "://" in cluster:
        source = cluster
    elif cluster:
        options = {"cluster": cluster}
    _job("recover", prefix, dry_run, detach, rate, requests, endpoint, json_output, source=source, options=options)


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE_URL", help="s3://bucket or s3://bucket/prefix, at the archive's endpoint.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="PREFIX", help="Goes before each name.")] = "",
    whole_keys: Annotated[
        bool, typer.Option("--whole-keys", help="Keep the prefix of SOURCE_URL in the names, too.")
    ] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="What was overwritten at the source since becomes a new version here.")
    ] = False,
    dry_run: DryRun = False,
    detach: Detach = False,
    rate: Rate = None,
    requests: Requests = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Take over an S3 bucket by listing it: every object is readable here at once, and fetched when it is read.

    The bucket must stay as it is: an object that is changed or removed there can be read here no more. Paths that exist here stay.

    \b
    Examples:
      amberblob archive import s3://photos --to old-photos/
      amberblob archive restore --prefix old-photos/      then the bucket is not needed any more
    """
    if not source.startswith("s3://"):
        raise typer.BadParameter("it is s3://BUCKET or s3://BUCKET/PREFIX", param_hint="SOURCE_URL")
    options = {"to": to} if to else {}
    if not whole_keys:
        options["strip"] = "yes"
    if changed:
        options["changed"] = "version"
    _job("import", "", dry_run, detach, rate, requests, endpoint, json_output, source=source, options=options)


app.command()(status)
app.command()(follow)
app.command()(stop)


def _job(
    kind: JobKind,
    prefix: str,
    dry_run: bool,
    detach: bool,
    rate: str | None,
    requests: float | None,
    endpoint: str | None,
    json_output: bool,
    *,
    source: str = "",
    options: dict[str, str] | None = None,
) -> None:
    if dry_run and detach:
        raise typer.BadParameter("a dry run is there to be looked at; leave --detach out", param_hint="--detach")
    from amberblob.archivejobs import JobWanted

    wanted = JobWanted(
        kind=kind,
        prefix=prefix,
        dry_run=dry_run,
        bytes_per_s=_bytes_of(rate),
        requests_per_s=requests or 0.0,
        source=source,
        options=options or {},
    )
    as_json = wants_json(json_output)
    document = run_job(wanted, detach=detach, as_json=as_json, endpoint=endpoint)
    if dry_run and not as_json:
        show_plan(document)


def _duration(text: str) -> str:
    from amberblob.config import parse_duration

    try:
        parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: write 30d", param_hint="--newer-than") from None
    return text


def _bytes_of(rate: str | None) -> int:
    if rate is None:
        return 0
    from amberblob.config import parse_size

    try:
        size_bytes = parse_size(rate)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: write 10MiB", param_hint="--rate") from None
    if size_bytes < 1:
        raise typer.BadParameter("nothing per second would never end; write 10MiB", param_hint="--rate")
    return size_bytes
