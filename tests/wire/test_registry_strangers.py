"""Somebody else's session, forged ids and ids that would do harm as keys: the answer is that of an unknown
session, byte for byte, and nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.tools.client import Answer, Client, call, get, post
from tests.wire.registry_rig import KEY, Replicas, Session
from tests.wire.registry_site import STORES, case, registry, replicas

ALICE = "x-test-principal: https://issuer.example/alice"
OTHERS = (
    "x-test-principal: https://issuer.example/bob",
    "x-test-principal: https://other.example/alice",
    "x-test-principal: https://issuer.example/ALICE",
    "X-Test-Anonymous: yes",
)
METHODS = ("POST", "GET", "DELETE")


@pytest.fixture(scope="module", params=STORES)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with registry(request.param) as redis:
        async with replicas(folder, request.param, redis=redis, program="tests.tools.policy_proxy") as site:
            yield site


@pytest.fixture
async def site(shared: Replicas) -> AsyncIterator[Replicas]:
    async with case(shared):
        yield shared


async def ask(site: Replicas, at: int, method: str, id_: str, *fields: str, path: str = "/mcp") -> Answer:
    """The same request but for the session id, on a connection of its own."""
    lines = (f"Mcp-Session-Id: {id_}", *fields)
    request = post(call(7), *lines, target=path)
    if method != "POST":
        request = get(*lines, target=path, method=method)
    async with await Client.connect(site.proxies[at].port) as client:
        return await client.ask(request, method)


def seen(answer: Answer) -> tuple[bytes, bytes, str]:
    """All that a client can tell of an answer, but its time."""
    head = b"\r\n".join(
        line
        for line in answer.head.raw.split(b"\r\n")
        if not line.lower().startswith((b"date:", b"x-request-id:"))
    )
    return head, answer.body, answer.framing


def unused(site: Replicas) -> str:
    """As long and of the same form as real ones."""
    return "v1.00000000." + "A" * 80 if "signed" in site.store else "oslo-0123456789abcdef"


def kept(site: Replicas) -> dict[bytes, tuple[bytes, int]]:
    """What Redis holds: values and times to live."""
    if site.redis is None:
        return {}
    redis = site.redis
    return {
        key: (redis.command("GET", key), redis.command("PTTL", key)) for key in redis.command("KEYS", "*")
    }


def assert_nothing_changed(site: Replicas, before: dict[bytes, tuple[bytes, int]]) -> None:
    after = kept(site)
    assert {key: value for key, (value, _) in after.items()} == {
        key: value for key, (value, _) in before.items()
    }
    assert all(after[key][1] <= ttl_ms for key, (_, ttl_ms) in before.items())


async def assert_unknown(site: Replicas, id_: str, *fields: str, path: str = "/mcp") -> None:
    """Every method on every replica; and no backend hears of it."""
    heard = len(site.received())
    for at in range(len(site.proxies)):
        for method in METHODS:
            reference = await ask(site, at, method, unused(site), *fields, path=path)
            assert (reference.status, reference.reason) == (404, "session_not_found")
            answer = await ask(site, at, method, id_, *fields, path=path)
            assert seen(answer) == seen(reference), (at, method)
    assert len(site.received()) == heard


@pytest.mark.parametrize("path", ["/mcp", "/moving"])
@pytest.mark.parametrize("warm", ["known to both", "known to one", "known to none"])
async def test_a_session_belongs_to_who_created_it(site: Replicas, path: str, warm: str) -> None:
    if path == "/moving" and site.store == "signed":
        path = "/again"
    session = await site.open(0, ALICE, path=path)
    if warm == "known to both":
        await site.works(1, session)
    elif warm == "known to none":
        await forget(site)
    client, stream = await site.listen(0, session) if warm == "known to both" else (None, None)
    before = kept(site)

    for principal in OTHERS:
        await assert_unknown(site, session.id, principal, path=path)

    assert_nothing_changed(site, before)
    if client is not None and stream is not None:
        await stream.send(b"data: for alice\n\n")
        await client.body_until(b"for alice")
        await stream.end()
    for at in (0, 1):
        await site.works(at, session)
    assert (await site.delete(1, session)).status == 200


async def forget(site: Replicas) -> None:
    """Replicas believe nothing that they know: their connections were lost."""
    for line in site.lines:
        line.cut()
    if site.lines:
        await site.settled()


async def test_a_session_of_nobody_is_not_for_somebody(site: Replicas) -> None:
    session = await site.open(0)
    await assert_unknown(site, session.id, ALICE)
    await site.works(1, session)


async def test_while_the_registry_is_away_strangers_learn_nothing(site: Replicas) -> None:
    if site.redis is None:
        return
    session = await site.open(0, ALICE)
    await site.works(1, session)
    site.redis.freeze()
    try:
        for at in (0, 1):
            for method in METHODS:
                unknown = await ask(site, at, method, unused(site), OTHERS[0])
                assert seen(await ask(site, at, method, session.id, OTHERS[0])) == seen(unknown)
            await site.works(at, session)
    finally:
        site.redis.thaw()
    await site.settled()


async def test_many_strangers_at_once_do_not_disturb_the_owner(site: Replicas) -> None:
    session = await site.open(0, ALICE)
    reference = seen(await ask(site, 1, "POST", unused(site), OTHERS[0]))

    async def stranger() -> None:
        assert seen(await ask(site, 1, "POST", session.id, OTHERS[0])) == reference

    await asyncio.gather(*(stranger() if n % 2 else site.works(1, session) for n in range(40)))


async def test_a_session_of_another_route_is_unknown(site: Replicas) -> None:
    session = await site.open(0)
    await site.works(1, session)
    before = kept(site)
    await assert_unknown(site, session.id, path="/again")
    await assert_unknown(site, session.id, path="/tapped")
    assert_nothing_changed(site, before)
    await site.works(1, session)


def _forgeries(id_: str) -> list[str]:
    """Ids that differ from a genuine one as little as possible."""
    middle = len(id_) // 2
    swapped = "B" if id_[middle] != "B" else "C"
    version, key_id, sealed = (id_.split(".") * 3)[:3]
    return [
        id_[:-1],
        id_ + "A",
        id_ + "=",
        id_ + ".",
        id_[:middle] + swapped + id_[middle + 1 :],
        id_.swapcase(),
        f"v2.{key_id}.{sealed}",
        f"{version}.00000000.{sealed}",
        f"{version}.{key_id}.",
        f"{version}.{key_id.upper()}X.{sealed}",
        f"{version}..{sealed}",
    ]


async def test_a_forged_id_is_unknown(site: Replicas) -> None:
    session = await site.open(0)
    await site.works(1, session)
    before = kept(site)
    for forged in _forgeries(session.id):
        assert forged != session.id
        await assert_unknown(site, forged)
    assert_nothing_changed(site, before)
    await site.works(0, session)


HARMFUL = [
    "a b", " ", "a\tb", "{x}", "{" + "x" * 20 + "}", "*", "?", "[a-z]*", "..", "../../etc/passwd",
    "\\", '"', "'", "%00", "%0d%0a", "$1", "KEYS[1]", "0", "-1", "x" * 512, "x" * 513, "x" * 4096,
    "mcp-proxy:session:" + "0" * 40,
]  # fmt: skip


async def test_an_id_that_is_none_is_unknown_and_no_key(site: Replicas) -> None:
    before = kept(site)
    for id_ in HARMFUL:
        await assert_unknown(site, id_, ALICE)
    assert kept(site).keys() <= before.keys()


async def test_an_id_that_is_no_text_is_not_even_a_request(site: Replicas) -> None:
    heard = len(site.received())
    before = kept(site)
    for id_ in ("a\rb", "a\x7fb", "a\nb", "a\0b", "\x1f", "\xe9"):
        for method in METHODS:
            answer = await ask(site, 0, method, id_)
            assert (answer.status, answer.says_close) == (400, True), id_
    assert len(site.received()) == heard
    assert kept(site).keys() <= before.keys()


async def test_two_session_ids_are_none(site: Replicas) -> None:
    session = await site.open(0)
    answer = await ask(site, 0, "POST", session.id, f"Mcp-Session-Id: {session.id}")
    assert answer.status == 400
    await site.works(0, session)


async def test_a_token_of_another_key_is_unknown(
    site: Replicas, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a foreign replica has sealed for the same route and the same backends."""
    if "signed" not in site.store:
        return
    backends = [backend.url for backend in site.backends]
    over = {
        "sessions": {"store": "signed", "keys": [KEY[::-1]]},
        "pools": {"tools": {"backends": backends}},
    }
    folder = tmp_path_factory.mktemp("foreign")
    async with replicas(folder, "signed", over=over, count=1) as foreign:
        session: Session = await foreign.open(0)
        foreign.hang_up()
    site.expect("POST 1")  # its initialize
    await assert_unknown(site, session.id)
