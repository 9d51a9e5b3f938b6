"""The rivals of the benchmark, where they are installed: they start, keep what they are given, and leave nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import bulk
from bench.pairs import Pace, prepare
from bench.rivals.beside import RIVALS
from bench.rivals.common import NotInstalled, listens

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
SIZES = (4096, 3 * 2**20)


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_serves_and_is_gone(name, tmp_path):
    try:
        rival = RIVALS[name].start(tmp_path)
    except NotInstalled as error:
        pytest.skip(str(error))
    with rival as store:
        pids = list(store.pids)
        assert len(pids) == {"swift": 13, "radosgw": 6}[name]
        for size in SIZES:
            body = os.urandom(size)
            bulk.put(store.ports[0], f"{store.base}large/{size}", size, body, headers=store.headers)
            for port in store.ports:
                bulk.get(port, f"{store.base}large/{size}", size, headers=store.headers)
        prepare(store, Pace(window_s=0.2, settle_s=0, transfers=1))
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(map(listens, store.ports))
