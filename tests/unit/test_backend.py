"""Backends as balancing sees them."""

from __future__ import annotations

import pytest

from mcp_proxy.backends import Backend, Drain, Ejection, Standing
from tests.unit.lineup import make, stand


@pytest.mark.parametrize(
    ("host", "port", "tls", "origin"),
    [
        ("10.0.0.1", 8000, False, "http://10.0.0.1:8000"),
        ("10.0.0.1", 80, False, "http://10.0.0.1:80"),
        ("mcp.example.com", 443, True, "https://mcp.example.com:443"),
        ("2001:db8::1", 8000, False, "http://[2001:db8::1]:8000"),
    ],
)
def test_a_backend_is_known_by_its_url_with_its_port(host: str, port: int, tls: bool, origin: str) -> None:
    backend = Backend(host, port, b"/mcp", tls=tls)

    assert backend.origin == origin
    assert backend.id == origin + "/mcp"


@pytest.mark.parametrize(
    ("is_drained", "is_reached", "is_healthy", "ejection", "standing"),
    [
        (False, True, True, Ejection.NONE, Standing.GOOD),
        (False, True, True, Ejection.OUT, Standing.POOR),
        (False, True, True, Ejection.DUE, Standing.TRIAL),
        (False, True, True, Ejection.PROBED, Standing.POOR),
        (False, False, True, Ejection.NONE, Standing.POOR),
        (False, False, True, Ejection.DUE, Standing.POOR),
        (False, True, False, Ejection.NONE, Standing.POOR),
        (True, True, True, Ejection.NONE, Standing.CLOSED),
        (True, False, False, Ejection.DUE, Standing.CLOSED),
    ],
)
def test_the_standing_of_a_backend_follows_from_what_is_known(
    is_drained: bool, is_reached: bool, is_healthy: bool, ejection: Ejection, standing: Standing
) -> None:
    backend = make("a")
    backend.drain = Drain(0.0, 10.0, "reload") if is_drained else None
    backend.unreachable_since_s = None if is_reached else 5.0
    backend.is_healthy = is_healthy
    backend.ejection = ejection

    assert backend.standing is standing


def test_a_backend_describes_itself() -> None:
    backend = make("a", sessions=1, inflight=2)
    backend.streams = 3

    assert repr(backend) == "<Backend http://a:80/mcp good sessions=1 inflight=2 streams=3>"
    stand(backend, Standing.POOR)
    assert repr(backend) == "<Backend http://a:80/mcp poor sessions=1 inflight=2 streams=3>"
