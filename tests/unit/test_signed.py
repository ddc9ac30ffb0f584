"""Session ids that describe themselves: what opens, and everything that does not."""

from __future__ import annotations

import hashlib
import os
import struct
from base64 import urlsafe_b64encode
from functools import cache

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.errors import StoreError
from mcp_proxy.headers import is_session_id
from mcp_proxy.sessions import GONE, SessionKey, SessionRecord
from mcp_proxy.sessions import signed as signed_module
from mcp_proxy.sessions.signed import TOKEN_LIMIT, Derived, Seal

OLD, NEW = "an old secret of thirty-two chars", "a new secret of thirty-two chars."
A, B = "http://10.0.0.1:8000/mcp", "http://10.0.0.2:8000/mcp"
ROUTES = {"/mcp": [A, B], "/other": [A, B]}
PRINCIPAL = "0123456789abcdef" * 2
LONGEST = 318

derive = cache(signed_module.derive)
"""Slow on purpose; once per secret is enough for the tests."""


def make(*secrets: str, routes: dict[str, list[str]] = ROUTES) -> Seal:
    return knowing(Seal(secrets or (NEW,), derive), routes)


def knowing(seal: Seal, routes: dict[str, list[str]] = ROUTES) -> Seal:
    for route, backends in routes.items():
        seal.know(route, backends)
    return seal


def key(session_id: bytes = b"5f2b1c", route: str = "/mcp") -> SessionKey:
    return SessionKey(route, session_id)


def record(backend: str = A, principal: str = PRINCIPAL, created_s: int = 1_800_000_000) -> SessionRecord:
    return SessionRecord(backend, principal, created_s=created_s)


def parts(token: SessionKey) -> list[bytes]:
    return token.session_id.split(b".")


def by_hand(payload: bytes, secret: str = NEW, route: str = "/mcp") -> SessionKey:
    """A token with any payload, as only somebody who has the key could make it."""
    derived, nonce = derive(secret), os.urandom(12)
    context = b"v1" + derived.key_id + route.encode()
    sealed = nonce + AESGCM(derived.key).encrypt(nonce, payload, context)
    return SessionKey(route, b"v1." + derived.key_id + b"." + urlsafe_b64encode(sealed).rstrip(b"="))


visible = st.integers(0x21, 0x7E)
session_ids = st.lists(visible, min_size=1, max_size=LONGEST).map(bytes)

# --- what is sealed opens --------------------------------------------------------------------------


@settings(deadline=None)
@given(
    session_id=session_ids,
    backend=st.sampled_from([A, B]),
    principal=st.sampled_from(["", PRINCIPAL, "00", "ff" * 16]),
    created_s=st.integers(0, 2**32 - 1),
    route=st.sampled_from(list(ROUTES)),
)
def test_what_is_sealed_opens_as_it_was(
    session_id: bytes, backend: str, principal: str, created_s: int, route: str
) -> None:
    token = make().seal(SessionKey(route, session_id), record(backend, principal, created_s))

    assert is_session_id(token.session_id)
    assert token.route == route
    assert make().open(token) == SessionRecord(
        backend, principal, upstream_id=session_id, created_s=created_s
    )


@settings(deadline=None)
@given(principal=st.text(max_size=31) | st.binary(max_size=127).map(bytes.hex))
def test_a_principal_that_is_no_short_hash_comes_back_too(principal: str) -> None:
    opened = make().open(make().seal(key(), record(principal=principal)))

    assert opened is not None
    assert opened.principal == principal


@pytest.mark.parametrize("principal", ["AB" * 16, "abc", "ab cd", "\ud800", "é", "0" * 33, "alice"])
def test_a_principal_keeps_its_spelling(principal: str) -> None:
    opened = make().open(make().seal(key(), record(principal=principal)))

    assert opened is not None
    assert opened.principal == principal


def test_two_tokens_of_one_session_have_nothing_in_common_but_the_key() -> None:
    one, two = (parts(make().seal(key(), record())) for _ in range(2))

    assert one[:2] == two[:2]
    assert one[2] != two[2]


def test_a_token_shows_neither_addresses_nor_ids() -> None:
    token = make().seal(key(b"upstream-id"), record(principal="alice"))

    for text in (A.encode(), b"10.0.0.1", b"upstream-id", b"alice", NEW.encode()):
        assert text not in token.session_id
        assert urlsafe_b64encode(text).rstrip(b"=")[:-1] not in token.session_id


