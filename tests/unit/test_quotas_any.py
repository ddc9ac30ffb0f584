"""Quotas under any order of requests and limits, beside a model that counts everything anew."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mcp_proxy.quotas import Bounds, Quotas
from tests.unit.test_quotas import CALL, DELETE, DISCOVER, LISTEN, RESPONSE, STREAM, Asking

ALWAYS = (RESPONSE, DELETE, DISCOVER)
STREAMS = (STREAM, LISTEN)

_ASKINGS = st.sampled_from([CALL, STREAM, LISTEN, *ALWAYS])
_CLIENTS = st.sampled_from(["", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"])
_PRINCIPALS = st.sampled_from(["", "alice", "bob"])
_COUNTS = st.integers(1, 3)
_BOUNDS = st.builds(Bounds, _COUNTS, _COUNTS)


def share(client: str) -> str:
    return "2001:db8::/64" if ":" in client else client


class QuotasAgainstModel(RuleBasedStateMachine):
    """The model is the list of what is in progress, and looks at all of it at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.per_client = self.per_principal = Bounds(2, 2)
        self.streams = self.requests = 4
        self.quotas = Quotas(
            streams=4, requests=4, per_client=self.per_client, per_principal=self.per_principal
        )
        self.inside: list[tuple[Asking, str, str]] = []

    def among(self, askings: tuple[Asking, ...]) -> list[tuple[Asking, str, str]]:
        return [one for one in self.inside if one[0] in askings]

    def expected(self, asking: Asking, client: str, principal: str) -> str | None:
        if asking in ALWAYS:
            return None
        if asking in STREAMS:
            same, count, limit = self.among(STREAMS), len(self.among(STREAMS)), self.streams
            shares = (self.per_client.streams, self.per_principal.streams)
        else:
            same, count, limit = self.among((CALL,)), len(self.among((CALL, *ALWAYS))), self.requests
            shares = (self.per_client.requests, self.per_principal.requests)
        clients = Counter(share(one[1]) for one in same if one[1])
        principals = Counter(one[2] for one in same if one[2])
        if count >= limit:
            return "overloaded"
        of_one = ((clients[share(client)], shares[0]), (principals[principal], shares[1]))
        return "too_many_requests" if any(bound and had >= bound for had, bound in of_one) else None

    @rule(asking=_ASKINGS, client=_CLIENTS, principal=_PRINCIPALS)
    def ask(self, asking: Asking, client: str, principal: str) -> None:
        expected = self.expected(asking, client, principal)
        refusal = asking.enter(self.quotas, client, principal)
        assert (None if refusal is None else refusal.reason) == expected
        if refusal is None:
            self.inside.append((asking, client, principal))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        asking, client, principal = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        asking.leave(self.quotas, client, principal)

    @rule(streams=_COUNTS, requests=_COUNTS, per_client=_BOUNDS, per_principal=_BOUNDS)
    def change(self, streams: int, requests: int, per_client: Bounds, per_principal: Bounds) -> None:
        self.streams, self.requests = streams, requests
        self.per_client, self.per_principal = per_client, per_principal
        self.quotas.limit(streams, requests, per_client, per_principal, None)

    @invariant()
    def what_is_inside_is_counted(self) -> None:
        assert self.quotas.streams == len(self.among(STREAMS))
        assert self.quotas.requests == len(self.inside) - self.quotas.streams

    def teardown(self) -> None:
        for asking, client, principal in self.inside:
            asking.leave(self.quotas, client, principal)
        assert repr(self.quotas) == "<Quotas streams=0 requests=0 clients=0 principals=0 none>"


TestQuotas = QuotasAgainstModel.TestCase
TestQuotas.settings = settings(deadline=None, max_examples=50, stateful_step_count=50)
