"""What boto3 itself does with an S3 server: multipart upload and download of the same bytes, at the same concurrency.

The floor of the archive. Processes as many as the cluster has nodes, in each a client with as many requests under way as a
node has: one process would be held up by its own interpreter, and the archive does not have only one either.

``python -m bench.plain_s3 JSON`` is such a process: it says ``ready``, waits for a line, works, and says how many CPU seconds that took.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.environment import ENVIRONMENT, end_with_parent

Direction = Literal["upload", "download"]
_TIMEOUT_S = 300.0


class PlainJob(msgspec.Struct, frozen=True, kw_only=True):
    """What one process does.

    Attributes:
        endpoint, access_key, secret_key, bucket: of the S3 server.
        names: the objects.
        size_bytes: of each.
        parallel: requests under way at once.
        part_bytes: of the multipart upload and of the ranges that are fetched.
        folder: where each body that came is written to as many files as ``copies``, and synced; empty: it stays in memory.
    """

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    direction: Direction
    names: tuple[str, ...]
    size_bytes: int
    parallel: int
    part_bytes: int
    folder: str = ""
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What all jobs together took.

    Attributes:
        seconds: from the word to begin until the last was done.
        cpu_s: of all processes meanwhile; what they load before the word is not in it.
    """

    seconds: float
    cpu_s: float


def transfer(jobs: Sequence[PlainJob]) -> Transferred:
    """Run each in a process of its own, all at once.

    Raises:
        RuntimeError: one failed.
    """
    workers = [_start(job) for job in jobs]
    try:
        for worker in workers:
            _expect(worker, b"ready")
        began = time.monotonic()
        for worker in workers:
            assert worker.stdin is not None, "it was opened with a pipe"
            worker.stdin.write(b"go\n")
            worker.stdin.flush()
        cpu_s = sum(float(_expect(worker, b"done")) for worker in workers)
        return Transferred(seconds=time.monotonic() - began, cpu_s=cpu_s)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _start(job: PlainJob) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.plain_s3", msgspec.json.encode(job).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while they start
    )


def _expect(worker: subprocess.Popen[bytes], word: bytes) -> bytes:
    """What it says behind this word. Raises RuntimeError."""
    assert worker.stdout is not None, "it was opened with a pipe"
    line = worker.stdout.readline().strip()
    said, _, more = line.partition(b" ")
    if said != word:
        raise RuntimeError(f"plain boto3 said {line!r} instead of {word!r}")
    return more


def _client(job: PlainJob) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=job.endpoint,
        region_name="us-east-1",
        aws_access_key_id=job.access_key,
        aws_secret_access_key=job.secret_key,
        config=Config(
            s3={"addressing_style": "path"},
            max_pool_connections=job.parallel,
            connect_timeout=10,
            read_timeout=_TIMEOUT_S,
            # Servers that are older than these checksums take no uploads with them; the archive sends a digest that all of them know.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _work(job: PlainJob) -> None:
    from boto3.s3.transfer import TransferConfig

    # Objects one after the other, the parts of one at once: that is what boto3 users do with large objects. Objects of
    # one part go at once by themselves.
    at_once = max(1, job.parallel * job.part_bytes // job.size_bytes)
    config = TransferConfig(
        multipart_threshold=job.part_bytes,
        multipart_chunksize=job.part_bytes,
        max_concurrency=max(1, job.parallel // at_once),
    )
    body = os.urandom(job.size_bytes) if job.direction == "upload" else b""
    client = _client(job)
    client.head_bucket(Bucket=job.bucket)  # connected, and all modules loaded
    print("ready", flush=True)
    sys.stdin.readline()
    began_s = time.process_time()

    def move(name: str) -> None:
        if job.direction == "upload":
            client.upload_fileobj(io.BytesIO(body), job.bucket, name, Config=config)
            return
        into = io.BytesIO()
        client.download_fileobj(job.bucket, name, into, Config=config)
        if len(into.getbuffer()) != job.size_bytes:
            raise RuntimeError(f"{name}: {len(into.getbuffer())} bytes")
        if job.folder:
            stem, came = name.replace("/", "-"), into.getbuffer()
            list(writers.map(lambda copy: _keep(Path(job.folder) / f"{stem}-{copy}", came), range(job.copies)))

    with ThreadPoolExecutor(at_once) as pool, ThreadPoolExecutor(at_once * max(1, job.copies)) as writers:
        list(pool.map(move, job.names))
    print(f"done {time.process_time() - began_s:.3f}", flush=True)


def _keep(path: Path, body: memoryview) -> None:
    """Write a file, durable on return."""
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    _work(msgspec.json.decode(sys.argv[1], type=PlainJob))
