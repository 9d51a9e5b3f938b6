"""The tree of commands, and the one place where exceptions become an exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from amberblob.cli import archive, cluster, copy, dev, doctor, download, explain, objects, serve, upload
from amberblob.cli.options import set_defaults
from amberblob.cli.output import CommandFailed, complain, debugging, describe
from amberblob.errors import AmberError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
_INTERRUPTED = 130  # what Typer makes of Ctrl-C

app = typer.Typer(
    name="amberblob",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from amberblob import version

        print(f"amberblob {version()}")
        raise typer.Exit


@app.callback()
def _root(
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL[,URL]", help="Nodes to speak to; every command takes it too."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Machine-readable output; every command takes it too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """AmberBlob: a distributed, replicated, versioned blob store.

    \b
    Examples:
      amberblob dev                              a local cluster of three nodes
      amberblob put photo.jpg albums/2024/1.jpg  upload a file
      amberblob get albums/2024/1.jpg            download it into the current folder
      amberblob ls albums/                       what is there
      amberblob explain albums/2024/1.jpg        where every copy is

    \b
    Environment:
      AMBERBLOB_ENDPOINT  one or more URLs, separated by commas (default: http://127.0.0.1:7700)
      AMBERBLOB_TOKEN     the token, if the cluster asks for one
      AMBERBLOB_DEBUG     1: show tracebacks

    Exit status: 0 done, 1 refused or failed, 2 wrong usage.
    """
    set_defaults(endpoint, json_output)


app.command("put")(upload.put)
app.command("get")(download.get)
app.command("ls")(objects.ls)
app.command("rm")(objects.rm)
app.command("stat")(objects.stat)
app.command("versions")(objects.versions)
app.command("restore")(objects.restore)
app.command("cp")(copy.cp)
app.command("explain")(explain.explain)
app.command("doctor")(doctor.doctor)
app.add_typer(cluster.app, name="cluster")
app.add_typer(archive.app, name="archive")
app.command("serve")(serve.serve)
app.command("dev")(dev.dev)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; the only handler of exceptions in the command line."""
    try:
        status = typer.main.get_command(app).main(
            args=list(arguments) if arguments is not None else None, prog_name="amberblob", standalone_mode=False
        )
        sys.stdout.flush()
        if status == _INTERRUPTED:
            raise KeyboardInterrupt
        return status if isinstance(status, int) else EXIT_DONE
    except BrokenPipeError:
        return _reader_left()
    except (KeyboardInterrupt, typer.Abort):
        complain("stopped before it was done")
        return EXIT_FAILED
    except Exception as error:
        if debugging():
            traceback.print_exc()
        return _explain_failure(error)


def _explain_failure(error: Exception) -> int:
    if isinstance(error, CommandFailed):
        complain(str(error), error.hint)
    elif isinstance(error, AmberError):
        complain(*describe(error))
    elif (show := getattr(error, "format_message", None)) is not None:
        # Typer's own: an unknown option, a missing argument. The classes moved between its versions, their methods did not.
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "amberblob"
        if message := show():
            complain(str(message), f"See: {command} --help")
        elif context is not None:
            print(context.get_help())
        return int(getattr(error, "exit_code", EXIT_USAGE))
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        complain(f"{name}{error.strerror or error}")
    else:
        complain(f"unexpected {type(error).__name__}: {error}", "This is a bug; AMBERBLOB_DEBUG=1 shows the traceback.")
    return EXIT_FAILED


def _reader_left() -> int:
    """``amberblob ls | head``: nobody reads any more. Leave quietly, and keep Python from flushing into the pipe again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED
