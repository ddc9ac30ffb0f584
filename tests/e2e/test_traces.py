"""One tool call of the official client, through nginx and the proxy to an official server: one tree of spans.

Rules of this file: client, proxy and server are processes with OpenTelemetry on, and send to one collector;
what is asserted is what that got. Bodies are never rewritten: the SDK server follows the context that the SDK
client has put into ``_meta``, and where there is none, that of the HTTP request, which is the proxy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e import traced_client, traced_server
from tests.e2e.clients import MODERN
from tests.e2e.processes import started
from tests.e2e.tracing import HTTP_CLIENT, HTTP_SERVER
from tests.tools import PATIENCE_S
from tests.tools.nginx import nginx
from tests.tools.otlp_receiver import OtlpReceiver, Span
from tests.tools.proxy import ROOT, launch

ERAS = {"legacy": "2025-11-25", MODERN: MODERN}
"""Modes of the client, and the version that they end with."""

PROXY = "mcp-proxy"


class Collector(OtlpReceiver):
    """Keeps what came, as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.payload = b""

    def _judge(self, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
        self.payload += body
        return super()._judge(method, path, headers, body)


class Tree:
    """The spans of a trace in which one tool was called."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans

    def of(self, service: str, kind: str) -> list[Span]:
        """What says that it is for a tool call."""
        return [
            span
            for span in self.spans
            if (span.resource["service.name"], span.kind) == (service, kind)
            and span.attributes.get("mcp.method.name") == "tools/call"
        ]

    def named(self, name: str, *, parent_id: str) -> list[Span]:
        return [span for span in self.spans if (span.name, span.parent_id) == (name, parent_id)]

    @property
    def is_whole(self) -> bool:
        """The call has ended everywhere; the client's spans came before it left."""
        return bool(
            self.of(PROXY, "SERVER")
            and self.of(traced_server.SERVICE, "SERVER")
            and self.named(HTTP_SERVER, parent_id=self.outward.span_id)
        )

    @property
    def agent(self) -> Span:
        (found,) = [span for span in self.spans if span.name == traced_client.AGENT]
        return found

    @property
    def client(self) -> Span:
        """Of the SDK."""
        (found,) = self.of(traced_client.SERVICE, "CLIENT")
        return found

    @property
    def inward(self) -> Span:
        """Of the proxy, as its client sees it."""
        (found,) = self.of(PROXY, "SERVER")
        return found

    @property
    def outward(self) -> Span:
        """Of the proxy, as it sees the server."""
        (found,) = self.of(PROXY, "CLIENT")
        return found

    @property
    def tool(self) -> Span:
        """Of the SDK's server."""
        (found,) = self.of(traced_server.SERVICE, "SERVER")
        return found


@dataclass
class Site:
    """nginx, a proxy and a server, and a collector that all of them but nginx send to."""

    url: str
    collector: Collector

    async def call(self, mode: str, context: str, tool: str = "echo") -> tuple[Tree, dict[str, Any]]:
        """A client calls this tool and leaves. What became of it, and what the client has seen."""
        where = ("--url", self.url, "--collector", self.collector.endpoint)
        how = ("--mode", mode, "--context", context, "--tool", tool)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", traced_client.__name__, *where, *how),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            printed, complained = await process.communicate()
        assert process.returncode == 0, complained.decode()
        seen: dict[str, Any] = json.loads(printed)
        tree = Tree([])
        while not tree.is_whole:
            tree = Tree(await self.collector.spans(len(tree.spans) + 1, seen["trace"]))
        return tree, seen


@contextlib.contextmanager
def server(collector: str) -> Iterator[str]:
    """The traced server; URL of its endpoint."""
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            fd, port = listening.fileno(), listening.getsockname()[1]
            arguments = ("-m", traced_server.__name__, "--collector", collector, "--fd", str(fd))
            stack.enter_context(started(*arguments, fds=(fd,)))
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    collector = Collector()
    async with collector, contextlib.AsyncExitStack() as stack:
        config = {
            "pools": {"tools": {"backends": [stack.enter_context(server(collector.endpoint))]}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
            # Only what clients want to be recorded.
            "telemetry": {"traces": {"endpoint": collector.endpoint, "sample": 0}},
        }
        proxy = await stack.enter_async_context(launch(config, tmp_path_factory.mktemp("proxy")))
        front = nginx([proxy.port], tmp_path_factory.mktemp("nginx"))
        yield Site(f"http://127.0.0.1:{await stack.enter_async_context(front)}/mcp", collector)
        assert proxy.traceback() == ""


@pytest.mark.parametrize("mode", ERAS)
async def test_client_proxy_and_server_are_one_tree(site: Site, mode: str) -> None:
    tree, seen = await site.call(mode, "message")
    assert seen["is_error"] is False
    assert tree.client.parent_id == tree.agent.span_id
    assert tree.inward.parent_id == tree.client.span_id
    assert tree.outward.parent_id == tree.inward.span_id
    assert tree.tool.parent_id == tree.client.span_id  # of ``_meta``, which no proxy touches
    assert len(tree.named(HTTP_SERVER, parent_id=tree.outward.span_id)) == 1
    ((trace_id, linked),) = tree.inward.links
    assert trace_id == seen["trace"]
    (http,) = [span for span in tree.spans if span.span_id == linked]
    assert (http.name, http.parent_id) == (HTTP_CLIENT, tree.agent.span_id)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_server_whose_client_traces_http_alone_is_below_the_proxy(site: Site, mode: str) -> None:
    tree, seen = await site.call(mode, "header")
    assert seen["is_error"] is False
    (http,) = [span for span in tree.spans if span.span_id == tree.inward.parent_id]
    assert (http.name, http.parent_id) == (HTTP_CLIENT, tree.agent.span_id)
    assert tree.inward.links == []
    assert tree.outward.parent_id == tree.inward.span_id
    (around,) = tree.named(HTTP_SERVER, parent_id=tree.outward.span_id)
    assert tree.tool.parent_id == around.span_id


@pytest.mark.parametrize("mode", ERAS)
async def test_proxy_and_sdk_say_the_same_of_a_call(site: Site, mode: str) -> None:
    tree, _ = await site.call(mode, "message")
    for span in (tree.inward, tree.outward, tree.tool):
        assert (span.name, span.status, span.message) == ("tools/call echo", "UNSET", "")
        said = {
            "mcp.method.name": "tools/call",
            "mcp.protocol.version": ERAS[mode],
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "echo",
            "jsonrpc.request.id": tree.client.attributes["jsonrpc.request.id"],
        }
        assert said.items() <= span.attributes.items()
        assert "error.type" not in span.attributes
    assert tree.inward.start_ns <= tree.outward.start_ns <= tree.outward.end_ns <= tree.inward.end_ns


@pytest.mark.parametrize("mode", ERAS)
async def test_proxy_and_sdk_say_the_same_of_a_tool_that_fails(site: Site, mode: str) -> None:
    tree, seen = await site.call(mode, "message", "fail")
    assert seen["is_error"] is True
    for span in (tree.inward, tree.outward, tree.tool):
        assert (span.name, span.status) == ("tools/call fail", "ERROR")
        assert span.attributes["error.type"] == "tool_error"


@pytest.mark.parametrize("mode", ERAS)
async def test_what_was_said_and_in_which_session_stays_between_client_and_server(
    site: Site, mode: str
) -> None:
    tree, seen = await site.call(mode, "message")
    assert traced_server.RESULT in seen["text"]
    assert traced_client.ARGUMENT in seen["text"]
    sessions = {each["mcp-session-id"] for each in seen["answers"]} - {""}
    assert len(sessions) == (mode == "legacy")
    assert tree.inward.attributes["mcp_proxy.request_id"] in {
        each["x-request-id"] for each in seen["answers"]
    }
    for secret in (traced_server.RESULT, traced_client.ARGUMENT, *sessions):
        assert secret.encode() not in site.collector.payload
