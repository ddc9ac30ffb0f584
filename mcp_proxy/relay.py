"""What becomes of a response head that is passed on: an ordinary answer, the birth of a session, its end.

Rules of this file: the ordinary answer costs a few comparisons. What a head says about a session is
written down before it leaves (``keeper.py``); a head that the proxy must not pass on as it is becomes one
that it may, or a refusal (``responses.py``).
"""

from __future__ import annotations

import msgspec

from mcp_proxy.errors import Fault, StoreError
from mcp_proxy.exchange import Exchange
from mcp_proxy.headers import Facts, is_session_id, read_facts
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.owners import Owners
from mcp_proxy.responses import adapt
from mcp_proxy.routing import Aim, Era, Plan
from mcp_proxy.sticky import SessionRouting
from mcp_proxy.wire import Fields, Rejection


class Relay:
    """Passes heads on for the gateway."""

    def __init__(self, keeper: SessionKeeper, sticky: SessionRouting, owners: Owners) -> None:
        self._keeper = keeper
        self._sticky = sticky
        self._owners = owners

    def relay(self, exchange: Exchange, plan: Plan, status: int, headers: Fields, length: int | None) -> None:
        facts: Facts | None = headers.note
        if facts is None:
            headers.note = facts = read_facts(headers)
        if facts.changed is not None:
            headers = facts.changed
        exchange.is_stream = facts.is_stream
        if plan.aim is Aim.NEW_SESSION and 200 <= status < 300:
            exchange.pool.learn_sessions(facts.session_id is not None)
            if facts.session_id is not None:
                self._learn(exchange, facts.session_id, status, headers, length)
                return
        head, record = exchange.admission.head, exchange.record
        theirs = head.session_id if record is None else record.upstream_id or head.session_id
        if (
            status == 200
            and facts.session_id == theirs == head.session_id
            and facts.location is head.origin is None
            and not plan.ends_session
            and exchange.pool.tap is None
        ):
            exchange.relay(status, headers, length)
        else:
            self._relay_other(exchange, status, headers, length, facts, theirs)

    def _relay_other(
        self,
        exchange: Exchange,
        status: int,
        headers: Fields,
        length: int | None,
        facts: Facts,
        theirs: bytes | None,
    ) -> None:
        """All that is not an ordinary answer. ``theirs``: how the backend calls the session."""
        head, plan = exchange.admission.head, exchange.plan
        assert plan is not None
        if status == 200 and facts.location is head.origin is None and facts.session_id == theirs:
            if theirs != head.session_id:
                headers = facts.named(headers, head.session_id or b"")
        else:
            adapted = self._adapt(exchange, status, headers, facts, theirs, head.session_id)
            if adapted is None:
                return
            headers = adapted
        if plan.aim is Aim.SESSION and (status == 404 or plan.ends_session):
            self._sticky.relay(exchange, plan, status, headers, length)
            return
        if exchange.pool.tap is not None and plan.era is Era.MODERN and 200 <= status < 300:
            self._owners.listen(exchange)
        exchange.relay(status, headers, length)

    def _adapt(
        self,
        exchange: Exchange,
        status: int,
        headers: Fields,
        facts: Facts,
        theirs: bytes | None,
        ours: bytes | None,
    ) -> Fields | None:
        """The headers to pass on; None: the exchange has been refused. The session that the backend
        calls ``theirs`` is ``ours`` to the client."""
        admission = exchange.admission
        assert exchange.backend is not None
        adapted = adapt(
            status,
            headers,
            facts,
            backend=exchange.backend.id,
            route=admission.route,
            has_credentials=exchange.pool.authorization is not None,
            origin=admission.head.origin,
            theirs=theirs,
            ours=ours,
        )
        if isinstance(adapted, Rejection):
            exchange.refuse(msgspec.structs.replace(adapted, id=exchange.id), Fault.BACKEND)
            return None
        return adapted

    def _learn(
        self, exchange: Exchange, session_id: bytes, status: int, headers: Fields, length: int | None
    ) -> None:
        """A session begins: write it down first, relay the head then."""
        if not is_session_id(session_id):
            detail = "the backend issued an illegal session id"
            exchange.refuse(Rejection("upstream_invalid", detail, exchange.id), Fault.BACKEND)
            return
        try:
            key, record = self._keeper.issue(exchange, session_id)
        except StoreError as error:
            self._keeper.say_goodbye(exchange, session_id)
            exchange.refuse(Rejection("upstream_invalid", str(error), exchange.id), Fault.BACKEND)
            return
        facts: Facts = headers.note or read_facts(headers)
        adapted = self._adapt(exchange, status, headers, facts, session_id, key.session_id)
        if adapted is not None:
            self._keeper.learn(exchange, key, record, status, adapted, length)
