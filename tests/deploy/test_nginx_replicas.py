"""What the shipped nginx configuration does to a replica, to the byte: scripted ones stand in its place.

Rules of this file: every call has a number, and the replicas say which arrived, how often and on which
connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools.backend import Backend, Handler
from tests.tools.client import Answer, Client, call, post
from tests.tools.mcp_backend import JSON, json_answer, result
from tests.tools.nginx_shipped import NAME, Installed, RunningNginx, install, run
from tests.tools.nginx_site import EVERYBODY
from tests.tools.nginx_tunnel import trusting, tunnel
from tests.tools.recording import Conn, Seen


@contextlib.asynccontextmanager
async def in_front_of(*replicas: Backend, folder: Path) -> AsyncIterator[tuple[RunningNginx, int]]:
    """The shipped nginx before these instead of the proxy, and the plain port that leads to it."""
    ports = [replica.port for replica in replicas]
    installed = install(ports, folder / "nginx", unlimited=EVERYBODY)
    trust = trusting(installed.certificate)
    async with run(installed) as nginx, tunnel(nginx.port, NAME, trust) as port:
        yield nginx, port


async def asks(port: int, number: int = 1) -> Answer:
    async with await Client.connect(port) as client:
        return await client.ask(post(call(number)))


def is_lost(answer: Answer) -> bool:
    """502 that says that the call may have run."""
    data = answer.json["error"]["data"]
    said = answer.status, answer.reason, data["reason"], data["maybeExecuted"], answer.head.one("retry-after")
    return said == (502, "edge_lost", "edge_lost", True, None)


async def closes(request: Seen, conn: Conn) -> None:
    await request.whole()
    conn.close()


async def resets(request: Seen, conn: Conn) -> None:
    conn.reset()


async def breaks_off_in_the_head(request: Seen, conn: Conn) -> None:
    await request.whole()
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    conn.close()


@pytest.mark.parametrize("breach", [closes, resets, breaks_off_in_the_head])
async def test_a_post_that_a_replica_has_read_is_never_sent_again(breach: Handler, tmp_path: Path) -> None:
    async with (
        Backend(breach) as one,
        Backend(breach) as other,
        in_front_of(one, other, folder=tmp_path) as (_, port),
    ):
        assert is_lost(await asks(port))
        assert len(one.take()) + len(other.take()) == 1


async def test_a_post_on_a_connection_that_is_being_closed_is_never_sent_twice(tmp_path: Path) -> None:
    """nginx stands still while the replicas close the connections that it would use."""
    async with (
        Backend(json_answer()) as one,
        Backend(json_answer()) as other,
        in_front_of(one, other, folder=tmp_path) as (nginx, port),
    ):
        for number in range(40):
            async with await Client.connect(port) as client:
                for _ in range(2):  # a kept connection to each
                    await client.ask(post(call(0)))
                one.take(), other.take()
                for pid in nginx.workers():
                    os.kill(pid, signal.SIGSTOP)
                await client.send(post(call(number)))
                for conn in (*one.open_connections, *other.open_connections):
                    (conn.close if number % 2 else conn.reset)()
                for pid in nginx.workers():
                    os.kill(pid, signal.SIGCONT)
                answer = await client.answer()
                seen = one.take() + other.take()
                assert len(seen) <= 1
                assert answer.status == 200 if seen else is_lost(answer)


async def test_only_a_refused_connection_sends_a_post_elsewhere(tmp_path: Path) -> None:
    async with (
        Backend(json_answer()) as one,
        Backend(json_answer()) as other,
        in_front_of(one, other, folder=tmp_path) as (_, port),
    ):
        await one.down()
        for number in range(20):
            assert (await asks(port, number)).status == 200
        assert (len(one.take()), len(other.take())) == (0, 20)


def changed(installed: Installed, ours: str, other: str) -> Installed:
    """With another line than ours in ``pass.conf``."""
    file = installed.folder / "mcp-proxy/pass.conf"
    assert file.read_text().count(ours) == 1
    file.write_text(file.read_text().replace(ours, other))
    return installed


@pytest.mark.parametrize("setting", ["off", "error timeout non_idempotent"])
async def test_the_other_settings_fail_calls_or_run_them_twice(setting: str, tmp_path: Path) -> None:
    """Which is why ours is what it is."""
    async with Backend(closes) as one, Backend(closes) as other:
        installed = install([one.port, other.port], tmp_path, unlimited=EVERYBODY)
        changed(installed, "proxy_next_upstream error timeout;", f"proxy_next_upstream {setting};")
        async with run(installed) as nginx, tunnel(nginx.port, NAME, trusting(installed.certificate)) as port:
            assert is_lost(await asks(port))
            assert (len(one.take() + other.take()) > 1) == (setting != "off")
            one.handler = other.handler = json_answer()
            await one.down()
            answers = [(await asks(port, number)).status for number in range(10)]
            assert (set(answers) == {200}) == (setting != "off")


async def test_a_replica_that_says_nothing_is_told_apart_from_one_that_is_away(tmp_path: Path) -> None:
    """After an hour as shipped; here after a second."""

    async def silent(request: Seen, conn: Conn) -> None:
        await conn.gone()

    async with Backend(silent) as one, Backend(silent) as other:
        installed = install([one.port, other.port], tmp_path, unlimited=EVERYBODY)
        changed(installed, "proxy_read_timeout 1h;", "proxy_read_timeout 1s;")
        async with run(installed) as nginx, tunnel(nginx.port, NAME, trusting(installed.certificate)) as port:
            answer = await asks(port)
        assert (answer.status, answer.reason) == (504, "edge_timeout")
        assert answer.json["error"]["data"] == {"reason": "edge_timeout", "maybeExecuted": True}
        assert len(one.take() + other.take()) == 1


async def test_nobody_takes_the_replicas_from_the_others(tmp_path: Path) -> None:
    """Connections that end without an answer count as failures of the replica, whoever made it end them."""

    async def fragile(request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        if message["id"] == 666:
            conn.close()
        else:
            await conn.answer(200, [JSON], result(message))

    async with (
        Backend(fragile) as one,
        Backend(fragile) as other,
        in_front_of(one, other, folder=tmp_path) as (_, port),
    ):
        for number in range(30):
            assert is_lost(await asks(port, 666))
            assert (await asks(port, number)).status == 200
        ids = [json.loads(request.body)["id"] for request in one.take() + other.take()]
        assert sorted(ids) == [*range(30), *([666] * 30)]


async def test_connections_are_kept_on_both_sides(tmp_path: Path) -> None:
    async with (
        Backend(json_answer()) as one,
        Backend(json_answer()) as other,
        in_front_of(one, other, folder=tmp_path) as (nginx, port),
        await Client.connect(port) as client,
    ):
        for number in range(60):
            answer = await client.ask(post(call(number)))
            assert (answer.status, answer.says_close) == (200, False)
        for replica in (one, other):
            assert len(replica.connections) <= len(nginx.workers())
            for request in replica.take():
                assert request.version == b"HTTP/1.1"
                assert request.head.all("connection") == []


async def test_a_request_is_whole_before_a_replica_hears_of_it(tmp_path: Path) -> None:
    body = call(1, fill="x" * 200_000)
    async with (
        Backend(json_answer()) as one,
        Backend(json_answer()) as other,
        in_front_of(one, other, folder=tmp_path) as (_, port),
        await Client.connect(port) as slow,
    ):
        await slow.send(post(body)[:-1])
        for number in range(50):  # go the same way behind it
            assert (await asks(port, number)).status == 200
        assert {request.is_complete for request in one.take() + other.take()} == {True}
        await slow.send(body[-1:])
        assert (await slow.answer()).status == 200
        (seen,) = one.take() + other.take()
        assert seen.body == body


HOPS = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "TE: trailers",
    "Trailer: X-End",
    "Proxy-Connection: keep-alive",
    "Keep-Alive: timeout=99",
)
CLAIMS = (
    "Forwarded: for=6.6.6.6",
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Host: 6.6.6.6",
    "X-Forwarded-Proto: 6.6.6.6",
    "X-Forwarded-Port: 6.6.6.6",
    "X-Forwarded-Prefix: 6.6.6.6",
    "X-Forwarded-Server: 6.6.6.6",
    "X-Real-IP: 6.6.6.6",
    "X-Request-Id: 6.6.6.6",
    "X_Forwarded_For: 6.6.6.6",
)


async def test_a_replica_is_told_nothing_by_the_client_about_connection_and_origin(tmp_path: Path) -> None:
    """Without the help of mcp-proxy, which drops all of that itself."""
    async with (
        Backend(json_answer()) as one,
        in_front_of(one, folder=tmp_path) as (_, port),
        await Client.connect(port) as client,
    ):
        assert (await client.ask(post(call(), *HOPS, *CLAIMS))).status == 200
        seen = one.take_one()
    for field in HOPS:
        assert seen.head.all(field.partition(":")[0]) == []
    assert b"6.6.6.6" not in seen.raw
    assert seen.head.all("x-forwarded-for") == [b"127.0.0.1"]
    assert seen.head.all("x-forwarded-proto") == [b"https"]
    assert seen.head.all("x-forwarded-host") == seen.head.all("host") == [NAME.encode()]
