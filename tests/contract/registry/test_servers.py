"""What is asked of etcd and of Redis beyond the contract: users, several members, a server that will not do."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog

from amberblob.errors import RegistryUnavailable
from registry.factory import open_registry
from registry.interface import Registry
from tests.cluster.harness import HOST, ROOT, environment, free_ports, until, until_sync
from tests.contract.registry.backends import CALL_TIMEOUT_S, HURRIED_S, LATE_S
from tests.contract.registry.servers import EtcdServer, Patience, RedisServer, program
from tests.contract.registry.tries import answered, back_again, create


@pytest.fixture
async def opened(monkeypatch):
    """Opens registries, and closes them at the end. They are patient, where a test does not say otherwise: this machine may be busy."""
    made: list[Registry] = []

    def opener(url: str, *, call_timeout_s: float = CALL_TIMEOUT_S) -> Registry:
        from registry.etcd import EtcdRegistry
        from registry.redis import RedisRegistry

        for kind in (EtcdRegistry, RedisRegistry):
            monkeypatch.setitem(kind.__init__.__kwdefaults__, "call_timeout_s", call_timeout_s)
        made.append(open_registry(url))
        return made[-1]

    yield opener
    for registry in made:
        await registry.close()


@pytest.fixture
def redis(tmp_path: Path):
    """Starts Redis servers with options."""
    started: list[RedisServer] = []

    def start(*options: str, durable: bool = True) -> RedisServer:
        started.append(RedisServer(tmp_path / f"redis-{len(started)}", *options, durable=durable))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """A folder with a CA, and a certificate of it for a server on this machine, and for its clients."""
    folder: Path = tmp_path_factory.mktemp("tls")
    openssl = program("openssl", "openssl")
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}\nextendedKeyUsage=serverAuth,clientAuth\n")
    for line in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out it.csr -subj /CN=it",
        "x509 -req -in it.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names",
    ):
        subprocess.run([openssl, *line.split()], cwd=folder, check=True, capture_output=True)
    return folder


# -- Redis


async def test_redis_by_tls(redis, opened, certificates):
    (port,) = free_ports(1)
    files = (f"--tls-{name}-file {certificates / file}" for name, file in (("cert", "cert.pem"), ("key", "key.pem")))
    redis("--tls-port", str(port), "--tls-ca-cert-file", str(certificates / "ca.pem"), *" ".join(files).split())
    url = f"rediss://{HOST}:{port}/0?ca={certificates / 'ca.pem'}"
    with pytest.raises(RegistryUnavailable):
        await opened(url).get("a")  # the server wants to know its clients
    registry = opened(f"{url}&cert={certificates / 'cert.pem'}&key={certificates / 'key.pem'}")
    assert await registry.compare_and_set("a", 0, b"1") == 1
    with pytest.raises(RegistryUnavailable):
        await opened(f"rediss://{HOST}:{port}/0").get("a")  # whose CA is not known


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "appendonly off"),
        (("--appendonly", "yes"), "appendfsync everysec"),
        (("--appendonly", "yes", "--appendfsync", "no"), "appendfsync no"),
    ],
)
async def test_a_redis_that_forgets_is_refused(redis, opened, options, words):
    server = redis(*options, durable=False)
    with pytest.raises(RegistryUnavailable, match=words):
        await opened(server.url).compare_and_set("a", 0, b"")
    assert await opened(server.url + "?durability=weak").compare_and_set("a", 0, b"") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "Set noeviction"),
        (("--cluster-enabled", "yes"), "Redis Cluster"),
        (("--replicaof", HOST, "1"), "it is a replica"),
    ],
)
async def test_a_redis_that_cannot_be_a_registry_is_refused(redis, opened, options, words):
    server = redis(*options)
    for url in (server.url, server.url + "?durability=weak"):
        with pytest.raises(RegistryUnavailable, match=words):
            await opened(url).range("")


async def test_a_redis_that_becomes_a_replica_is_refused(redis, opened):
    """Also on connections that were made before: a read there may not know of what was acknowledged."""
    primary, other = redis(), redis()
    registry = opened(primary.url)
    await registry.compare_and_set("a", 0, b"")
    primary.ask("REPLICAOF", HOST, str(other.port))
    with pytest.raises(RegistryUnavailable):
        await registry.get("a")
    with pytest.raises(RegistryUnavailable):
        await registry.compare_and_set("b", 0, b"")


async def test_a_redis_that_sentinel_watches_is_refused(redis, opened, tmp_path):
    server = redis()
    (port,) = free_ports(1)
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nbind {HOST}\ndir {tmp_path}\nsentinel monitor it {HOST} {server.port} 1\n")
    sentinel = subprocess.Popen([server.program, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        until_sync(lambda: "sentinel-" in _clients(server), "Sentinel watches")
        with pytest.raises(RegistryUnavailable, match="Sentinel watches it"):
            await opened(server.url).get("a")
    finally:
        sentinel.kill()
        sentinel.wait()


def _clients(server: RedisServer) -> str:
    import redis

    with contextlib.closing(redis.Redis(port=server.port)) as client:
        return str([found["name"] for found in client.client_list()])


async def test_a_password_and_a_user_who_may_not_ask_all(redis, opened):
    """What the server does not tell is warned of, once."""
    server = redis(
        "--requirepass",
        "hunter2",
        "--user",
        *["blob", "on", ">hunter3", "~amberblob:*", "+@all", "-config", "-client|list"],
    )
    host = server.url.removeprefix("redis://")
    for user in ("", ":wrong@", "blob:wrong@"):
        with pytest.raises(RegistryUnavailable, match="refuses") as caught:
            await opened(f"redis://{user}{host}").get("a")
        assert "wrong" not in caught.value.detail
    assert await opened(f"redis://:hunter2@{host}").get("a") is None
    with structlog.testing.capture_logs() as logs:
        registry = opened(f"redis://blob:hunter3@{host}")
        await asyncio.gather(*(registry.compare_and_set(f"{i}", 0, b"") for i in range(8)))
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "appendfsync" in warnings[0]["why"]
    assert "hunter" not in str(logs)


async def test_many_calls_and_watches_at_once_take_few_connections(redis, opened):
    server = redis()
    registry = opened(server.url)

    async def watch(i: int) -> None:
        async for _ in registry.watch(f"{i}/", 1):
            return

    watches = [asyncio.create_task(watch(i)) for i in range(20)]
    results = await asyncio.gather(*(registry.compare_and_set(f"{i}/a", 0, b"") for i in range(300)))
    assert None not in results
    assert _clients(server).count(",") < 60
    await asyncio.wait_for(asyncio.gather(*watches), LATE_S)


# -- etcd


@pytest.fixture
def three(tmp_path: Path):
    """An etcd cluster of three members."""
    members = [EtcdServer(tmp_path / f"etcd-{i}") for i in range(3)]
    initial = ",".join(f"m{i}={member.peer_url}" for i, member in enumerate(members))
    for i, member in enumerate(members):
        # Three on a busy machine: elections take their time.
        member.options = (
            f"--name=m{i}",
            f"--initial-cluster={initial}",
            "--heartbeat-interval=500",
            "--election-timeout=5000",
        )
        member.begin()
    for member in members:
        member.wait()
    yield members
    for member in members:
        member.close()


async def test_a_call_that_still_waits_for_a_thread_ends_with_the_client_of_etcd(opened):
    """As an error of the registry: its caller was not cancelled."""
    from registry.etcd import THREADS_MAX

    (port,) = free_ports(1)
    registry = opened(f"etcd://{HOST}:{port}")
    go = threading.Event()
    try:
        for _ in range(THREADS_MAX):
            registry._threads.submit(go.wait, LATE_S)
        call = asyncio.create_task(registry.get("a"))
        await until(lambda: registry._threads._work_queue.qsize() == 1, "the call waits")
        await registry.close()
        with pytest.raises(RegistryUnavailable, match="closed"):
            await call
        cancelled = asyncio.create_task(registry.get("a"))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    finally:
        go.set()


async def test_another_member_of_etcd_is_used_when_one_is_away(three, opened):
    # The first to go is one that only follows: without their leader the others take longer to agree on a new one than a call may last.
    three.sort(key=EtcdServer.leads)
    registry = opened("etcd://" + ",".join(f"{HOST}:{member.port}" for member in three))
    revision = await create(registry, "a")
    seen: list[int] = []

    async def follow() -> None:
        while True:
            with contextlib.suppress(RegistryUnavailable):
                async for change in registry.watch("k", max([revision, *seen]) + 1):
                    seen.append(change.revision)

    following = asyncio.create_task(follow())
    made: list[int] = []

    async def write(count: int) -> None:
        while len(made) < count:
            made.append(await create(registry, f"k{len(made)}"))

    async with asyncio.timeout(4 * LATE_S):
        await write(3)
        three[0].stop()
        assert await registry.get("a") is not None  # the call itself goes on with another member
        await write(6)
        await asyncio.to_thread(three[0].start)
        three[1].stop()
        await write(9)
        while len(seen) < 9:
            await asyncio.sleep(0.02)
    assert seen == made
    # Without a majority nothing is answered, and in bounded time.
    three[2].stop()
    hurried = opened("etcd://" + ",".join(f"{HOST}:{member.port}" for member in three), call_timeout_s=HURRIED_S)
    patience = Patience()
    with pytest.raises(RegistryUnavailable):
        await hurried.get("a")
    with pytest.raises(RegistryUnavailable):
        await hurried.compare_and_set("b", 0, b"")
    assert patience.took_s < 3 * HURRIED_S + LATE_S
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


class Silence:
    """Stands before a server. Connections that were made before :meth:`fall` neither answer nor close from then on, as those to a machine
    that lost its power."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._silent: set[asyncio.StreamWriter] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        return int(self._server.sockets[0].getsockname()[1])

    def fall(self) -> None:
        self._silent.update(self._writers)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(HOST, self._to)
        self._writers += [writer, to_writer]
        for source, target in ((reader, to_writer), (to_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if target not in self._silent:
                    target.write(data)
                    await target.drain()
        if target not in self._silent:
            target.close()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("addresses", [1, 2])
async def test_a_watch_leaves_a_member_of_etcd_that_fell_silent(servers, addresses: int):
    """Calls go on with another member, and nothing ever closes the connection of the watch; or all members have one address."""
    from registry.etcd import PORT, EtcdRegistry
    from registry.urls import server_url

    server = servers(EtcdServer)
    silence = Silence(server.port)
    port = await silence.start()
    others = f",{HOST}:{server.port}" * (addresses - 1)
    url = server_url(f"etcd://{HOST}:{port}{others}", port=PORT, form="", options=())
    registry = EtcdRegistry(url, call_timeout_s=1.0, probe_s=0.3)
    try:
        begun, seen = await create(registry, "a"), list[int]()

        async def follow() -> None:
            while True:
                with contextlib.suppress(RegistryUnavailable):
                    async for change in registry.watch("", max([begun, *seen]) + 1):
                        seen.append(change.revision)

        following = asyncio.create_task(follow())
        made = [await create(registry, "b")]
        await until(lambda: asyncio.sleep(0, seen == made), "the watch follows")
        silence.fall()
        made.append(await create(registry, "c"))
        await until(lambda: asyncio.sleep(0, seen == made), "the watch goes on")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    finally:
        await registry.close()
        await silence.close()


async def test_a_write_is_not_trusted_to_a_member_that_was_not_tried(servers, opened):
    """The first call of all, and one after a while: a write that fails on the way would leave its caller in doubt."""
    (nobody,) = free_ports(1)
    server = servers(EtcdServer)
    for turn in range(10):
        # Who is not reached within a second is not written to either, and on a busy machine that may be anybody.
        with contextlib.suppress(RegistryUnavailable):
            registry = opened(f"etcd://{HOST}:{nobody},{HOST}:{server.port}")
            assert await registry.compare_and_set(f"a{turn}", 0, b"") is not None
            await asyncio.to_thread(server.restart)
            await asyncio.sleep(1.1)
            assert await registry.compare_and_set(f"b{turn}", 0, b"") is not None
            return
    raise AssertionError("writes were trusted to a member that was not there")


async def refusal(registry: Registry) -> str:
    """How a read is refused. Asked again when nobody was reached, as on a first connection on a busy machine."""

    async def told() -> str:
        with pytest.raises(RegistryUnavailable) as caught:
            await registry.get("a")
        return caught.value.detail if "refuses" in caught.value.detail else ""

    return await until(told, "it refuses")


async def test_a_user_of_etcd_and_a_token_that_was_lost(servers, opened, tmp_path):
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    try:
        server.enable_users("hunter2")
        assert await refusal(opened(server.url))
        assert "wrong" not in await refusal(opened(f"etcd://root:wrong@{HOST}:{server.port}"))
        registry = opened(f"etcd://root:hunter2@{HOST}:{server.port}")
        await back_again(registry)
        revision = await registry.compare_and_set("a", 0, b"")
        assert revision is not None
        await asyncio.to_thread(server.restart)  # forgets its tokens
        assert await until(lambda: answered(registry.get("a")), "it logs in again") is not None
        watching = asyncio.ensure_future(anext(registry.watch("", revision + 1)))
        await asyncio.sleep(0.1)
        made = await registry.compare_and_set("b", 0, b"")
        assert (await asyncio.wait_for(watching, LATE_S)).revision == made
    finally:
        server.close()


async def test_etcd_by_tls(opened, certificates, tmp_path):
    server = EtcdServer(
        tmp_path / "etcd",
        f"--cert-file={certificates / 'cert.pem'}",
        f"--key-file={certificates / 'key.pem'}",
        f"--trusted-ca-file={certificates / 'ca.pem'}",
        "--client-cert-auth",
        scheme="https",
    )
    server.begin()
    try:
        url = f"etcd://{HOST}:{server.port}?ca={certificates / 'ca.pem'}"
        registry = opened(f"{url}&cert={certificates / 'cert.pem'}&key={certificates / 'key.pem'}")

        async def made() -> bool:
            await answered(registry.compare_and_set("a", 0, b""))
            return await answered(registry.get("a")) is not None

        await until(made, "etcd serves")
        for wrong in (url, server.url):
            with pytest.raises(RegistryUnavailable):
                await opened(wrong, call_timeout_s=5.0).get("a")
    finally:
        server.close()


async def test_a_range_of_several_pages_is_of_one_revision(servers, opened, monkeypatch):
    import registry.etcd

    monkeypatch.setattr(registry.etcd, "PAGE_ENTRIES", 3)
    store = opened(servers(EtcdServer).url)
    await back_again(store)
    for i in range(10):
        await store.compare_and_set(f"k{i}", 0, b"")
    snapshot = await store.range("k")
    assert [entry.key for entry in snapshot.entries] == [f"k{i}" for i in range(10)]
    assert snapshot.revision == (await store.get("k9")).revision


def test_etcd_is_told_from_a_protobuf_that_was_imported_before():
    """With what to do, instead of a traceback from generated code."""
    code = (
        "import google.protobuf.descriptor_pb2\n"
        "from amberblob.errors import ConfigError\n"
        "from registry.factory import open_registry\n"
        "try:\n    open_registry('etcd://h')\n"
        "except ConfigError as error:\n    print(error.detail)\n"
    )
    free = {name: value for name, value in environment().items() if not name.startswith("PROTOCOL_BUFFERS")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=free, capture_output=True, text=True)
    assert "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION" in done.stdout, done.stderr
