"""Secrets are put wherever there is a place for one, everything is made to fail that can, and then every
output is searched for them.

Rules of this file: ``Said`` has all that the proxy has told anybody who may not know the secrets, under the
name of where it was told; answers to clients only as far as the proxy is their author. Each step of
``Story`` proves that what it is about has happened, so that silence is no success.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mcp_proxy.cli.main import commands
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, raw_answer
from tests.tools.otlp_receiver import OtlpReceiver
from tests.tools.proxy import ProxyProcess
from tests.tools.redis_server import RedisServer
from tests.wire.planted import ADMIN_TOKEN, CREDENTIAL, FIELDS, PLANTED, QUERY, TARGET, UNQUOTED, URI, Said
from tests.wire.registry_rig import KEY, PASSWORD
from tests.wire.registry_site import ACCESS
from tests.wire.reloading import Config, Site, site
from tests.wire.rig import SECRET, secret_tool

FORMS = [("text", 1, "signed"), ("json", 2, "redis")]


def configuration(form: str, workers: int, peers: tuple[Backend, Backend, OtlpReceiver]) -> Config:
    tools, broken, collector = peers
    credentials = {"authorization": f"env:{CREDENTIAL}"}
    transport = "http11" if workers == 1 else "httpx"  # whose client logs heads at debug
    traces = {"endpoint": collector.endpoint, "sample": 1.0, "headers": {"x-key": PLANTED["collector"]}}
    return {
        "admin": {"token": ADMIN_TOKEN},
        "workers": workers,
        "pools": {
            "tools": {"backends": [tools.url], "credentials": credentials, "transport": transport},
            "broken": {"backends": [broken.url, "http://127.0.0.1:1/mcp"], "credentials": credentials},
        },
        "routes": [{"path": "/mcp", "pool": "tools"}, {"path": "/broken", "pool": "broken"}],
        "telemetry": {"log": form, "traces": traces | {"timeout": "1s"}},
    }


def sessions(store: str, redis: RedisServer) -> Config:
    keys = [KEY] if store == "signed" else []
    return {"store": store, "url": f"redis://replica:{PASSWORD}@127.0.0.1:{redis.port}/0", "keys": keys}


class Story:
    """What happens to the proxy, a step after the other."""

    def __init__(self, running: Site, config: Config, redis: RedisServer, broken: Backend) -> None:
        self.said = Said()
        self.sessions: set[str] = set()
        self._running = running
        self._proxy = running.proxy
        self._config = config
        self._redis = redis
        self._broken = broken

    async def _admin(self, method: str, path: str, token: str, body: bytes = b"") -> Answer:
        client = await Client.connect(self._proxy.admin_port)
        try:
            fields = (f"Authorization: Bearer {token}", "Connection: close")
            request = post(body, *fields, target=path).replace(b"POST", method.encode(), 1)
            return await client.ask(request, method)
        finally:
            client.close()

    async def order(self, method: str, path: str, status: int, body: bytes = b"") -> None:
        answer = await self._admin(method, path, ADMIN_TOKEN, body)
        assert answer.status == status, answer
        self.said.add(f"{method} {path}", answer.head.raw + answer.body)

    async def converse(self) -> str:
        """Field line of a session in which every secret has been where it belongs."""
        client, opened = await self._open()
        id = (opened.head.one("mcp-session-id") or b"").decode()
        self.sessions.add(id)
        session = f"Mcp-Session-Id: {id}"
        meta = {"progressToken": PLANTED["meta"], "note": PLANTED["meta"]}
        for body in (
            call(2, x=SECRET["argument"]),
            call(3, "resources/read", uri=URI, _meta=meta),
            json.dumps(
                {"jsonrpc": "2.0", "id": 4, "method": "resources/read", "params": {"uri": URI}}
            ).encode(),
        ):
            answer = await client.ask(post(body, session, *FIELDS, target=TARGET))
            assert (answer.status, SECRET["result"] in answer.body.decode()) == (200, True), answer
        return session

    async def _open(self) -> tuple[Client, Answer]:
        """At a worker that reaches the registry: after an outage each finds that out by itself."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                client = await self._running.client()
                opened = await client.ask(post(INITIALIZE, *FIELDS, target=TARGET))
                if opened.status == 200:
                    return client, opened
                self.said.add_refusal("registry", opened)
                assert opened.reason == "store_unavailable", opened

    async def fail(self, session: str) -> None:
        """Backends that fail in every phase, and clients that make no sense."""
        secret = PLANTED["broken"].encode()
        head, cut = b"HTTP/1.1 200 OK\r\n", b"Content-Length: 9\r\n\r\n"
        answers = [
            raw_answer(head + secret + b"\r\n\r\n", then="close"),
            raw_answer(secret + b"\r\n\r\n", then="close"),
            raw_answer(head + b"Content-Length: " + secret + b"\r\n\r\n", then="close"),
            raw_answer(head + b"Mcp-Session-Id: " + secret + b" x\r\n" + cut, then="reset"),
            raw_answer(b"", then="reset"),
        ]
        for number, answer in enumerate(answers):
            self._broken.handler = answer
            client = await self._running.client()
            body = call(number, x=SECRET["argument"])
            got = await client.ask(post(body, *FIELDS, target="/broken" + QUERY))
            assert got.status >= 500, got
            self.said.add_refusal(f"/broken {number}", got)
        await self._refuse(session)

    async def _refuse(self, session: str) -> None:
        stranger = f"Mcp-Session-Id: {PLANTED['stranger']}"
        secret = PLANTED["broken"]
        for status, request in {
            404: post(call(5), stranger, *FIELDS, target=TARGET),
            400: post(f'{{"jsonrpc":"2.0","id":"1,"{secret}"'.encode(), session, *FIELDS, target=TARGET),
            403: post(call(6), session, *FIELDS, f"Origin: http://{secret}.example", target=TARGET),
            405: get(session, *FIELDS, target=TARGET, method="PUT"),
        }.items():
            client = await self._running.client()
            answer = await client.ask(request)
            assert answer.status == status, answer
            self.said.add_refusal(str(status), answer)
        client = await self._running.client()
        await client.send(f"GET /{secret} HTTP/1.1\r\nBad header {secret}\r\nHost: {secret}\r\n\r\n".encode())
        self.said.add("bad head", (await client.answer("GET")).body)

    async def lose_the_registry(self) -> None:
        """It is gone; it comes back with another password; it comes back as it was."""
        at = self._proxy.log_size()
        self._redis.kill()
        await self._degraded(True)
        client = await self._running.client()
        refused = await client.ask(post(INITIALIZE, *FIELDS, target=TARGET))
        if self._config["sessions"]["store"] == "redis":
            assert refused.status == 503, refused
            self.said.add_refusal("registry", refused)
        self._redis.start()
        await self._degraded(False)
        self._redis.command("ACL", "SETUSER", "replica", "resetpass", f">{PLANTED['new-redis-password']}")
        self._redis.command("CLIENT", "KILL", "USER", "replica")
        await self._degraded(True)
        self._redis.kill()
        self._redis.start()
        await self._degraded(False)
        assert "unreachable" in self._running.log(at)

    async def _degraded(self, wanted: bool) -> None:
        async def is_so() -> bool:
            text = await self._running.readiness()
            self.said.add("readiness", text)
            return ("degraded" in text) is wanted

        await self._proxy.until(is_so, f"degraded: {wanted}")

    async def reconfigure(self) -> None:
        """Good and bad; what ``check`` says of each."""
        secret = PLANTED["bad-file"]
        await self._running.reload({**self._config, "limits": {"drain": "29s"}})
        bad: list[Config] = [
            {"admin": {"token": [secret]}},
            {"admin": {"token": secret}, "sessions": {"store": "signed", "keys": [secret]}},
            {"pools": {"tools": {"backends": [f"http://user:{secret}@127.0.0.1:1/mcp"]}}},
            {"sessions": {"store": "redis", "url": f"redis://:{secret}@[broken"}},
            {"pools": {"tools": {"backends": ["http://a:1"], "proxy": f"socks9://u:{secret}@x"}}},
            {
                "pools": {
                    "tools": {"backends": ["http://a:1"], "credentials": {"authorization": f"a\r\n{secret}"}}
                }
            },
            {"telemetry": {"traces": {"endpoint": f"http://u:{secret}@x", "headers": {"a": f"\n{secret}"}}}},
        ]
        texts = [self._running.text({**self._config, **over}) for over in bad]
        for number, text in enumerate([*texts, f"admin: {{token: '{secret}\npools: [", *UNQUOTED]):
            assert "stays in force" in await self._running.refused(text)
            code, said = checked(self._running.file)
            assert code == 2, (number, said)
            self.said.add(f"check of {number}", said)
        await self._running.reload(self._config)
        code, said = checked(self._running.file)
        assert code == 0
        self.said.add("check", said)

    async def operate(self) -> None:
        """Everything that the admin listener answers, but for a backup, which is one of secrets."""
        for path in (
            "/",
            "/livez",
            "/readyz?verbose",
            "/metrics",
            "/status.json",
            "/config",
            "/openapi.json",
        ):
            await self.order("GET", path, 200)
        for path in ("/backends", "/sessions", "/log-level"):
            await self.order("GET", path, 200)
        secret = PLANTED["order"]
        body = json.dumps({"level": secret, "for": secret}).encode()
        await self.order("PUT", "/log-level", 400, body)
        await self.order("GET", f"/backends/{secret}", 404)
        await self.order("POST", f"/backends/{secret}/drain?for={secret}", 400, body)
        await self.order("GET", f"/sessions/{secret}", 404)
        await self.order("GET", f"/sessions?cursor={secret}", 400)
        await self.order("GET", f"/{secret}", 404)
        guess = await self._admin("GET", "/config", PLANTED["wrong-admin-token"])
        assert guess.status == 401
        self.said.add("guess", guess.body)

    async def crash(self) -> None:
        """A worker is gone, and another takes its place."""
        first, *_ = [worker["pid"] for worker in (await self._proxy.status())["workers"]]
        os.kill(first, signal.SIGKILL)

        async def is_replaced() -> bool:
            pids = [worker["pid"] for worker in (await self._proxy.status())["workers"]]
            return len(pids) == 2 and first not in pids

        await self._proxy.until(is_replaced, "there are two workers again")


