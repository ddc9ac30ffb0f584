"""Requests of the stateless era through two replicas: a caller keeps to one backend, and whoever comes back
to a task or a request state reaches the backend that keeps it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Answer, post
from tests.tools.mcp_backend import JSON, result
from tests.tools.recording import Conn, Seen
from tests.wire.registry_rig import Replicas, Server
from tests.wire.registry_site import SHARED, case, registry, replicas

VERSION = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": VERSION}
ALICE, BOB = "x-test-principal: issuer/alice", "x-test-principal: issuer/bob"


class Keeper:
    """Wraps a session server: tools answer with a task or a request state that this server keeps."""

    def __init__(self, backend: Backend) -> None:
        assert isinstance(backend.handler, Server)
        self.inner = backend.handler
        self.name = self.inner.name
        self.sessions = self.inner.sessions
        self.streams = self.inner.streams

    async def __call__(self, request: Seen, conn: Conn) -> None:
        body = await request.whole()
        message = json.loads(body) if body else {}
        value = self._answer(message)
        if request.head.one("mcp-protocol-version") != VERSION.encode() or value is None:
            await self.inner(request, conn)
        elif value.get("as_events"):
            await conn.stream_head()
            await conn.send_chunk(b": hello\n\ndata: " + result(message, **value) + b"\n\n")
            await conn.send(b"0\r\n\r\n")
        else:
            await conn.answer(200, [JSON], result(message, **value))

    def _answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        params = message.get("params", {})
        name, method = params.get("name"), message.get("method")
        told: dict[str, Any] = {"server": self.name}
        if method != "tools/call":
            return told if method in ("tasks/get", "tools/list") else None
        if "requestState" in params:
            return told | {"resultType": "complete"}
        if name in ("task", "events"):
            task = {"resultType": "task", "taskId": params["arguments"]["id"]}
            return told | task | ({"as_events": True} if name == "events" else {})
        if name == "state":
            return told | {"resultType": "input_required", "requestState": params["arguments"]["id"]}
        return told


@pytest.fixture(scope="module", params=SHARED)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    pools = {"tapped": {"balance": "round_robin"}, "tools": {"balance": "round_robin"}}
    over = {"pools": pools}
    program = "tests.tools.policy_proxy"
    with registry(request.param) as redis:
        async with replicas(folder, request.param, redis=redis, over=over, program=program) as site:
            yield site


@pytest.fixture
async def site(shared: Replicas) -> AsyncIterator[Replicas]:
    await shared.settled()
    async with case(shared):
        servers = [backend.handler for backend in shared.backends]
        for backend in shared.backends:
            backend.handler = Keeper(backend)
        yield shared
        for backend, server in zip(shared.backends, servers, strict=True):
            backend.handler = server
            await backend.refuse()
            backend.listen()


async def ask(
    site: Replicas, at: int, method: str, *fields: str, path: str = "/tapped", **params: Any
) -> Answer:
    """A request of the stateless era."""
    number = next(site.numbers)
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": META}}
    lines = [f"MCP-Protocol-Version: {VERSION}", f"Mcp-Method: {method}", *fields]
    name = params.get("name") or params.get("taskId")
    if name:
        lines.append(f"Mcp-Name: {name}")
    body = json.dumps(message).encode()
    return await site.ask(at, post(body, *lines, target=path), "POST", f"POST {number}")


async def begin(site: Replicas, at: int, tool: str, id_: str, *fields: str, path: str = "/tapped") -> str:
    """Have something kept; by whom."""
    if tool == "state":
        site.said.add(id_)  # it is a secret
    answer = await ask(site, at, "tools/call", *fields, path=path, name=tool, arguments={"id": id_})
    assert answer.status == 200
    if tool == "events":
        data = next(line for line in answer.body.splitlines() if line.startswith(b"data: "))
        return str(json.loads(data[6:])["result"]["server"])
    return str(answer.json["result"]["server"])


async def served(answer: Answer) -> str:
    assert answer.status == 200, answer
    return str(answer.json["result"]["server"])


async def get_task(site: Replicas, at: int, id_: str, *fields: str, path: str = "/tapped") -> Answer:
    return await ask(site, at, "tasks/get", *fields, path=path, taskId=id_)


def names(site: Replicas, prefix: str, count: int = 6) -> Sequence[str]:
    return [f"planted-{site.store}-{prefix}-{number}" for number in range(count)]


@pytest.mark.parametrize("tool", ["task", "events"])
async def test_a_task_is_found_through_every_replica(site: Replicas, tool: str) -> None:
    owners = {id_: await begin(site, 0, tool, id_) for id_ in names(site, tool)}
    assert len(set(owners.values())) == 2, "both backends keep some"
    for id_, owner in owners.items():
        for at in (1, 0, 1):

            async def is_found(at: int = at, id_: str = id_, owner: str = owner) -> bool:
                return await served(await get_task(site, at, id_)) == owner

            if tool == "events":  # an event does not wait until it is written down
                await site.until(is_found, "it is written down")
            assert await is_found()


async def test_a_retry_with_a_request_state_reaches_who_issued_it(site: Replicas) -> None:
    owners = {id_: await begin(site, 0, "state", id_) for id_ in names(site, "state")}
    assert len(set(owners.values())) == 2
    for id_, owner in owners.items():
        for at in (1, 0):
            answer = await ask(site, at, "tools/call", name="state", arguments={}, requestState=id_)
            assert await served(answer) == owner


async def test_a_subscription_to_a_task_reaches_its_owner(site: Replicas) -> None:
    owners = {id_: await begin(site, 0, "task", id_) for id_ in names(site, "subscribed")}
    for id_, owner in owners.items():
        answer = await ask(site, 1, "subscriptions/listen", notifications={"taskIds": [id_]})
        # The server below answers it like any request outside of a session.
        assert await served(answer) == owner


async def test_what_others_keep_is_not_found_and_not_told(site: Replicas) -> None:
    (id_,) = names(site, "owned", 1)
    owner = await begin(site, 0, "task", id_, ALICE)
    assert await served(await get_task(site, 1, id_, ALICE)) == owner
    other = await begin(site, 0, "task", id_, BOB)  # backends that count give the same id to several
    for at in (0, 1):
        assert await served(await get_task(site, at, id_, ALICE)) == owner
        assert await served(await get_task(site, at, id_, BOB)) == other


async def test_a_caller_keeps_to_one_backend_on_all_replicas(site: Replicas) -> None:
    chosen: set[str] = set()
    for number in range(12):
        principal = f"x-test-principal: issuer/{number}"
        answers = [await ask(site, at, "tools/list", principal) for at in (0, 1, 0, 1)]
        (server,) = {await served(answer) for answer in answers}
        chosen.add(server)
    assert len(chosen) == 2


async def test_the_owner_of_a_task_may_be_away_for_a_moment(site: Replicas) -> None:
    (id_,) = names(site, "away", 1)
    owner = await begin(site, 0, "task", id_)
    (backend,) = [each for each in site.backends if each.handler.name == owner]  # type: ignore[attr-defined]
    await backend.down()
    for at in (0, 1):
        answer = await get_task(site, at, id_)
        assert (answer.status, answer.reason) == (503, "backend_unavailable")
        assert answer.head.one("retry-after") == b"1"
    backend.listen()
    for at in (1, 0):
        assert await served(await get_task(site, at, id_)) == owner


async def test_no_request_of_this_era_waits_for_the_registry_or_fails_with_it(site: Replicas) -> None:
    first, second = names(site, "frozen", 2)
    owner = await begin(site, 0, "task", first)
    assert site.redis is not None
    site.redis.freeze()
    try:
        assert await served(await get_task(site, 0, first)) == owner  # known here
        await served(await get_task(site, 1, first))  # not known here: whoever is next
        await begin(site, 0, "task", second)
        await served(await ask(site, 1, "tools/list"))
    finally:
        site.redis.thaw()
    await site.settled()
    for at in (0, 1):
        assert await served(await get_task(site, at, first)) == owner


async def test_without_the_tap_nothing_is_looked_at(site: Replicas) -> None:
    assert site.redis is not None
    before = set(site.redis.command("KEYS", "*"))
    for id_ in names(site, "plain"):
        await begin(site, 0, "task", id_, path="/mcp")
        await served(await get_task(site, 1, id_, path="/mcp"))
    for id_ in names(site, "plain-state"):
        await begin(site, 0, "state", id_, path="/mcp")
    assert set(site.redis.command("KEYS", "*")) == before
    requests = [seen for seen in site.received() if b"planted" in seen.body]
    assert len(requests) == 18

    # Bytes that no parser would take pass untouched.
    async def garbage(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.answer(200, [JSON], b'{"result":{"resultType":"task","taskId":')

    handlers = [backend.handler for backend in site.backends]
    for backend in site.backends:
        backend.handler = garbage
    answer = await ask(site, 0, "tools/list", path="/mcp")
    assert answer.body == b'{"result":{"resultType":"task","taskId":'
    answer = await ask(site, 0, "tools/list", path="/tapped")
    assert answer.body == b'{"result":{"resultType":"task","taskId":'
    for backend, handler in zip(site.backends, handlers, strict=True):
        backend.handler = handler


async def test_a_task_id_is_as_good_as_a_key_and_not_logged(site: Replicas) -> None:
    (id_,) = names(site, "secret", 1)
    await begin(site, 0, "task", id_)
    await get_task(site, 0, id_)
    await get_task(site, 1, id_)
    await site.quiet()
    for proxy in site.proxies:
        await proxy.metrics()  # has what is recorded written down
        assert id_ not in proxy.output


async def test_a_compressed_answer_is_not_asked_for_where_answers_are_read(site: Replicas) -> None:
    lines = ("Accept-Encoding: gzip, br",)
    await ask(site, 0, "tools/list", *lines, path="/tapped")
    assert [seen.head.one("accept-encoding") for seen in site.received()] == [b"identity"]
    await ask(site, 0, "tools/list", *lines, path="/mcp")
    assert {seen.head.one("accept-encoding") for seen in site.received()} == {b"identity", b"gzip, br"}
