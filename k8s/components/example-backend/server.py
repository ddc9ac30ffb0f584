"""A small MCP server with sessions, in the standard library: what stands behind the proxy in the example.

Rules of this file: nothing to install, so that any image with Python 3.11 runs it. It keeps each session in
its own memory: a request that reaches the wrong replica is answered with 404. Session era only (2025-11-25
and before); the stateless era is answered with "method not found", from which clients learn to use sessions.
An example of where a server is placed, not of how one is written: use an SDK for that.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY_LIMIT = 1 << 20
"""As much as any call of these tools needs, and more."""
SESSION_LIMIT = 10_000
"""The oldest is forgotten then: clients that leave without a DELETE must not fill the memory."""
REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
WHOAMI = {
    "name": "whoami",
    "description": "Which replica answers, and how often this session has asked it.",
    "inputSchema": {"type": "object", "properties": {}},
}

sessions: dict[str, int] = {}
"""Calls of each session that lives here."""
stopping = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 300
    """Of a connection without a request, in seconds: longer than the proxy keeps one."""

    def do_POST(self) -> None:
        try:
            message = json.loads(self._body())
            method, arguments = message["method"], message.get("params") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._refuse(400, None, -32700, "not a JSON-RPC request")
        if method == "initialize":
            return self._initialize(message, arguments)
        session = self.headers.get("Mcp-Session-Id", "")
        if method not in ("notifications/initialized", "ping", "tools/list", "tools/call"):
            return self._refuse(200, message.get("id"), -32601, "method not found")
        if session not in sessions:
            return self._refuse(404, message.get("id"), -32600, "Session not found")
        if "id" not in message:
            return self._answer(202, b"")
        if method == "tools/call":
            return self._call(message, arguments, session)
        self._result(message, {"tools": [WHOAMI]} if method == "tools/list" else {})

    def do_GET(self) -> None:
        """A stream on which nothing ever happens, open until the server stops."""
        if self.headers.get("Mcp-Session-Id", "") not in sessions:
            return self._refuse(404, None, -32600, "Session not found")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while not stopping.wait(20):
                self.wfile.write(b": still here\n\n")
        except OSError:
            pass  # the client has left
        self.close_connection = True

    def do_DELETE(self) -> None:
        found = sessions.pop(self.headers.get("Mcp-Session-Id", ""), None)
        self._answer(404 if found is None else 200, b"")

    # --- what it says ----------------------------------------------------------------

    def _initialize(self, message: dict[str, Any], arguments: dict[str, Any]) -> None:
        session = secrets.token_urlsafe(24)
        if len(sessions) >= SESSION_LIMIT:
            sessions.pop(next(iter(sessions)), None)
        sessions[session] = 0
        asked = arguments.get("protocolVersion")
        result: dict[str, Any] = {
            "protocolVersion": asked if asked in REVISIONS else REVISIONS[0],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": socket.gethostname(), "version": "1"},
        }
        self._result(message, result, ("Mcp-Session-Id", session))

    def _call(self, message: dict[str, Any], arguments: dict[str, Any], session: str) -> None:
        if arguments.get("name") != "whoami":
            return self._refuse(200, message["id"], -32602, "there is one tool: whoami")
        sessions[session] += 1
        said = f"{socket.gethostname()}, call {sessions[session]} of this session"
        self._result(message, {"content": [{"type": "text", "text": said}]})

    def _result(self, message: dict[str, Any], result: dict[str, Any], *fields: tuple[str, str]) -> None:
        answer = {"jsonrpc": "2.0", "id": message.get("id"), "result": result}
        self._answer(200, json.dumps(answer).encode(), *fields)

    def _refuse(self, status: int, id: object, code: int, text: str) -> None:
        answer = {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}}
        self._answer(status, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes, *fields: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= BODY_LIMIT:
            self.close_connection = True
            raise ValueError("no body, or too long a one")
        return self.rfile.read(length)

    def log_message(self, format: str, *args: object) -> None:
        """The proxy has an access log."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    server.daemon_threads = True

    def stop(number: int, frame: object) -> None:
        stopping.set()
        # Not here: the loop that shutdown waits for is the one that this signal has interrupted.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening on {options.host}:{options.port}")
    server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
