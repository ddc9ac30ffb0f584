"""The parent process: it binds, watches its workers, and answers on the admin listener.

Rules of this file: the parent proxies nothing and makes no identity; a signal never ends the
process by itself; the exit code says how it went.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
from typing import TYPE_CHECKING

from mcp_proxy.admin.app import create_admin
from mcp_proxy.config import Address, Config
from mcp_proxy.downstream import server as servers
from mcp_proxy.process import prepare_process
from mcp_proxy.tasks import Tasks
from mcp_proxy.workers import calls
from mcp_proxy.workers.crew import Crew
from mcp_proxy.workers.view import CrewView

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

ADMIN_GRACE_S = 1
"""Nobody waits for an answer of the admin listener when all workers have ended."""


def run(config: Config, *, log_level: str, on_started: Callable[[Address, Address | None], None]) -> int:
    """Serve with ``config.workers`` processes; else like ``mcp_proxy.process.run``."""
    prepare_process(log_level)
    data = servers.bind(config.listen.host, config.listen.port)
    admin = None
    if config.admin.listen is not None:
        admin = servers.bind(config.admin.listen.host, config.admin.listen.port)
    addresses = (_address(data), None if admin is None else _address(admin))
    return asyncio.run(_run(config, log_level, data, admin, lambda: on_started(*addresses)))


def _address(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


def share(config: Config) -> Config:
    """What one worker is told: ``limits.streams`` is for all together, so each has a part of it."""
    streams = -(-config.limits.streams // config.workers)
    limits = config.limits.model_copy(update={"streams": streams})
    return config.model_copy(update={"limits": limits})


async def _run(
    config: Config,
    log_level: str,
    data: socket.socket,
    admin: socket.socket | None,
    on_started: Callable[[], None],
) -> int:
    setup = pickle.dumps(calls.Setup(share(config), log_level))
    crew = Crew(config.workers, data, setup, drain_s=config.limits.drain)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: crew.hurry() if crew.is_stopping else crew.stop())
    loop.add_signal_handler(signal.SIGUSR1, lambda: crew.tell(calls.REOPEN))
    try:
        await crew.start()
        if not crew.is_stopping:
            await _watch(config, crew, admin, on_started)
        await crew.over()
    finally:
        await crew.aclose()
    return 0 if crew.is_clean else 1


async def _watch(
    config: Config, crew: Crew, sock: socket.socket | None, on_started: Callable[[], None]
) -> None:
    """Returns when the crew is over. The admin listener goes last, so that a drain can be seen."""
    if sock is None:
        on_started()
        await crew.over()
        return
    token = config.admin.token
    app = create_admin(CrewView(crew, config), None if token is None else token.value)
    options = servers.config(app, sock, lifespan="off", timeout_graceful_shutdown=ADMIN_GRACE_S)
    server = servers.Server(options, on_started=on_started)
    tasks = Tasks()
    serving = tasks.spawn(server.serve(sockets=[sock]))
    # An admin listener that ends by itself takes the workers along: nobody would see what goes on.
    serving.add_done_callback(lambda _: crew.stop())
    await crew.over()
    server.should_exit = True
    await serving
