"""``mcp-proxy demo`` as a person sees it: what it shows, what it leaves running, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator

import httpx2

from tests.tools import PATIENCE_S
from tests.tools.proxy import ROOT

ANYWHERE = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
"""Free ports: other tests run at the same time."""

WITHOUT_SDK = "import sys; sys.modules['mcp'] = None; from mcp_proxy.__main__ import main; main()"


@contextlib.asynccontextmanager
async def demo(*arguments: str) -> AsyncIterator[Process]:
    """The command with these arguments, on free ports, in a session of its own like in a terminal."""
    command = (sys.executable, "-m", "mcp_proxy", "demo", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, start_new_session=True
    )
    try:
        async with asyncio.timeout(2 * PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _shown_until(process: Process, text: str) -> str:
    """Everything on the screen, as soon as ``text`` is."""
    assert process.stdout is not None
    shown = b""
    while text.encode() not in shown:
        line = await process.stdout.readline()
        assert line, shown.decode()
        shown += line
    return shown.decode()


def _children(pid: int) -> set[int]:
    """Processes that were started by this one."""
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return {int(child) for child in children.read().split()}


async def _gone(pids: set[int]) -> None:
    """Returns once none of these processes exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(descriptor, ended.set)
            try:
                await ended.wait()
            finally:
                asyncio.get_running_loop().remove_reader(descriptor)
                os.close(descriptor)


async def test_the_show_proves_each_claim_and_exits() -> None:
    async with demo("--once", *ANYWHERE) as process:
        shown = (await process.communicate())[0].decode()
    assert process.returncode == 0, shown
    visits = re.findall(r"session ([ab]) +whoami -> (\w+), visit (\d)", shown)
    owners = {session: replica for session, replica, _ in visits}
    assert set(owners.values()) == {"lisbon", "oslo"}
    assert visits == [(session, owners[session], str(visit)) for visit in (1, 2, 3) for session in "ab"]
    assert re.findall(r"(\d)/5 +slice", shown) == ["1", "2", "3", "4", "5"]
    assert re.search(r"stateless call +whoami -> (lisbon|oslo), no session", shown)
    assert "\x1b" not in shown, "no colours in a pipe"


async def test_afterwards_all_of_it_stays_up_until_ctrl_c_and_what_is_on_the_screen_works() -> None:
    async with demo(*ANYWHERE) as process:
        shown = await _shown_until(process, "Ctrl-C")
        children = _children(process.pid)
        urls = dict(re.findall(r"(MCP endpoint|status|metrics) +(http://\S+)", shown))
        curl = next(line for line in shown.splitlines() if line.strip().startswith("curl"))
        call = await asyncio.create_subprocess_exec(*shlex.split(curl), stdout=PIPE)
        said = (await call.communicate())[0]
        async with httpx2.AsyncClient(trust_env=False) as http:
            status = (await http.get(urls["status"])).json()
            metrics = (await http.get(urls["metrics"])).text
        process.send_signal(signal.SIGINT)
        last = (await process.communicate())[0].decode()
        await _gone(children)
    assert re.search(rb'"replica":"(lisbon|oslo)","visit":null', said)
    assert len(status["pools"]["default"]["backends"]) == 2
    assert "mcp_proxy_requests_total" in metrics
    assert (process.returncode, last.strip()) == (0, "stopped")


async def test_no_child_survives_a_demo_that_was_killed() -> None:
    async with demo("--once", *ANYWHERE) as process:
        await _shown_until(process, "slice 1")
        children = _children(process.pid)
        assert len(children) == 3
        process.kill()
        await process.wait()
        await _gone(children)


async def test_a_signal_in_the_middle_of_the_show_ends_it_without_a_traceback() -> None:
    async with demo("--once", *ANYWHERE) as process:
        await _shown_until(process, "slice 1")
        children = _children(process.pid)
        process.send_signal(signal.SIGTERM)
        last = (await process.communicate())[0].decode()
        await _gone(children)
    assert process.returncode == 0
    assert "Traceback" not in last


async def test_a_replica_may_die_but_the_end_of_the_proxy_is_the_end_of_the_demo() -> None:
    async with demo(*ANYWHERE) as process:
        await _shown_until(process, "Ctrl-C")
        first, _, proxy = sorted(_children(process.pid))
        os.kill(first, signal.SIGKILL)
        await _shown_until(process, "has ended, the proxy goes on")
        os.kill(proxy, signal.SIGKILL)
        last = (await process.communicate())[0].decode()
    assert process.returncode == 1
    assert "the proxy has ended" in last
    assert "Traceback" not in last


async def test_an_address_that_was_asked_for_and_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:{1}".format(*taken.getsockname())
        async with demo("--once", "--listen", address, "--admin", "127.0.0.1:0") as process:
            shown = (await process.communicate())[0].decode()
    assert process.returncode == 3
    assert shown.strip() == f"mcp-proxy demo: cannot listen on {address}: Address already in use"


async def test_without_the_sdk_one_sentence_says_what_to_install() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_SDK, "demo"), cwd=ROOT, stdout=PIPE, stderr=STDOUT
    )
    shown = (await process.communicate())[0].decode()
    assert process.returncode == 2
    assert "pip install 'mcp-reverse-proxy[demo]'" in shown
    assert len(shown.splitlines()) == 1
