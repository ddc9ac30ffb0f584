"""The portable door: which target a scope stands for, and which heads are judged again."""

from __future__ import annotations

import pytest

from mcp_proxy.downstream import asgi_head
from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.wire import Rejection, Request
from tests.unit.door_asgi.direct import Server
from tests.unit.doorway import ScriptedHandler


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path", "query", "target"),
    [
        ("/mcp", b"/mcp", "", b"", b"/mcp"),
        ("/mcp", b"/mcp", "", b"a=%zz", b"/mcp?a=%zz"),
        ("/x/mcp", b"/x/mcp", "/x", b"", b"/mcp"),
        ("/x/mcp", b"/x/mcp", "/x/", b"", b"/mcp"),
        ("/mcp", b"/mcp", "/x", b"", b"/mcp"),
        ("/xy/mcp", b"/xy/mcp", "/x", b"", b"/xy/mcp"),
        ("/x/mcp", b"/%78/mcp", "/x", b"", b"/%78/mcp"),
        ("/ü/mcp", b"/%C3%BC/mcp", "/ü", b"", b"/mcp"),
        ("/a b/mcp", None, "", b"q", b"/a%20b/mcp?q"),
        ("/x/m@p;v=1", None, "/x", b"", b"/m@p;v=1"),
    ],
    ids=str,
)
async def test_the_target_is_what_stands_behind_the_root_path(
    door: AsgiDoor,
    handler: ScriptedHandler,
    path: str,
    raw_path: bytes | None,
    root_path: str,
    query: bytes,
    target: bytes,
) -> None:
    server = Server(path=path, root_path=root_path, query_string=query)
    if raw_path is None:
        del server.scope["raw_path"]
    else:
        server.scope["raw_path"] = raw_path
    await server.run(door)
    assert handler.served[0].request.target == target


@pytest.fixture
def judged(handler: ScriptedHandler) -> list[Request]:
    """Heads that the gateway was asked about."""
    judged: list[Request] = []
    handler.judge = lambda request: judged.append(request)
    return judged


def headers(*more: tuple[bytes, bytes], length: bytes = b"2") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"a"), (b"content-length", length), *more]


async def test_a_head_with_the_same_bytes_is_judged_once(
    door: AsgiDoor, handler: ScriptedHandler, judged: list[Request]
) -> None:
    await Server().run(door)
    await Server({"type": "http.request", "body": b"{ }"}, headers=headers(length=b"3")).run(door)
    assert len(judged) == 1
    assert [body for _, _, body in handler.essences] == [b"{}", b"{ }"]
    assert [served.request for served in handler.served] == [judged[0]] * 2


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "PUT"},
        {"raw_path": b"/other"},
        {"query_string": b"q"},
        {"scheme": "http"},
        {"client": ("192.0.2.2", 5)},
        {"headers": headers((b"x", b"1"))},
        {"headers": headers((b"upgrade", b"h2c"))},
        {"headers": headers()[1:]},
        {"headers": [(b"host", b"a"), (b"x", b"1"), (b"content-length", b"2")]},
        {"raw_path": b"/x/mcp", "root_path": "/x", "query_string": b"q"},
    ],
    ids=str,
)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_head_that_differs_anywhere_is_judged_by_itself(
    door: AsgiDoor, judged: list[Request], scope: dict[str, object], times: int
) -> None:
    for _ in range(times):
        await Server().run(door)
    await Server(**scope).run(door)
    assert len(judged) == 2
    assert judged[0] != judged[1]


@pytest.mark.parametrize(
    "client", [("192.0.2.1", 5), ["192.0.2.1", 5], None], ids=["a tuple", "a list", "unknown"]
)
async def test_clients_that_take_turns_are_judged_once(
    door: AsgiDoor, handler: ScriptedHandler, judged: list[Request], client: object
) -> None:
    one, other = headers((b"x", b"1")), headers((b"x", b"2"))
    for turn in (one, other, other, one, one, other):
        await Server(client=client, headers=turn).run(door)
    assert len(judged) == 2
    served = [dict(served.request.headers)[b"x"] for served in handler.served]
    assert served == [b"1", b"2", b"2", b"1", b"1", b"2"]


@pytest.mark.parametrize("framing", [b"3", b"+2", b"", b"9" * 5000], ids=["other", "signed", "none", "huge"])
async def test_a_repeated_head_still_says_how_long_its_body_is(
    door: AsgiDoor, handler: ScriptedHandler, framing: bytes
) -> None:
    for _ in range(3):
        assert (await Server().run(door))[0]["status"] == 200
    sent = await Server(headers=headers(length=framing)).run(door)
    assert sent[0]["status"] == 400
    assert handler.reasons == ["bad_request"]
    assert (b"connection", b"close") in sent[0]["headers"]
    assert len(handler.served) == 3


async def test_a_repeated_head_may_come_in_any_iterable(door: AsgiDoor, judged: list[Request]) -> None:
    for _ in range(3):
        server = Server()
        server.scope["headers"] = tuple(server.scope["headers"])
        await server.run(door)
    assert len(judged) == 1


async def test_a_refused_head_is_judged_every_time(door: AsgiDoor, handler: ScriptedHandler) -> None:
    verdicts = iter([Rejection("forbidden_origin"), None])
    handler.judge = lambda request: next(verdicts)
    assert (await Server().run(door))[0]["status"] == 403
    assert (await Server().run(door))[0]["status"] == 200


async def test_what_is_remembered_is_bounded(
    door: AsgiDoor, judged: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi_head, "KNOWN_LIMIT", 2)
    for value in (b"1", b"2", b"3", b"3", b"2", b"1"):
        await Server(headers=headers((b"x", value))).run(door)
    assert [dict(request.headers)[b"x"] for request in judged] == [b"1", b"2", b"3", b"1"]
    judged.clear()
    for _ in range(2):
        await Server(headers=headers((b"x", b"x" * asgi_head.KNOWN_BYTES))).run(door)
    assert len(judged) == 2
