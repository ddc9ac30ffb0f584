"""What is said at the start, and that the line to try is a valid first message of MCP."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer

from mcp_proxy import __version__
from mcp_proxy.cli.banner import banner
from mcp_proxy.config import Address, Config, load
from tests.tools.tls import Authority

URL = "http://10.0.0.1:3000/mcp"


def config(**overrides: object) -> Config:
    return load(None, {}, {"backends": [URL], **overrides})


def line_to_try(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("  try ")]
    return shlex.split(line)[1:]


def test_it_says_where_to_whom_and_within_which_limits() -> None:
    text = banner(config())

    assert text.startswith(f"mcp-proxy {__version__}\n")
    assert "http://127.0.0.1:8080/mcp -> default" in text
    assert URL in text
    assert "http://127.0.0.1:9901/" in text
    assert "memory, forgotten after 2h" in text
    assert "body 4MiB" in text


def test_it_shows_the_ports_that_the_system_chose_and_addresses_that_can_be_reached() -> None:
    text = banner(config(listen=":0", admin="[::1]:0"), Address("0.0.0.0", 4321), Address("::1", 1234))

    assert "http://127.0.0.1:4321/mcp -> default, on every interface" in text
    assert "http://[::1]:1234/" in text
    assert line_to_try(text)[2] == "http://127.0.0.1:4321/mcp"


def test_a_path_that_nobody_wrote_is_mentioned() -> None:
    assert "http://a:1/mcp (had no path, /mcp added; write http://a:1/ " in banner(
        config(backends=["http://a:1"])
    )
    assert "had no path" not in banner(config(backends=["http://a:1/"]))


def test_weights_external_url_token_and_no_admin_listener(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "pools: {a: {backends: [{url: http://a, weight: 3}]}}\nroutes: [{path: /x/mcp, pool: a}]\n"
        "external_url: https://mcp.example.com\nadmin: {token: hunter2}\n"
    )
    text = banner(load(file, {}, {}))

    assert "http://a/mcp, weight 3" in text
    assert "clients see https://mcp.example.com/x/mcp" in text
    assert "http://127.0.0.1:9901/  (status page; " in text
    assert "needs the token" in text
    assert "hunter2" not in text
    assert "admin     off" in banner(load(file, {}, {"admin": "off"}))


@pytest.mark.parametrize("with_ca", [False, True])
def test_over_tls_the_line_to_try_accepts_the_certificate_and_shows_one_where_needed(
    tmp_path: Path, with_ca: bool
) -> None:
    authority = Authority(tmp_path)
    tls = {"certificate": authority.certificate, "key": authority.key} | (
        {"client_ca": authority.ca} if with_ca else {}
    )
    words = line_to_try(banner(Config.model_validate({"tls": tls, "pools": {"a": {"backends": [URL]}}})))

    assert words[2] == "https://127.0.0.1:8080/mcp"
    assert "-k" in words
    assert ("--cert" in words) is with_ca


async def test_the_line_to_try_opens_a_session_on_an_official_server() -> None:
    words = line_to_try(banner(config()))
    headers = dict(words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H")
    app = MCPServer("example").streamable_http_app()

    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as client,
    ):
        answer = await client.post(words[2], headers=headers, content=words[words.index("-d") + 1])

    assert answer.status_code == 200
    assert answer.headers["mcp-session-id"]
    data = next(line for line in answer.text.splitlines() if line.startswith("data: {"))
    assert json.loads(data.removeprefix("data: "))["result"]["protocolVersion"] == "2025-11-25"


def test_several_workers_are_mentioned() -> None:
    sealed = {"MCP_PROXY_SESSION_KEY": "a secret of at least 32 characters"}
    several = load(None, sealed, {"backends": [URL], "sessions": "signed", "workers": 4})
    assert "\n  workers   4\n" in banner(several)
    assert "workers" not in banner(config())


@pytest.mark.parametrize(
    ("discover", "line"),
    [
        ({"dns": "a.svc", "port": 80}, "the addresses of a.svc:80, http /mcp, every 5s"),
        (
            {"srv": "_mcp._tcp.a", "tls": True, "path": "/x", "every": "1m"},
            "the records of _mcp._tcp.a, https /x, every 1m",
        ),
        ({"kubernetes": {"service": "a"}}, "the endpoints of the Service a, http /mcp, watched"),
        (
            {"kubernetes": {"service": "a", "namespace": "b"}, "port": "web"},
            "the endpoints of the Service b/a:web, http /mcp, watched",
        ),
    ],
)
def test_where_backends_are_found_is_said_in_a_line(discover: dict[str, object], line: str) -> None:
    pytest.importorskip("dns")
    pytest.importorskip("lightkube")
    text = banner(Config.model_validate({"pools": {"a": {"discover": discover}}}))

    assert f"a: least_sessions, transport http11\n            {line}\n" in text


def test_limits_that_are_set_and_the_delay_of_a_drain_are_said() -> None:
    limits = {"memory": "1GiB", "requests": 7, "drain": "1m", "drain_delay": "10s"}
    text = banner(Config.model_validate({"pools": {"a": {"backends": [URL]}}, "limits": limits}))

    assert "7 requests, memory 1GiB, drain 10s and then 1m\n" in text
    assert "memory" not in banner(config(sessions="redis://h"))
    assert "10000 requests, drain 30s\n" in banner(config())
