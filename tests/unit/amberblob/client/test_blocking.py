"""The blocking face, against the same servers."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from amberblob import Client
from amberblob.errors import NotFound


@pytest.fixture
def server(nodes):
    """The servers run on the test's loop; blocking calls go to threads."""
    return nodes


async def test_put_and_get_as_a_file(server):
    data = os.urandom(300_000)

    def work():
        with Client([node.url for node in server]) as client:
            info = client.put("x", io.BytesIO(data))
            assert client.head("x").etag == info.etag
            with client.get("x") as file:
                assert file.info.size == len(data)
                assert file.read(10) == data[:10]
                buffer = bytearray(5)
                assert file.readinto(buffer) == 5
                assert bytes(buffer) == data[10:15]
                assert b"".join(file.chunks()) == data[15:]
                assert file.read() == b""
            with pytest.raises(ValueError):
                file.read()
            with client.get("x") as file:
                assert io.BufferedReader(file).read() == data
            assert client.get_bytes("x", range=(1, 3)) == data[1:3]
            with pytest.raises(NotFound):
                client.get("nothing")

    await asyncio.to_thread(work)


async def test_threads_share_a_client(server):
    def work():
        with Client(server[0].url) as client, ThreadPoolExecutor(8) as pool:
            infos = list(pool.map(lambda index: client.put(f"t/{index}", str(index).encode()), range(100)))
            assert all(info.version == 1 for info in infos)
            assert list(pool.map(lambda index: client.get_bytes(f"t/{index}"), range(100))) == [
                str(index).encode() for index in range(100)
            ]

    await asyncio.to_thread(work)


async def test_closing_ends_the_thread(server):
    def work():
        before = set(threading.enumerate())
        client = Client(server[0].url)
        client.put("x", b"1")
        file = client.get("x")
        client.close()
        client.close()
        file.close()
        # Helpers of its loop are told to end, and end a moment later; the loop's own thread was waited for.
        left = set(threading.enumerate()) - before
        assert "amberblob-client" not in {thread.name for thread in left}
        for thread in left:
            thread.join(60)
            assert not thread.is_alive(), thread
        with pytest.raises(RuntimeError, match="closed"):
            client.head("x")

    await asyncio.to_thread(work)


def test_importing_is_light():
    code = (
        "import sys; import amberblob;"
        "heavy = {'aiohttp', 'asyncio', 'node', 'registry', 'chunkstore', 'typer', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "from amberblob import Client, AsyncClient, ObjectInfo, errors;"
        "assert not {'node', 'registry', 'chunkstore', 'typer', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
