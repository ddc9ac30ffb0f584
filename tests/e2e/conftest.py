"""What the e2e tests share: two replicas for the whole run, the proxy once per door and transport."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.clients import Guest, Replicas
from tests.e2e.processes import DOORS, TRANSPORTS, configuration, proxy, replica
from tests.e2e.replica import MODES


@pytest.fixture(scope="session")
def replicas() -> Iterator[Replicas]:
    """Two replicas of one server."""
    with ExitStack() as stack:
        yield Replicas({name: stack.enter_context(replica(name)) for name in ("one", "two")})


@pytest.fixture(
    scope="session",
    params=[(door, transport) for door in DOORS for transport in TRANSPORTS],
    ids=lambda pair: f"{pair[0]}-door-{pair[1]}-transport",
)
def origin(request: pytest.FixtureRequest, replicas: Replicas) -> Iterator[str]:
    """The proxy in front of both replicas, behind every door and with every transport."""
    door, transport = request.param
    pools = {f"/{mode}": replicas.urls(mode) for mode in MODES}
    config = configuration(pools, transport=transport)
    for mode, pool in config["pools"].items():
        if mode.startswith("stateless"):
            pool["balance"] = "round_robin"
    with proxy(door, config) as url:
        yield url


@pytest.fixture
def guest(origin: str, replicas: Replicas) -> Guest:
    """Somebody who connects through the proxy and can be found again in the journals."""
    return Guest(origin, replicas, uuid.uuid4().hex)
