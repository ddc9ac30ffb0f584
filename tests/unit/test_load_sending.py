"""A large body on its way: what a server may do meanwhile, and what the client makes of it.

Rules of this file: those of ``test_load_client.py``. Bodies are larger than what sockets take on their own.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from mcp_proxy.load import Target
from mcp_proxy.load.connection import Broken, Connection
from tests.tools import PATIENCE_S
from tests.tools.tls import Authority
from tests.unit.loadrig import http


def test_an_answer_that_comes_before_the_body_was_read_counts() -> None:
    """A server that refuses a large body need not read it; what it said is worth more than that it closed."""

    def refuse(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(http(413, b"{}", "connection: close"))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, args=(listening,), daemon=True).start()
        where = Target("http", "127.0.0.1", listening.getsockname()[1], "/mcp")
        connection = Connection(where)
        assert connection.ask("POST", [], b"x" * 8_000_000, PATIENCE_S).status == 413
        connection.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_answer_that_comes_while_a_body_is_sent_ends_the_sending(scheme: str, tmp_path: Path) -> None:
    """Also on a connection that stays: nobody reads there any more, and nobody may use it again."""
    is_over = threading.Event()
    context = Authority(tmp_path).listening()

    def refuse(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        if scheme == "https":
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            connection.recv(1000)
            connection.sendall(http(413, b"{}"))
            is_over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, args=(listening,), daemon=True).start()
        where = Target(scheme, "127.0.0.1", listening.getsockname()[1], "/mcp")
        connection = Connection(where, verify=False)
        try:
            reply = connection.ask("POST", [], b"x" * 32_000_000, PATIENCE_S)
            assert reply.status == 413
            assert reply.whole(PATIENCE_S) == b"{}"
            assert not connection.is_usable()
        finally:
            is_over.set()
            connection.close()


def test_sending_has_one_deadline_however_many_pieces_there_are() -> None:
    taken = 0

    def drip(listening: socket.socket) -> None:
        nonlocal taken
        connection, _ = listening.accept()
        with connection:
            while data := connection.recv(65536):
                taken += len(data)
                threading.Event().wait(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        reading = threading.Thread(target=drip, args=(listening,), daemon=True)
        reading.start()
        connection = Connection(Target("http", "127.0.0.1", listening.getsockname()[1], "/mcp"))
        with pytest.raises(TimeoutError):
            connection.ask("POST", [], b"x" * 32_000_000, 0.1)
        connection.close()
        reading.join(PATIENCE_S)
    assert taken < 32_000_000


def test_a_connection_that_breaks_while_it_is_sent_to_says_so() -> None:
    def refuse(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.recv(1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, args=(listening,), daemon=True).start()
        where = Target("http", "127.0.0.1", listening.getsockname()[1], "/mcp")
        connection = Connection(where)
        with pytest.raises(Broken) as broken:
            connection.ask("POST", [], b"x" * 32_000_000, PATIENCE_S)
        assert broken.value.phase == "send"
        connection.close()
