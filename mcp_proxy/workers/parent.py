"""The parent process: it binds, watches its workers, and answers on the admin listener.

Rules of this file: the parent proxies nothing and makes no identity; a signal never ends the
process by itself; the exit code says how it went.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
import signal
from typing import TYPE_CHECKING

from mcp_proxy.config import Address, Config, Loaded
from mcp_proxy.downstream import server as servers
from mcp_proxy.process import AdminApp, address_of, admin_server, bind_admin, prepare_process
from mcp_proxy.reload import Reloader
from mcp_proxy.tasks import Tasks
from mcp_proxy.workers import calls
from mcp_proxy.workers.crew import Crew
from mcp_proxy.workers.view import CrewView

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


def run(loaded: Loaded, *, on_started: Callable[[Address, Address | None], None]) -> int:
    """Serve with ``workers`` processes; else like ``mcp_proxy.process.run``."""
    prepare_process(loaded.config, loaded.log_level)
    data = servers.bind(loaded.config.listen.host, loaded.config.listen.port)
    admin = bind_admin(loaded.config)
    addresses = address_of(data), None if admin is None else address_of(admin)
    return asyncio.run(_run(loaded, data, admin, lambda: on_started(*addresses)))


def share(config: Config) -> Config:
    """What one worker is told: ``limits.streams`` and ``limits.requests`` are for all together, so each has
    a part of them."""
    of_all = config.limits
    limits = of_all.model_copy(
        update={
            "streams": -(-of_all.streams // config.workers),
            "requests": -(-of_all.requests // config.workers),
        }
    )
    return config.model_copy(update={"limits": limits})


def _setup(config: Config, log_level: str, digest_key: bytes) -> bytes:
    return pickle.dumps(calls.Setup(share(config), log_level, digest_key))


def _drain_s(config: Config) -> float:
    return config.limits.drain_delay + config.limits.drain


async def _run(
    loaded: Loaded, data: socket.socket, admin: socket.socket | None, on_started: Callable[[], None]
) -> int:
    config, key = loaded.config, secrets.token_bytes(16)
    setup = _setup(config, loaded.log_level, key)
    crew = Crew(config.workers, data, setup, drain_s=_drain_s(config), log=config.telemetry.log)

    async def apply(config: Config) -> None:
        told = pickle.dumps(share(config))
        await crew.reload(_setup(config, loaded.log_level, key), told, drain_s=_drain_s(config))
        view.follow(config)
        app.follow(config.admin)

    reloader = Reloader(loaded, apply)
    view = CrewView(crew, config, reloader)
    app = AdminApp(view, config.admin)
    loop = asyncio.get_running_loop()
    servers.Signals(crew.stop, crew.hurry).listen()
    loop.add_signal_handler(signal.SIGUSR1, lambda: crew.tell(calls.REOPEN))
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)  # heard from the start, heeded when all serve
    tasks = Tasks()
    try:
        await crew.start()
        if not crew.is_stopping:
            tasks.spawn(reloader.run())
            await _watch(app, crew, admin, on_started)
        await crew.over()
    finally:
        await tasks.aclose()
        await crew.aclose()
    return 0 if crew.is_clean else 1


async def _watch(
    app: AdminApp, crew: Crew, sock: socket.socket | None, on_started: Callable[[], None]
) -> None:
    """Returns when the crew is over. The admin listener goes last, so that a drain can be seen."""
    if sock is None:
        on_started()
        await crew.over()
        return
    server = admin_server(app, sock, on_started)
    tasks = Tasks()
    serving = tasks.spawn(server.serve(sockets=[sock]))
    # An admin listener that ends by itself takes the workers along: nobody would see what goes on.
    serving.add_done_callback(lambda _: crew.stop())
    await crew.over()
    server.should_exit = True
    await serving
