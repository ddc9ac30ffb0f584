"""Another configuration for a proxy that serves: what it changes is changed, what it does not name is left
alone.

Rules of this file: every case has an open stream or a session that was there before; what it says
afterwards is the proof.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, Streams, json_answer
from tests.wire.reloading import Site, flows, pools, servers, site


async def test_a_backend_that_is_added_gets_new_sessions_and_the_old_ones_stay(tmp_path: Path) -> None:
    async with servers("a", "b") as ((a, b), backends), site(pools(backends[:1]), tmp_path) as proxy:
        session = await proxy.session()
        client, stream = await proxy.listening(session, a)
        await proxy.reload(pools(backends))
        added = await proxy.session_on(b)
        assert (await added.call()).status == 200
        assert (await session.call()).status == 200
        await flows(client, stream, "still")
        assert await proxy.proxy.metric("mcp_proxy_sessions") == len(a.sessions) + len(b.sessions)


async def test_a_backend_that_is_removed_keeps_its_sessions_until_its_time_is_over(tmp_path: Path) -> None:
    async with (
        servers("a", "b") as ((a, b), backends),
        site(pools(backends, drain="3s"), tmp_path) as proxy,
    ):
        session = await proxy.session_on(a)
        client, stream = await proxy.listening(session, a)
        before = len(a.sessions)
        await proxy.reload(pools(backends[1:], drain="3s"))
        for _ in range(6):
            await proxy.session_on(b)
        assert len(a.sessions) == before, "nothing new for it"
        assert (await session.call()).status == 200
        await flows(client, stream, "still")
        assert "1 draining" in await proxy.readiness()

        rest = await client.rest()
        assert (rest.framing, rest.body) == ("clean", b"")
        answer = await session.call()
        assert (answer.status, answer.reason) == (404, "session_not_found")
        again = await proxy.session()
        assert again.id in b.sessions

        async def has_left() -> bool:
            return "draining" not in await proxy.readiness()

        await proxy.proxy.until(has_left, "the backend has left")


async def test_a_session_of_a_removed_backend_is_made_anew_where_that_is_wanted(tmp_path: Path) -> None:
    settings = {"drain": "1s", "on_backend_loss": "reinitialize"}
    async with (
        servers("a", "b") as ((a, b), backends),
        site(pools(backends, **settings), tmp_path) as proxy,
    ):
        session = await proxy.session_on(a)
        client, _ = await proxy.listening(session, a)
        await proxy.reload(pools(backends[1:], **settings))
        assert (await client.rest()).framing == "clean"
        assert (await session.call()).status == 200
        assert session.id in a.sessions
        assert len(b.sessions) >= 1


async def test_another_weight_counts_from_the_next_choice(tmp_path: Path) -> None:
    async with servers("a", "b") as (_, backends):

        def weighted(first: int, second: int) -> dict[str, Any]:
            entries = [
                {"url": backend.url, "weight": weight}
                for backend, weight in zip(backends, (first, second), strict=True)
            ]
            return {
                "pools": {"tools": {"backends": entries, "balance": "round_robin"}},
                "routes": [{"path": "/mcp", "pool": "tools"}],
            }

        async with site(weighted(1, 1), tmp_path) as proxy:
            await proxy.reload(weighted(1, 9))
            client = await proxy.client()
            for number in range(100):
                assert (await client.ask(post(call(number)))).status == 200
            shares = [len(backend.take()) for backend in backends]
            assert sum(shares) == 100
            assert 5 <= shares[0] <= 15


async def test_a_pool_comes_and_goes_and_the_other_one_does_not_notice(tmp_path: Path) -> None:
    async with servers("a", "b") as ((a, b), backends):
        old = pools(backends[:1], drain="2s")
        both = {
            "pools": {**old["pools"], "more": {"backends": [backends[1].url], "drain": "2s"}},
            "routes": [*old["routes"], {"path": "/more", "pool": "more"}],
        }
        async with site(old, tmp_path) as proxy:
            session = await proxy.session()
            client, stream = await proxy.listening(session, a)
            refused = await (await proxy.client()).ask(post(INITIALIZE, target="/more"))
            assert refused.reason == "not_found"

            await proxy.reload(both)
            guest = await proxy.session("/more")
            guest_client, guest_stream = await proxy.listening(guest, b)

            await proxy.reload(old)
            refused = await guest.call()
            assert (refused.status, refused.reason) == (404, "not_found")
            await flows(guest_client, guest_stream, "not over yet")
            assert (await guest_client.rest()).framing == "clean"
            assert (await session.call()).status == 200
            await flows(client, stream, "still")

            async def is_gone() -> bool:
                return "pool more" not in await proxy.readiness()

            await proxy.proxy.until(is_gone, "the pool has left")
            assert await proxy.proxy.metric("mcp_proxy_sessions", pool="more") == 0


async def test_another_credential_is_in_the_next_request_of_an_old_connection(tmp_path: Path) -> None:
    def having(secret: str | None) -> dict[str, Any]:
        settings = {} if secret is None else {"credentials": {"authorization": secret}}
        return pools([backend], **settings)

    async with Backend(json_answer()) as backend, site(having("Bearer one"), tmp_path) as proxy:
        client = await proxy.client()
        for secret in ("Bearer one", "Bearer two", None, "Bearer three"):
            if secret != "Bearer one":
                await proxy.reload(having(secret))
            for number in range(3):
                assert (await client.ask(post(call(number), "Authorization: mine"))).status == 200
            sent = [seen.head.one("authorization") for seen in backend.take()]
            assert sent == [(secret or "mine").encode()] * 3


async def test_who_may_ask_and_whose_word_counts_can_change(tmp_path: Path) -> None:
    def guarded(**settings: object) -> dict[str, Any]:
        return {**pools([backend]), **settings}

    async with Backend(json_answer()) as backend, site(guarded(), tmp_path) as proxy:
        origin = "Origin: https://tools.example.com"
        refused = await (await proxy.client()).ask(post(call(1), origin))
        assert refused.reason == "forbidden_origin"
        await proxy.reload(guarded(external_url="https://tools.example.com"))
        client = await proxy.client()
        assert (await client.ask(post(call(2), origin))).status == 200
        await proxy.reload(guarded())
        assert (await client.ask(post(call(2), origin))).reason == "forbidden_origin"
        backend.take()

        client = await proxy.client()
        said = "X-Forwarded-For: 203.0.113.9"
        assert (await client.ask(post(call(4), said))).status == 200
        await proxy.reload(guarded(trusted_proxies=["127.0.0.1"]))
        assert (await client.ask(post(call(5), said))).status == 200
        before, after = (seen.head.one("x-forwarded-for") or b"" for seen in backend.take())
        assert b"203.0.113.9" not in before
        assert b"203.0.113.9" in after


async def test_a_lower_limit_of_streams_harms_none_that_is_open(tmp_path: Path) -> None:
    async with servers("a") as ((a,), backends):

        def limited(streams: int) -> dict[str, Any]:
            return {**pools(backends), "limits": {"streams": streams}}

        async with site(limited(10), tmp_path) as proxy:
            sessions = [await proxy.session() for _ in range(4)]
            open_ = [await proxy.listening(session, a) for session in sessions[:3]]
            await proxy.reload(limited(1))
            for client, stream in open_:
                await flows(client, stream, "still")
            refused = await (await proxy.client()).ask(get(sessions[3].field), "GET")
            assert (refused.status, refused.reason) == (503, "overloaded")
            await proxy.reload(limited(4))
            await proxy.listening(sessions[3], a)
            assert (await proxy.proxy.status())["limits"]["streams"] == 4


async def test_other_limits_count_from_the_next_request(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend:

        def limited(**limits: object) -> dict[str, Any]:
            return {**pools([backend]), "limits": limits}

        async with site(limited(), tmp_path) as proxy:
            client = await proxy.client()
            large = post(call(1, text="x" * 5000))
            assert (await client.ask(large)).status == 200
            await proxy.reload(limited(body="1KiB", head="2KiB"))
            refused = await client.ask(large)
            assert (refused.status, refused.reason) == (413, "body_too_large")
            other = await proxy.client()
            assert (await other.ask(post(call(1), "X-Long: " + "x" * 4000))).status == 431
            await proxy.reload(limited())
            assert (await (await proxy.client()).ask(large)).status == 200


async def test_a_shorter_time_for_heads_counts_whoever_else_is_waiting(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend:

        def patient(seconds: int) -> dict[str, Any]:
            return {**pools([backend]), "limits": {"head_timeout": f"{seconds}s"}}

        async with site(patient(3600), tmp_path) as proxy:
            early = await proxy.client()
            await early.send(b"POST /mcp HTTP/1.1\r\nHost: ")
            await proxy.reload(patient(1))
            late = await proxy.client()
            await late.send(b"POST /mcp HTTP/1.1\r\nHost: ")
            assert (await late.answer()).status == 408
            assert (await early.answer()).status == 408


async def test_calls_in_progress_end_on_connections_of_the_old_settings(tmp_path: Path) -> None:
    streams = Streams()
    async with (
        Backend(streams) as backend,
        site(pools([backend], timeouts={"response_head": "60s"}), tmp_path) as proxy,
    ):
        client = await proxy.client()
        await client.send(post(call(1)))
        stream = await streams.next()
        await client.head()
        await proxy.reload(pools([backend], timeouts={"response_head": "1s"}))
        await flows(client, stream, "one")

        backend.handler = _silent
        late = await (await proxy.client()).ask(post(call(2)))
        assert (late.status, late.reason) == (504, "upstream_timeout")

        await flows(client, stream, "two")
        await stream.end()
        assert (await client.rest()).framing == "clean"
        await backend.until(lambda: not backend.open_connections)


async def _silent(request: Any, conn: Any) -> None:
    await request.whole()
    await conn.until(lambda: bool(conn.closed_by))


async def test_a_stream_in_a_pool_with_other_settings_goes_on(tmp_path: Path) -> None:
    """Everything about the pool changes, but for the backend of the session."""
    async with servers("a", "b") as ((a, _), backends), site(pools(backends[:1]), tmp_path) as proxy:
        session = await proxy.session()
        client, stream = await proxy.listening(session, a)
        settings = {
            "balance": "hash",
            "timeouts": {"idle": "400s"},
            "transport": "httpx",
            "health": {"active": {"check": "tcp", "every": "2s"}, "eject": {"after": 3}},
            "era": "legacy",
            "drain": "7s",
            "credentials": {"authorization": "Bearer new"},
            "on_backend_loss": "reinitialize",
        }
        await proxy.reload(pools(backends, **settings))
        await flows(client, stream, "one")
        assert (await session.call()).status == 200
        await proxy.reload(pools(backends))
        await flows(client, stream, "two")
        assert (await session.call()).status == 200
        await stream.end()
        assert (await client.rest()).framing == "clean"


async def test_the_token_of_the_admin_listener_can_change(tmp_path: Path) -> None:
    def guarded(token: str | None) -> dict[str, Any]:
        return pools([backend]) | ({} if token is None else {"admin": {"token": token}})

    async def asked(token: str) -> int:
        async with await Client.connect(proxy.proxy.admin_port) as client:
            request = get("Connection: close", f"Authorization: Bearer {token}", target="/sessions")
            return (await client.ask(request, "GET")).status

    async with Backend(json_answer()) as backend, site(guarded("first-token-0123456789"), tmp_path) as proxy:
        assert await asked("first-token-0123456789") == 200
        await reloaded_unseen(proxy, proxy.text(guarded("second-token-0123456789")))
        assert await asked("second-token-0123456789") == 200
        assert await asked("first-token-0123456789") == 401


async def reloaded_unseen(proxy: Site, text: str) -> None:
    """A reload of a proxy whose metrics need a token: its log says when."""
    at = proxy.proxy.log_size()
    proxy.place(text)
    proxy.hang_up()

    async def is_said() -> bool:
        return "configuration: reloaded" in proxy.log(at)

    await proxy.proxy.until(is_said, "the reload")


async def test_metrics_can_be_switched_and_the_log_says_which_keys_changed(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as proxy:
        off = {**pools([backend]), "telemetry": {"metrics": False}}
        await reloaded_unseen(proxy, proxy.text(off))
        assert "reloaded (telemetry.metrics)" in proxy.log()
        assert (await proxy.proxy.admin("/metrics")).status == 404
        await reloaded_unseen(proxy, proxy.text(pools([backend])))
        assert (await proxy.proxy.admin("/metrics")).status == 200
        await reloaded_unseen(proxy, proxy.text(pools([backend])))
        assert "reloaded (nothing has changed)" in proxy.log()


@pytest.mark.parametrize("key", ["listen", "workers", "telemetry.access_log", "sessions.ttl"])
async def test_what_needs_a_restart_is_refused_with_its_line(key: str, tmp_path: Path) -> None:
    values: dict[str, dict[str, Any]] = {
        "listen": {"listen": "127.0.0.1:1"},
        "workers": {"workers": 2, "sessions": {"store": "signed", "keys": ["k" * 32]}},
        "telemetry.access_log": {"telemetry": {"access_log": "off"}},
        "sessions.ttl": {"sessions": {"ttl": "3h"}},
    }
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as proxy:
        document = json.loads(proxy.text(pools([backend]))) | values[key]
        log = await proxy.refused(json.dumps(document, indent=1))
        name = key.rpartition(".")[2]
        (said,) = [line for line in log.splitlines() if f" {key}: " in line]
        number = (
            json.dumps(document, indent=1)[: json.dumps(document, indent=1).index(f'"{name}"')].count("\n")
            + 1
        )
        assert f"proxy.yaml:{number}" in said
        assert "restart" in said
        assert (await (await proxy.client()).ask(post(call(1)))).status == 200
