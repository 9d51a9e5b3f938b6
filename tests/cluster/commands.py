"""The command line against a cluster of the harness."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from tests.cluster.harness import ROOT, Cluster, environment


async def amberblob(cluster: Cluster, *arguments: str, node: int = 0, timeout_s: float = 180.0) -> tuple[int, str, str]:
    """One command: its exit status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amberblob", *arguments,
        cwd=ROOT, env={**environment(), "AMBERBLOB_ENDPOINT": cluster.nodes[node].url},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def cluster_json(cluster: Cluster, *arguments: str, node: int = 0, timeout_s: float = 180.0) -> Any:
    """What ``amberblob cluster … --json`` prints. Fails if the command does not end with 0."""
    status, out, err = await amberblob(cluster, "cluster", *arguments, "--json", node=node, timeout_s=timeout_s)
    assert status == 0, f"{arguments}: {status}\n{out}\n{err}"
    return json.loads(out)


async def operate(cluster: Cluster, *arguments: str, node: int = 0, timeout_s: float = 180.0) -> str:
    """``amberblob cluster …`` that must succeed; what it said on both channels."""
    status, out, err = await amberblob(cluster, "cluster", *arguments, node=node, timeout_s=timeout_s)
    assert status == 0, f"{arguments}: {status}\n{out}\n{err}"
    return out + err


def started(cluster: Cluster, *arguments: str, node: int = 0) -> subprocess.Popen[bytes]:
    """A command that is not waited for; its stderr is a pipe. Whoever starts it ends it."""
    return subprocess.Popen(
        [sys.executable, "-m", "amberblob", *arguments],
        cwd=ROOT, env={**environment(), "AMBERBLOB_ENDPOINT": cluster.nodes[node].url},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
