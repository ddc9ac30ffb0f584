"""Limits per client address in the shipped nginx configuration: who is above them is told so, what is open is
not touched, and what ends something is never refused.

Rules of this file: nobody is exempt here. The numbers are read from the shipped files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from tests.tools.client import Answer, call, get, post
from tests.tools.mcp_backend import McpServer, Streams
from tests.tools.nginx_shipped import SHIPPED
from tests.tools.nginx_site import NginxSite, nginx_site

_PASS = (SHIPPED / "mcp-proxy/pass.conf").read_text()
FLOOD = 5000
"""Requests at most until the rate is above its limit."""


def limit(name: str) -> int:
    (found,) = re.findall(rf"^limit_conn {name} (\d+);$", _PASS, re.M)
    return int(found)


@pytest.fixture
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NginxSite]:
    async with nginx_site(tmp_path_factory.mktemp("site"), unlimited=()) as site:
        yield site


def is_too_many(answer: Answer) -> bool:
    """429 that tells the client to come again, and that its session lives."""
    error = answer.json["error"]
    said = answer.status, answer.reason, error["code"], error["data"]["reason"], answer.json["id"]
    again = answer.head.one("retry-after") == b"1"
    return said == (429, "edge_too_many_requests", -32603, "edge_too_many_requests", None) and again


async def test_one_stream_above_the_limit_is_refused_and_calls_go_on(site: NginxSite) -> None:
    server = McpServer()
    site.script(server)
    field = await site.session()
    opened = [await site.listen(server, field) for _ in range(limit("mcp_streams"))]
    assert is_too_many(await site.ask(get(field), "GET"))
    assert (await site.ask(post(call(), field))).status == 200, "calls are counted apart"
    client, stream = opened.pop()
    await stream.send(b"data: {}\n\n")
    assert await client.body_until(b"\n\n") == b"data: {}\n\n", "what is open is not touched"
    await stream.end()
    assert (await client.rest()).framing == "clean"
    await freed(site)
    again, _ = await site.listen(server, field)
    again.close()
    assert len(opened) == limit("mcp_streams") - 1


async def freed(site: NginxSite) -> None:
    """nginx has written the line of the stream that ended."""

    async def is_written() -> bool:
        return ("GET", "200") in [(line["method"], line["status"]) for line in site.files.access_lines()]

    await site.replicas[0].proxy.until(is_written, "the line of a stream")


async def test_one_call_above_the_limit_is_refused_and_streams_go_on(site: NginxSite) -> None:
    waiting = Streams()
    server = McpServer(tool=waiting)
    site.script(server)
    field = await site.session()
    for number in range(limit("mcp_requests")):
        client = await site.client()
        await client.send(post(call(number), field))
        await waiting.next()
    assert is_too_many(await site.ask(post(call(), field)))
    _, stream = await site.listen(server, field)  # counted apart
    await stream.end()


async def test_a_flood_is_refused_and_a_session_can_be_ended_in_it(site: NginxSite) -> None:
    server = McpServer()
    site.script(server)
    field = await site.session()
    refused: list[Answer] = []

    async def flood() -> None:
        client = await site.client()
        for number in range(FLOOD):
            answer = await client.ask(post(call(number), field))
            if answer.status != 200:
                refused.append(answer)
            if refused:
                break

    await asyncio.gather(*(flood() for _ in range(4)))
    assert refused
    assert all(map(is_too_many, refused))
    assert (await site.ask(get(field, method="DELETE"), "DELETE")).status == 200
    assert server.sessions == set()
