"""Certificates that change under a running proxy, on both sides of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import call, get, post
from tests.tools.mcp_backend import JSON, json_answer, result
from tests.tools.tls import Authority
from tests.wire.reloading import Site, pools, servers, site

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def authority(folder: Path, name: str) -> Authority:
    (folder / name).mkdir()
    return Authority(folder / name)


def listening(backend: Backend, folder: Path) -> dict[str, Any]:
    tls = {"certificate": str(folder / "tls.pem"), "key": str(folder / "tls.key")}
    return {**pools([backend]), "tls": tls}


def install(by: Authority, folder: Path) -> None:
    shutil.copy(by.certificate, folder / "tls.pem")
    shutil.copy(by.key, folder / "tls.key")


@contextlib.asynccontextmanager
async def secure(proxy: Site, trusted: Authority) -> AsyncIterator[Line]:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.proxy.port, ssl=trusted.trusting())
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def status(line: Line, request: bytes) -> int:
    """Of an answer with a Content-Length, which is read to its end."""
    line[1].write(request)
    head = (await line[0].readuntil(b"\r\n\r\n")).decode()
    (length,) = [part for part in head.lower().split("\r\n") if part.startswith("content-length:")]
    await line[0].readexactly(int(length.partition(":")[2]))
    return int(head.split()[1])


async def test_new_handshakes_see_a_renewed_certificate_and_an_open_stream_goes_on(tmp_path: Path) -> None:
    old, new = authority(tmp_path, "old"), authority(tmp_path, "new")
    install(old, tmp_path)
    async with (
        servers("a") as ((a,), (backend,)),
        site(listening(backend, tmp_path), tmp_path) as proxy,
        secure(proxy, old) as line,
        secure(proxy, old) as kept,
    ):
        a.sessions.add("known")
        line[1].write(post(b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}'))
        head = (await line[0].readuntil(b"\r\n\r\n")).decode()
        field = next(part for part in head.split("\r\n") if part.lower().startswith("mcp-session-id"))
        await line[0].readuntil(b"}}}")
        line[1].write(get(field))
        stream = await a.streams.next()
        await line[0].readuntil(b"\r\n\r\n")

        before = await proxy.reloads()
        install(new, tmp_path)
        proxy.hang_up()
        await proxy.reloaded(before + 1)
        assert await proxy.is_current(), proxy.log()
        with pytest.raises(ssl.SSLCertVerificationError):
            async with secure(proxy, old):
                pass
        async with secure(proxy, new) as fresh:
            assert await status(fresh, post(call(1))) == 200
        assert await status(kept, post(call(2))) == 200
        await stream.send(b"data: still\n\n")
        assert b"data: still" in await line[0].readuntil(b"still\n\n")


async def test_a_pair_that_does_not_belong_together_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    old, new = authority(tmp_path, "old"), authority(tmp_path, "new")
    install(old, tmp_path)
    async with Backend(json_answer()) as backend, site(listening(backend, tmp_path), tmp_path) as proxy:
        before = await proxy.reloads("failed")
        shutil.copy(new.certificate, tmp_path / "tls.pem")
        proxy.hang_up()
        await proxy.reloaded(before + 1, "failed")
        async with secure(proxy, old) as line:
            assert await status(line, post(call(1))) == 200
        shutil.copy(new.key, tmp_path / "tls.key")
        proxy.hang_up()
        await proxy.reloaded(1, "done")
        async with secure(proxy, new) as line:
            assert await status(line, post(call(1))) == 200


async def test_a_section_for_tls_that_comes_or_goes_needs_a_restart(tmp_path: Path) -> None:
    install(authority(tmp_path, "one"), tmp_path)
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as proxy:
        log = await proxy.refused(proxy.text(listening(backend, tmp_path)))
        assert "restart" in log


@contextlib.asynccontextmanager
async def https(by: Authority) -> AsyncIterator[str]:
    """A backend with a certificate of ``by``; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                body = result(json.loads(await reader.readexactly(length)))
                lines = f"HTTP/1.1 200 OK\r\n{JSON[0]}: {JSON[1]}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(lines.encode() + body)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=by.listening())
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    finally:
        server.close()


async def test_a_pool_without_tls_that_gets_its_first_backend_with_it_trusts_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authorities are loaded only for pools that need them: then, too."""
    signer = authority(tmp_path, "one")
    monkeypatch.setenv("SSL_CERT_FILE", str(signer.ca))
    async with Backend(json_answer()) as plain, https(signer) as url, site(pools([plain]), tmp_path) as proxy:
        await proxy.reload(pools([url]))
        assert (await (await proxy.client()).ask(post(call(1)))).status == 200
        assert plain.take() == []


@pytest.mark.parametrize("transport", ["http11", "httpx"])
async def test_another_authority_for_a_pool_is_used_by_new_connections(
    transport: str, tmp_path: Path
) -> None:
    first, second = authority(tmp_path, "one"), authority(tmp_path, "two")
    async with https(second) as url:
        shutil.copy(first.ca, tmp_path / "ca.pem")
        config = pools([url], tls={"ca": str(tmp_path / "ca.pem")}, transport=transport)
        async with site(config, tmp_path) as proxy:
            refused = await (await proxy.client()).ask(post(call(1)))
            assert (refused.status, refused.reason) == (503, "backend_unavailable")
            shutil.copy(second.ca, tmp_path / "ca.pem")
            proxy.hang_up()
            await proxy.reloaded(1, "done")
            assert (await (await proxy.client()).ask(post(call(2)))).status == 200
            digest = hashlib.sha256((tmp_path / "ca.pem").read_bytes()).hexdigest()
            assert digest not in proxy.proxy.output
