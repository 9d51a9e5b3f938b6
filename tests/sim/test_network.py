"""The network of the worlds: what nodes believe of each other while links are cut and mended."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest

from amberblob.errors import PeerTimeout, PeerUnreachable
from amberblob.wire import Ping
from sim.loop import Process, SimLoop
from sim.network import SILENCE_S, Network, Peer, SimPeers


class Silent:
    """Answers nothing: what is tried here never comes to it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a peer that no message reaches")


@pytest.mark.parametrize("cut", [("n1", "n2"), ("n2", "n1")])
def test_a_node_that_was_out_of_reach_is_found_again_without_any_request(cut: tuple[str, str]):
    """Seed 5000638: one node took all others for unreachable after a cut, asked nobody, and never compared its copies again."""
    loop = SimLoop()
    try:
        network = Network(loop=loop, random=Random(1), fired=Counter(), note=lambda text: None)
        process = Process("n1/1")
        network.peers["n2"] = Peer(Process("n2/1"), Silent())
        peers = SimPeers(network, "n1", process, Silent())
        assert peers.reachable("n2")

        async def course() -> None:
            network.cut.add(("n1", "n2"))
            with pytest.raises(PeerTimeout):
                await peers.call("n2", Ping(now_ms=0), timeout_s=1.0)
            network.cut.clear()
            network.cut.add(cut)
            for _ in range(10):
                assert not peers.reachable("n2")
                await asyncio.sleep(1.0)
            network.peers["n2"].process.alive = False
            network.cut.clear()
            await asyncio.sleep(10.0)
            assert not peers.reachable("n2"), "it is down"
            network.peers["n2"].process.alive = True
            await asyncio.sleep(3.0)
            assert peers.reachable("n2")

        loop.run_until_complete(loop.create_task(course(), context=process.context()))
    finally:
        loop.close()


@pytest.mark.parametrize("dies", [False, True])
def test_who_waits_for_minutes_is_told_that_the_connection_is_silent_or_closed(dies: bool):
    """As pings tell the real caller. Else a job that asks all nodes would stand still for five minutes after each message that was lost."""
    loop = SimLoop()
    try:
        network = Network(loop=loop, random=Random(1), fired=Counter(), note=lambda text: None)
        process, other = Process("n1/1"), Process("n2/1")
        network.peers["n2"] = Peer(other, Silent())
        peers = SimPeers(network, "n1", process, Silent())
        if dies:
            loop.pause(other)  # the message arrives, and nobody works on it
            loop.call_later(2.0, loop.kill, other)
            loop.call_later(2.0, network.died, "n2")
        else:
            network.cut.add(("n1", "n2"))

        async def course() -> float:
            with pytest.raises(PeerUnreachable):
                await peers.call("n2", Ping(now_ms=0), timeout_s=300.0)
            return loop.time()

        took_s = loop.run_until_complete(loop.create_task(course(), context=process.context()))
        assert took_s == pytest.approx(2.0 if dies else SILENCE_S)
        assert not network.patient
    finally:
        loop.close()
