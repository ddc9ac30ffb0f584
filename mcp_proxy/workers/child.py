"""A worker: one ``Service`` in one process, told by its parent what to do.

Rules of this file:
* Everything that is an identity (keys, pseudonyms, connections) is made here, after the process began.
* The link decides about the end. A signal that reaches every process of a group or a container at
  once must not count for two: SIGINT and SIGHUP are ignored, SIGTERM drains and never hurries.
* Without a parent nobody restarts, stops or watches a worker: it drains, without a delay, for the next
  parent wants the port.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

import uvloop

from mcp_proxy.app import Service
from mcp_proxy.errors import StartupError
from mcp_proxy.process import data_server, prepare_process, reload, spare_the_collector
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import app_log
from mcp_proxy.view import ServiceView
from mcp_proxy.workers import calls
from mcp_proxy.workers.link import answer_calls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp_proxy.downstream.server import Server
    from mcp_proxy.telemetry.app_log import Form
    from mcp_proxy.telemetry.snapshot import Snapshot
    from mcp_proxy.workers.link import Call, Handler

LAST_WORD_S: Final = 5.0
"""How long a worker that has ended waits for its parent to hear so."""


def main(data_fd: int, link_fd: int, log: Form) -> None:
    """Runs until the end; both descriptors are the worker's now."""
    app_log.begin("info", log, is_worker=True)  # until the parent has said more
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    uvloop.run(_run(socket.socket(fileno=data_fd), socket.socket(fileno=link_fd)))


async def _run(data_socket: socket.socket, link: socket.socket) -> None:
    tasks = Tasks()
    worker = Worker(data_socket, tasks)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.drain)
    loop.add_signal_handler(signal.SIGUSR1, worker.reopen)
    answering = tasks.spawn(answer_calls(link, worker.handlers(), tasks))
    answering.add_done_callback(lambda _: worker.stop())
    await worker.over.wait()
    await asyncio.wait([answering], timeout=LAST_WORD_S)
    await tasks.aclose()


class Worker:
    """``over`` is set when it has ended, or will never begin."""

    def __init__(self, data_socket: socket.socket, tasks: Tasks) -> None:
        self.over = asyncio.Event()
        self._socket = data_socket
        self._tasks = tasks
        self._service: Service | None = None
        self._view: ServiceView | None = None
        self._server: Server | None = None

    def handlers(self) -> Mapping[str, tuple[Call[Any], Handler]]:
        own: list[tuple[Call[Any], Handler]] = [
            (calls.SERVE, self.serve),
            (calls.DRAIN, self.drain),
            (calls.HURRY, self.hurry),
            (calls.RELOAD, self.reload),
            (calls.REOPEN, self.reopen),
            (calls.ENDED, self.ended),
        ]
        of_view = [(call, self._of_view(call.name)) for call in calls.OF_VIEW]
        return {call.name: (call, handler) for call, handler in own + of_view}

    def _of_view(self, name: str) -> Handler:
        def handler(*arguments: object) -> Any:
            assert self._view is not None, "the worker has not begun to serve"
            return getattr(self._view, name)(*arguments)

        return handler

    async def serve(self, setup: bytes) -> None:
        # The bytes come from the parent, over a pair of sockets that nobody else holds.
        told: calls.Setup = pickle.loads(setup)
        if self.over.is_set():
            raise StartupError("the worker was stopped before it began")
        prepare_process(told.config, told.log_level, is_worker=True)
        service = Service(told.config, digest_key=told.digest_key)
        server = data_server(service, self._socket)
        spare_the_collector()
        listens = asyncio.get_running_loop().create_future()
        server.on_started = lambda: listens.set_result(None)
        self._service, self._server = service, server
        self._view = ServiceView(service, server.drain)
        serving = self._tasks.spawn(self._serve(server))
        await asyncio.wait([listens, serving], return_when=asyncio.FIRST_COMPLETED)
        if not listens.done():
            raise StartupError("the data listener did not start")

    async def _serve(self, server: Server) -> None:
        try:
            await server.serve(sockets=[self._socket])
        finally:
            self.over.set()

    async def ended(self) -> Snapshot:
        await self.over.wait()
        assert self._view is not None
        return self._view.snapshot()

    def drain(self) -> None:
        if self._server is None:
            self.over.set()
        else:
            self._server.drain()

    def stop(self) -> None:
        self.drain()
        if self._server is not None:
            self._server.stop()

    def hurry(self) -> None:
        self.drain()
        if self._server is not None:
            self._server.hurry()

    def reload(self, config: bytes) -> None:
        assert self._service is not None
        assert self._server is not None
        reload(self._server, self._service, pickle.loads(config))

    def reopen(self) -> None:
        if self._service is not None:
            self._service.reopen_logs()
