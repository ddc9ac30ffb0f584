"""``/sessions`` of the admin listener: pages, details, ends and exports."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from mcp_proxy.admin.app import create_admin
from mcp_proxy.admin.sessions import BATCH
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionRecord
from tests.unit.registered import BACKEND, KEY, NDJSON, Registered, ask, export_of, line, reason, restore

MOVED = SessionRecord(
    BACKEND, "someone", b"secret-upstream-id", 2, b'{"method":"initialize","secret":1}', 1_700_000_000
)


@pytest.fixture
def view() -> Registered:
    return Registered()


# --- pages ----------------------------------------------------------------------------------------


async def test_without_sessions_the_list_is_empty(view: Registered) -> None:
    answer = await ask(view, "/sessions")

    assert answer.status_code == 200
    assert answer.json() == {"sessions": [], "cursor": ""}
    assert view.pages == [100]


async def test_a_session_is_listed_and_shown_without_what_makes_it_usable(view: Registered) -> None:
    view.store.create(KEY, MOVED)

    (listed,) = (await ask(view, "/sessions")).json()["sessions"]
    shown = await ask(view, f"/sessions/{KEY.name}")

    assert (
        listed | {"expires_in_s": 0}
        == shown.json() | {"expires_in_s": 0}
        == {
            "name": KEY.name,
            "route": "/mcp",
            "pool": "main",
            "backend": BACKEND,
            "principal": "someone",
            "generation": 2,
            "created": 1_700_000_000,
            "expires_in_s": 0,
            "moved": True,
        }
    )
    assert 0 < listed["expires_in_s"] <= 7200
    assert "secret" not in shown.text
    assert base64.b64encode(MOVED.upstream_id).decode() not in shown.text


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_the_pages_have_every_session_once(view: Registered, limit: int) -> None:
    names = view.fill(40)
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await ask(view, "/sessions", params={"limit": limit, "cursor": cursor})).json()
        assert len(page["sessions"]) <= limit
        seen += [session["name"] for session in page["sessions"]]
        cursor = page["cursor"]
        if not cursor:
            break

    assert seen == names


async def test_a_list_of_one_pool_has_no_other(view: Registered) -> None:
    view.fill(5)
    names = view.fill(3, "/other")

    page = (await ask(view, "/sessions?pool=other")).json()

    assert [session["name"] for session in page["sessions"]] == names
    assert {session["pool"] for session in page["sessions"]} == {"other"}
    assert (await ask(view, "/sessions?pool=nosuch")).json()["sessions"] == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=-1", "limit=1001", "limit=99999", "limit=x", "limit=", "limit=1e2", "limit=%2b1",
        "limit=1&limit=2", "pol=main", "cursor=x", "cursor=%00", "cursor=" + "a" * 513, "cursor=a&cursor=b",
    ],
)  # fmt: skip
async def test_a_query_that_makes_no_sense_is_400(view: Registered, query: str) -> None:
    answer = await ask(view, f"/sessions?{query}")

    assert answer.status_code == 400
    assert reason(answer) in ("bad_query", "bad_cursor")


# --- one session ----------------------------------------------------------------------------------


async def test_a_session_is_ended_once(view: Registered) -> None:
    view.store.create(KEY, MOVED)

    first = await ask(view, f"/sessions/{KEY.name}", "DELETE")
    second = await ask(view, f"/sessions/{KEY.name}", "DELETE")

    assert (first.status_code, first.json()) == (200, {"ended": KEY.name})
    assert (second.status_code, reason(second)) == (404, "session_not_found")
    assert view.store.get(KEY, "someone") is None


@pytest.mark.parametrize(
    "name", ["f" * 40, "f" * 39, "F" * 40, "x", "import", "%2e%2e", "f" * 40 + "%0a", "*"]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_what_is_no_session_is_404(view: Registered, name: str, method: str) -> None:
    assert (await ask(view, f"/sessions/{name}", method)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/sessions", {"GET", "HEAD"}),
        ("PUT", "/sessions/" + "f" * 40, {"GET", "HEAD", "DELETE"}),
        ("POST", "/sessions/export", {"GET", "HEAD"}),
    ],
)
async def test_other_methods_are_405(view: Registered, method: str, path: str, allowed: set[str]) -> None:
    answer = await ask(view, path, method)

    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


async def test_every_endpoint_wants_the_token(view: Registered) -> None:
    view.store.create(KEY, MOVED)
    for method, path in [
        ("GET", "/sessions"),
        ("GET", f"/sessions/{KEY.name}"),
        ("DELETE", f"/sessions/{KEY.name}"),
        ("GET", "/sessions/export"),
        ("POST", "/sessions/import"),
    ]:
        assert (await ask(view, path, method, token="hunter2")).status_code == 401
    assert view.store.show(KEY.name) is not None


async def test_a_registry_that_cannot_be_asked_is_503_and_never_404(view: Registered) -> None:
    view.failure = StoreError("no answer within 250 ms")
    whole = export_of([])
    for method, path, body in [
        ("GET", "/sessions", b""),
        ("GET", f"/sessions/{KEY.name}", b""),
        ("DELETE", f"/sessions/{KEY.name}", b""),
        ("GET", "/sessions/export", b""),
        ("POST", "/sessions/import", export_of([line()])),
    ]:
        answer = await ask(view, path, method, content=body, headers=NDJSON)
        assert (answer.status_code, reason(answer)) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "250 ms" in answer.text
    assert (await restore(view, whole)).status_code == 200, "nothing had to be asked"


# --- export ---------------------------------------------------------------------------------------


async def test_an_export_is_everything_that_a_restore_needs(view: Registered) -> None:
    view.store.create(KEY, MOVED)
    answer = await ask(view, "/sessions/export")
    other = Registered()

    restored = await restore(other, answer.content)

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["cache-control"] == "no-store"
    assert restored.json() == {"restored": 1, "skipped": 0}
    assert other.store.get(KEY, "someone") == MOVED
    assert b"secret-session-id" not in answer.content


async def test_an_export_has_a_header_and_a_trailer_with_the_count(view: Registered) -> None:
    names = view.fill(2 * BATCH + 3)

    first, *sessions, last = (await ask(view, "/sessions/export")).text.splitlines()

    assert json.loads(first)["mcp_proxy_sessions"] == 1
    assert json.loads(last) == {"mcp_proxy_sessions_end": len(names)}
    assert [json.loads(session)["name"] for session in sessions] == names
    assert view.pages == [BATCH] * 3


async def test_an_export_that_breaks_off_is_not_ended_cleanly(view: Registered) -> None:
    view.fill(BATCH + 1)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:  # head, header, first page
            view.failure = StoreError("down")

    scope = {
        "type": "http", "method": "GET", "path": "/sessions/export", "headers": [(b"host", b"localhost")],
        "query_string": b"", "scheme": "http", "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    await create_admin(view, None)(scope, receive, send)

    assert sent[0]["status"] == 200
    assert all(message["more_body"] for message in sent[1:])
    body = b"".join(message["body"] for message in sent[1:])
    answer = await restore(Registered(), body)
    assert (answer.status_code, reason(answer)) == (400, "invalid_backup")
    assert "cut short" in answer.text