def test_tokens_of_this_version_open_for_ever() -> None:
    token = (
        b"v1.0384703d.y7VeXdyi_tmR1tEO0BftzUoQf8Mh4BORsCHG6NnNCnlcVqRY"
        b"EY5WOYfYq4z7CgB6xx9xGPPusaoEl7IGDvMvemZCLw"
    )

    assert make().open(key(token)) == SessionRecord(
        B, PRINCIPAL, upstream_id=b"upstream-1", created_s=1_800_000_000
    )


def test_a_time_that_does_not_fit_becomes_the_nearest_that_does() -> None:
    times = []
    for created_s in (-1, 2**40):
        opened = make().open(make().seal(key(), record(created_s=created_s)))
        times.append(opened.created_s if opened else None)

    assert times == [0, 2**32 - 1]


# --- what cannot be sealed -------------------------------------------------------------------------


@pytest.mark.parametrize(("principal", "longest"), [("", 334), (PRINCIPAL, LONGEST), ("alice", 329)])
def test_the_longest_id_fills_512_bytes_and_one_more_is_refused(principal: str, longest: int) -> None:
    token = make().seal(key(b"~" * longest), record(principal=principal))
    opened = make().open(token)

    assert len(token.session_id) == TOKEN_LIMIT
    assert opened is not None
    assert opened.upstream_id == b"~" * longest
    with pytest.raises(StoreError, match=f"id of {longest + 1} bytes; .* at most {longest}$"):
        make().seal(key(b"~" * (longest + 1)), record(principal=principal))


@pytest.mark.parametrize("principal", ["ab" * 128, "x" * 128, "é" * 64])
def test_a_principal_beyond_127_bytes_is_refused(principal: str) -> None:
    with pytest.raises(StoreError, match="principal"):
        make().seal(key(), record(principal=principal))


@pytest.mark.parametrize(("backend", "route"), [("http://10.9.9.9:80/mcp", "/mcp"), (A, "/unknown")])
def test_a_backend_that_no_lookup_could_find_is_refused(backend: str, route: str) -> None:
    with pytest.raises(StoreError, match="not configured on its route"):
        make().seal(key(route=route), record(backend))


def test_there_is_no_seal_without_a_secret() -> None:
    with pytest.raises(ValueError, match="secret"):
        Seal([], derive)


# --- what does not open ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])  # one, two and no characters in the last group
def test_no_byte_can_be_any_other(length: int) -> None:
    opener = make()
    token = opener.seal(key(b"x" * length), record()).session_id

    for at, byte in enumerate(token):
        for other in set(range(256)) - {byte}:
            assert opener.open(key(token[:at] + bytes([other]) + token[at + 1 :])) is None, (at, other)


def test_nothing_can_be_cut_off_added_or_left_out() -> None:
    opener = make()
    token = opener.seal(key(), record()).session_id

    for at in range(len(token)):
        assert opener.open(key(token[:at])) is None
        assert opener.open(key(token[at + 1 :])) is None
        assert opener.open(key(token[:at] + token[at + 1 :])) is None
        for added in (b"A", b"=", b".", b"\n", b" ", b"\0"):
            assert opener.open(key(token[:at] + added + token[at:])) is None
    for ending in (b"A", b"AAAA", b"=", b"==", b"===", b".", b".AA", b"\n"):
        assert opener.open(key(token + ending)) is None


def test_no_splice_of_two_tokens_opens() -> None:
    opener = make()
    one = opener.seal(key(b"session-1"), record(A)).session_id
    two = opener.seal(key(b"session-2"), record(B, "")).session_id

    for at in range(len(b"v1.12345678.") + 1, len(two)):
        assert opener.open(key(one[:at] + two[at:])) is None
        assert opener.open(key(two[:at] + one[at:])) is None
        assert opener.open(key(one[:at] + two[at - len(one) :])) is None


def test_the_other_alphabet_of_base64_does_not_open() -> None:
    opener = make()
    tokens = [opener.seal(key(), record()).session_id for _ in range(50)]
    different = [token for token in tokens if b"-" in token or b"_" in token]

    assert different
    for token in different:
        assert opener.open(key(token)) is not None
        assert opener.open(key(token.replace(b"-", b"+").replace(b"_", b"/"))) is None


def test_a_token_is_none_on_another_route() -> None:
    token = make().seal(key(), record())

    assert make().open(SessionKey("/other", token.session_id)) is None
    assert make().open(SessionKey("/mc", token.session_id)) is None


def test_what_is_too_long_is_not_looked_at() -> None:
    token = by_hand(struct.pack(">I8sB", 1, b"12345678", 0) + b"x" * 335)

    assert len(token.session_id) == TOKEN_LIMIT + 2
    assert make().open(token) is None


FORGED = st.binary(max_size=600) | st.lists(visible, max_size=520).map(bytes)


