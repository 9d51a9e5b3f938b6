"""What the transport tests share that pytest hands in."""

import pytest

from tests.unit.node.transport.transport_kit import WAIT_S


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a machine that stands still neither a connection nor a handshake is overdue, unless a test has it be so."""
    monkeypatch.setattr("node.transport.link.CONNECT_TIMEOUT_S", WAIT_S)
    monkeypatch.setattr("node.transport.connection.HANDSHAKE_TIMEOUT_S", WAIT_S)
