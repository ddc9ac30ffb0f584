"""Sessions that begin badly: nobody leaves one behind, with or without a stream.

Rules of this file: those of ``test_load_users.py``. A user whose ``stopping`` is set does not rest after a
failure.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.stub_http import Exchange, Request
from mcp_proxy.load.users.session import CALLS_PER_SESSION, SessionUser
from tests.unit.loadrig import RunningStub, only, plan_for, running_stub, until


@pytest.fixture
def server() -> Iterator[RunningStub]:
    with running_stub() as running:
        yield running


@pytest.mark.parametrize("refused", [b'"tools/list"', b'"notifications/initialized"'], ids=["list", "told"])
def test_a_beginning_that_fails_leaves_no_session_and_no_stream_behind(
    server: RunningStub, refused: bytes
) -> None:
    def fail(request: Request, exchange: Exchange) -> bool:
        if refused in request.body:
            exchange.answer(500)
            return True
        return False

    server.before = fail
    user = SessionUser(plan_for(server.target), Ledger())
    user.client.stopping.set()
    for _ in range(3):
        user.step()
    user.end()
    methods = server.methods()
    assert methods.count("initialize") == methods.count("DELETE") == 3
    assert "GET" not in methods
    assert server.stub.sessions == {}


def test_a_session_that_is_unknown_is_not_ended(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target, only(get_stream=False)), Ledger())
    user.step()
    user.lost()
    user.end()
    assert "DELETE" not in server.methods()


def test_the_next_session_of_a_user_has_its_stream_also_if_it_begins_badly(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target), Ledger())
    user.step()
    user._calls = CALLS_PER_SESSION
    user.client.stopping.set()

    def fail(request: Request, exchange: Exchange) -> bool:
        if b'"tools/list"' in request.body:
            exchange.answer(500)
            return True
        return False

    server.before = fail
    user.step()
    server.before = None
    user.step()
    until(lambda: server.methods().count("GET") == 2)
    user.end()
    assert server.stub.sessions == {}