@settings(deadline=None)
@given(
    text=FORGED
    | FORGED.map(lambda text: b"v1." + text)
    | FORGED.map(lambda text: b"v1." + derive(NEW).key_id + b"." + text)
    | FORGED.map(lambda text: b"v1." + derive(NEW).key_id + b"." + urlsafe_b64encode(text).rstrip(b"=")),
    route=st.text() | st.just("\ud800"),
)
def test_whatever_a_client_sends_is_no_session_and_no_error(text: bytes, route: str) -> None:
    assert make().open(SessionKey(route, text)) is None


@settings(deadline=None)
@given(payload=st.binary(max_size=13) | st.binary(max_size=300))
def test_not_even_who_has_the_key_can_make_it_raise(payload: bytes) -> None:
    opened = make().open(by_hand(payload))

    assert opened is None or opened.backend.startswith(GONE)


# --- what backends issue ---------------------------------------------------------------------------


def test_an_id_of_a_backend_that_looks_like_a_token_is_sealed_like_any_other() -> None:
    genuine = make().seal(key(b"somebody-else"), record(A)).session_id
    for upstream_id in (genuine, b"v1.", b"v1.12345678.AAAA", b"v1." + derive(NEW).key_id + b".AAAA"):
        token = make().seal(key(upstream_id), record(B))
        opened = make().open(token)

        assert token.session_id != upstream_id
        assert opened is not None
        assert (opened.backend, opened.upstream_id) == (B, upstream_id)


@pytest.mark.parametrize(
    "upstream_id",
    [
        b"6a1f0c3e9b7d4c5f8e2a1b3c4d5e6f70",
        b"1868a90c-8f3e-4c5a-9b7d-000000000000",
        b"eyJhbGciOiJI.eyJzdWIi.c2ln",
    ],
)
def test_an_id_of_a_backend_opens_only_as_a_token(upstream_id: bytes) -> None:
    assert make().open(key(upstream_id)) is None
    assert make().open(make().seal(key(upstream_id), record())) is not None


# --- backends that left ----------------------------------------------------------------------------


def test_a_session_whose_backend_left_the_route_is_lost_and_not_unknown() -> None:
    token = make().seal(key(b"upstream-1"), record(B))
    opened = make(routes={"/mcp": [A], "/other": [A, B]}).open(token)

    assert opened is not None
    assert opened.backend == GONE + hashlib.blake2b(B.encode(), digest_size=8).hexdigest()
    assert (opened.principal, opened.upstream_id) == (PRINCIPAL, b"upstream-1")
    assert make(routes={}).open(token) == opened


def test_a_backend_that_comes_back_has_its_sessions_again() -> None:
    token = make().seal(key(), record(B))
    opened = make(routes={"/mcp": ["http://10.0.0.3:80/mcp", B]}).open(token)

    assert opened is not None
    assert opened.backend == B


# --- keys ------------------------------------------------------------------------------------------


def test_all_secrets_open_and_the_first_one_seals() -> None:
    old_token = make(OLD).seal(key(), record())
    both = make(NEW, OLD)
    new_token = both.seal(key(), record())

    assert both.open(old_token) is not None
    assert make(NEW).open(new_token) is not None
    assert make(OLD).open(new_token) is None
    assert make(NEW).open(old_token) is None


def test_a_secret_given_twice_is_one() -> None:
    token = make(NEW, NEW, OLD).seal(key(), record())

    assert make(NEW).open(token) is not None


def test_secrets_whose_key_ids_are_the_same_both_open() -> None:
    def collide(secret: str) -> Derived:
        return derive(secret)._replace(key_id=b"00000000")

    old, new = knowing(Seal([OLD], collide)), knowing(Seal([NEW], collide))
    both = knowing(Seal([NEW, OLD], collide))
    old_token, new_token = old.seal(key(), record()), new.seal(key(), record())

    assert parts(old_token)[:2] == parts(new_token)[:2]
    assert both.open(old_token) is not None
    assert both.open(new_token) is not None
    assert new.open(old_token) is None
    assert new.open(both.seal(key(), record())) is not None


def test_the_key_of_a_secret_is_the_same_on_every_replica() -> None:
    key_bytes, key_id = derive(NEW)

    assert len(key_bytes) == 32
    assert (hashlib.sha256(key_bytes).hexdigest()[:16], key_id) == ("347360a8dc46435c", b"0384703d")
    assert knowing(Seal([NEW])).open(make().seal(key(), record())) is not None


def test_the_key_id_of_a_token_keeps_to_the_key_that_sealed_it() -> None:
    both = make(NEW, OLD)
    token = both.seal(key(), record()).session_id

    assert both.open(key(token.replace(derive(NEW).key_id, derive(OLD).key_id))) is None
