"""Every test here that asks for ``backend`` or ``clients`` runs on every kind of registry.

A server is started once for a process of pytest; a test that does something to it finds it whole, and empty, all the same.
"""

from collections.abc import AsyncIterator

import pytest

from registry.interface import Registry
from tests.contract.registry.backends import BACKENDS, HURRIED_S, Etcd, Redis
from tests.contract.registry.servers import EtcdServer, RedisServer, Server
from tests.contract.registry.tries import back_again


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Gives a server of a kind; it is started once, and whole and empty whenever it is asked for."""
    started: dict[type[Server], Server] = {}

    def get(kind: type[Server]) -> Server:
        if kind not in started:
            started[kind] = kind(tmp_path_factory.mktemp(kind.PROGRAM))
        server = started[kind]
        if not server.running:
            server.start()
        server.clear()
        return server

    yield get
    for server in started.values():
        server.close()


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.__name__.lower())
def backend(request, tmp_path, servers):
    kinds = {Etcd: EtcdServer, Redis: RedisServer}
    if request.param in kinds:
        return request.param(servers(kinds[request.param]))
    return request.param(tmp_path)


@pytest.fixture
async def clients(backend) -> AsyncIterator[tuple[Registry, Registry]]:
    first, second = backend.client(), backend.client()
    # A client of etcd gives a server a second or two to take a connection, and on a busy machine it may need longer.
    await back_again(first, second)
    yield first, second
    await first.close()
    await second.close()


@pytest.fixture
async def hurried(backend) -> AsyncIterator[tuple[Registry, Registry]]:
    """Clients that do not wait long."""
    first, second = (backend.client(call_timeout_s=HURRIED_S) for _ in range(2))
    yield first, second
    await first.close()
    await second.close()


@pytest.fixture
def server(backend) -> Server:
    """The server behind the backend."""
    assert backend.server is not None
    return backend.server