def checked(file: Path) -> tuple[int, str]:
    """Exit code and output of ``check``, for people and for programs."""
    results = [
        CliRunner().invoke(commands, ["check", "--config", str(file), *also]) for also in ([], ["--json"])
    ]
    first, second = (result.exit_code for result in results)
    assert first == second
    return first, "".join(result.output for result in results)


@contextlib.asynccontextmanager
async def watched(proxy: ProxyProcess, said: Said) -> AsyncIterator[None]:
    """Somebody reads ``/events`` all the time."""
    client = await Client.connect(proxy.admin_port)
    try:
        await client.send(get(*proxy.admin_fields, target="/events"))
        assert (await client.head("GET")).status == 200
        yield
        said.add("events", await client.body_until(b'"resources/read"'))
    finally:
        client.close()


@pytest.mark.parametrize(("form", "workers", "store"), FORMS)
async def test_no_secret_is_in_any_output(
    form: str, workers: int, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CREDENTIAL, f"Bearer {SECRET['credential']}")
    server = McpServer(SECRET["session"], tool=secret_tool)
    async with Backend(server) as tools, Backend(raw_answer(b"")) as broken, OtlpReceiver() as collector:
        with RedisServer(ACCESS) as redis:
            config = configuration(form, workers, (tools, broken, collector))
            config["sessions"] = sessions(store, redis)
            async with site(config, tmp_path) as running:
                running.proxy.admin_fields = (f"Authorization: Bearer {ADMIN_TOKEN}",)
                story = Story(running, config, redis, broken)
                await tell(story, running, collector)
            output = running.proxy.output
        assert any(SECRET["credential"].encode() in seen.raw for seen in tools.take())
        assert any(PLANTED["collector"] in sent.headers.values() for sent in collector.requests)
    assert "tools/call" in output
    story.said.add("output", output)
    story.said.assert_discreet(PLANTED, story.sessions | server.sessions)


async def tell(story: Story, running: Site, collector: OtlpReceiver) -> None:
    await story.order("PUT", "/log-level", 200, b'{"level": "debug"}')
    async with watched(running.proxy, story.said):
        session = await story.converse()
        await story.fail(session)
    for span in await collector.spans(10):
        story.said.add("span", f"{span} {span.resource}")
    await collector.stop()  # what comes now is lost, and said to be
    await story.lose_the_registry()
    await story.converse()
    await story.reconfigure()
    await story.operate()
    if "workers" in await running.proxy.status():
        await story.crash()
        await story.converse()
        await story.operate()
