"""``python -m demo``: the options, the data folder, and the exit status.

Exit status: 0 no difference found; 1 the first difference, or anything else that went wrong; 2 wrong usage;
130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from amberblob.errors import AmberError
from demo.cluster import NODES, Cluster
from demo.data import Failed, SourceFile, Tree, build_archive, edition_of_file, scan_tree
from demo.report import MB, Report
from demo.steps import STEPS, Demo

PREFIX = "stdlib"
LARGE_NAME = "large/stdlib-copies.tar"
FILES_MIN = 10
SIZE_MIN = 8 * 1024 * 1024
SPARE_BYTES = 512 * 1024 * 1024
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no bars shall still show the figures
    options = _parser().parse_args(arguments)
    if options.parallel < 1:
        return _refuse("--parallel is 1 or more")
    tree = scan_tree(options.tree.resolve(), PREFIX)
    if len(tree.files) < FILES_MIN or tree.size_bytes == 0:
        return _refuse(f"{tree.root} has {len(tree.files)} files to store; give a --tree with {FILES_MIN} or more")
    temporary = options.data is None
    if not temporary and options.data.exists() and not (options.data.is_dir() and not any(options.data.iterdir())):
        return _refuse(f"{options.data} is no empty folder; give a new folder, so that nothing of yours is touched")
    folder = Path(tempfile.mkdtemp(prefix="amberblob-demo-")) if temporary else options.data.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    status = 1
    try:
        needed = space_needed_bytes(options.big_size, tree)
        if (free := shutil.disk_usage(folder).free) < needed:
            return _refuse(
                f"{folder} has {free / MB:,.0f} MB free, {needed / MB:,.0f} MB are needed; "
                "give another folder with --data, or a smaller --big-size"
            )
        status = _run(options, folder, tree)
    finally:
        if temporary and not options.keep and status != 1:
            shutil.rmtree(folder, ignore_errors=True)
        elif any(folder.iterdir()):
            print(f"data and logs: {folder}", flush=True)
    return status


def _run(options: argparse.Namespace, folder: Path, tree: Tree) -> int:
    report = Report(STEPS if options.heal_timeout > 0 else STEPS - 1)
    cluster = Cluster(folder, options.port)
    demo: Demo | None = None
    memory_before: dict[str, int] = {}
    began_s = time.monotonic()
    problem = ""
    try:
        _on_signals(_interrupt)
        report.say(
            f"{len(tree.files):,} files, {tree.size_bytes / MB:,.1f} MB in {tree.root}"
            + (f" ({tree.skipped} links and others left out)" if tree.skipped else "")
        )
        large = _build_large(report, tree, folder / "large.tar", options.big_size)
        edition = edition_of_file(large.file)
        with report.step(f"start a cluster of {NODES} nodes, a process each") as step:
            cluster.start()
            for node in cluster.nodes:
                step.note(f"{node.name} pid={node.pid} {node.url}")
        memory_before = cluster.memory_bytes()
        demo = Demo(
            cluster,
            report,
            tree,
            large,
            edition,
            parallel=options.parallel,
            seed=options.seed,
            heal_timeout_s=options.heal_timeout,
        )
        asyncio.run(demo.run())
        if dead := cluster.dead():
            raise Failed(f"at the end {', '.join(dead)} no longer runs")
    except KeyboardInterrupt:
        print("\nstopped; the nodes are being ended …", flush=True)
        return 130
    except Failed as error:
        problem = str(error)
    except AmberError as error:
        problem = f"an operation failed for good: {type(error).__name__} ({error.code}): {error.detail} {error.extra}"
    except OSError as error:
        problem = f"this machine: {error}"
    finally:
        _on_signals(signal.SIG_IGN)  # the end is short and bounded, and must not be cut off
        memory_after = cluster.memory_bytes()
        cluster.stop()
    report.table()
    report.memory(memory_before, memory_after)
    report.say(f"{time.monotonic() - began_s:.1f} s in all")
    if demo is not None:
        report.say(f"{demo.compared_objects:,} objects read back, {demo.compared_bytes:,} bytes compared")
        for finding in demo.findings:
            report.say(f"finding: {finding}")
    report.say(f"FOUND: {problem}" if problem else "no difference found")
    return 1 if problem else 0


def _build_large(report: Report, tree: Tree, target: Path, size_bytes: int) -> SourceFile:
    with report.step(
        f"write a file of {size_bytes / MB:,.0f} MB: a tar of the tree, again and again", size_bytes
    ) as step:
        for written in build_archive(tree, target, size_bytes):
            step.advance(written - step.moved)
        step.finished(step.moved, operations=0)
    return SourceFile(name=LARGE_NAME, file=target, size_bytes=step.moved)


def space_needed_bytes(large_bytes: int, tree: Tree) -> int:
    """The large file once here and on every node, what its broken upload leaves behind, the tree, and some to spare."""
    largest = max((source.size_bytes for source in tree.files), default=0)
    return (large_bytes + largest) * (1 + NODES + NODES) + 2 * NODES * tree.size_bytes + SPARE_BYTES


def _on_signals(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal ends the story; later ones are ignored while the nodes are ended."""
    _on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def _refuse(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return 2


def parse_size(text: str) -> int:
    """``64MiB``, ``1GiB``, ``500MB``, ``1000000``.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or too small to be killed in the middle of.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmg]i?)?b?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give for example 64MiB or 1GiB")
    size_bytes = int(float(match[1]) * _UNITS[match[2] or ""])
    if size_bytes < SIZE_MIN:
        raise argparse.ArgumentTypeError(f"{text!r} is too small; give {SIZE_MIN // 1024**2}MiB or more")
    return size_bytes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Start a cluster, store real files, kill a node half-way, go on, and compare every byte.",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="an empty folder, kept (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder (kept anyway if it fails)")
    parser.add_argument("--port", type=int, help="node-1's port, the others have the next (default: free ones)")
    parser.add_argument(
        "--big-size", type=parse_size, default=parse_size("1GiB"), metavar="SIZE", help="at least (default: 1GiB)"
    )
    parser.add_argument(
        "--tree",
        type=Path,
        metavar="DIR",
        default=Path(sysconfig.get_paths()["stdlib"]),
        help="what is stored (default: the sources of Python's standard library)",
    )
    parser.add_argument("--parallel", type=int, default=16, metavar="N", help="operations at a time (default: 16)")
    parser.add_argument(
        "--heal-timeout",
        type=float,
        default=0.0,
        metavar="S",
        help="also watch for so long whether the restarted node fetches unasked what it missed (default: 0, do not)",
    )
    parser.add_argument("--seed", type=int, default=1, help="decides which files are changed (default: 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
