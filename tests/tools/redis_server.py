"""Redis servers that tests start, stop, freeze, fill and fail over: real processes.

Rules of this file: a directory per server, 127.0.0.1 only, nothing is written to disk by Redis
itself; only processes that were started here are signalled, by their handle. It speaks to them
through ``command``, a socket of its own: what a test asserts on does not pass the code under test.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports

Reply = Any
"""bytes, int, None, a list of these, or ReplyError."""


class ReplyError(Exception):
    """The server's own error."""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait, bounded, until another process is in the state that the test is about."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ReplyError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(f"in vain: {what}")


class RedisServer:
    """``with RedisServer() as redis``: a running server at ``redis.port`` until the block ends.

    ``options`` are lines of redis.conf. ``tls``: certificate, key and CA of a TLS-only server.
    """

    def __init__(
        self, *options: str, tls: tuple[Path, Path, Path] | None = None, port: int = 0, sentinel: bool = False
    ) -> None:
        self.port = port or free_ports(1)[0]
        self.options = options
        self.tls = tls
        self._is_sentinel = sentinel
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._popen: subprocess.Popen[bytes] | None = None
        self._wire: socket.socket | None = None
        self._buffer = b""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> str:
        return f"{self._directory.name}/redis.sock"

    # --- the process -----------------------------------------------------------------

    def start(self) -> None:
        """Returns when it answers. Also after ``kill``: the same port, and empty."""
        lines = ["bind 127.0.0.1", f"dir {self._directory.name}", "daemonize no"]
        if self.tls is None:
            lines.append(f"port {self.port}")
        else:
            certificate, key, ca = self.tls
            lines += [
                "port 0",
                f"tls-port {self.port}",
                f"tls-cert-file {certificate}",
                f"tls-key-file {key}",
            ]
            lines += [f"tls-ca-cert-file {ca}", "tls-auth-clients no"]
        if not self._is_sentinel:
            lines += [
                'save ""',
                "appendonly no",
                f"unixsocket {self.socket_path}",
                "enable-debug-command yes",
            ]
        config = Path(self._directory.name, "redis.conf")
        config.write_text("\n".join([*lines, *self.options]) + "\n")
        arguments = ["redis-server", str(config)] + (["--sentinel"] if self._is_sentinel else [])
        with open(f"{self._directory.name}/log", "ab") as log:
            self._popen = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._is_answering, f"a Redis server at port {self.port}\n{self.log()}")

    def _is_answering(self) -> bool:
        with contextlib.suppress(ReplyError):  # a user may not be allowed to ask
            return bool(self.command("PING"))
        return True

    def log(self) -> str:
        return Path(self._directory.name, "log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait(PATIENCE_S)
        self._disconnect()

    def freeze(self) -> None:
        """It accepts connections and bytes, and answers nobody."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._popen is not None
        self._popen.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self.kill()
        self._disconnect()
        self._directory.cleanup()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what it holds ---------------------------------------------------------------

    def command(self, *args: bytes | str | int) -> Reply:
        """Ask, on a connection of its own; raises ReplyError. Not for servers that speak TLS only
        (those are asked at their Unix socket, as it does for all)."""
        try:
            return self._ask(args)
        except OSError:
            self._disconnect()  # restarted meanwhile
            return self._ask(args)

    def _ask(self, args: tuple[bytes | str | int, ...]) -> Reply:
        if self._wire is None:
            if self._is_sentinel:
                self._wire = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
            else:
                self._wire = socket.socket(socket.AF_UNIX)
                self._wire.settimeout(PATIENCE_S)
                self._wire.connect(self.socket_path)
        parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        self._wire.sendall(
            b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        )
        reply = self._reply()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def _reply(self) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            return ReplyError(rest.decode())
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._take(int(rest) + 2)[:-2]
        assert kind == b"*", line
        return None if rest == b"-1" else [self._reply() for _ in range(int(rest))]

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _receive(self) -> None:
        assert self._wire is not None
        data = self._wire.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._buffer += data

    def _disconnect(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire, self._buffer = None, b""

    def keys(self) -> list[str]:
        return sorted(key.decode() for key in self.command("KEYS", "*"))

    def flush(self) -> None:
        self.command("FLUSHALL")

    def maxmemory(self, size: str, policy: str = "noeviction") -> None:
        self.command("CONFIG", "SET", "maxmemory", size)
        self.command("CONFIG", "SET", "maxmemory-policy", policy)

    def info(self, section: str) -> dict[str, str]:
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self) -> dict[str, int]:
        """Commands since ``forget_calls``, without those of this file and of handshakes."""
        left_out = {"info", "config|resetstat", "ping", "client|list", "hello", "role", "select", "auth"}
        counted = {
            name.removeprefix("cmdstat_"): int(text.split(",")[0].removeprefix("calls="))
            for name, text in self.info("commandstats").items()
        }
        return {name: count for name, count in counted.items() if name not in left_out}

    def forget_calls(self) -> None:
        self.command("CONFIG", "RESETSTAT")

    def clients(self, containing: str = "") -> int:
        """Connections whose line in CLIENT LIST has ``containing``; this one is not counted."""
        lines = self.command("CLIENT", "LIST").decode().splitlines()
        return sum(containing in line and "cmd=client|list" not in line for line in lines)


def _is_replicating(replica: RedisServer) -> bool:
    return replica.info("replication")["master_link_status"] == "up"


def _knows_replica(node: RedisServer, replica_id: bytes) -> bool:
    lines = node.command("CLUSTER", "NODES").splitlines()
    return any(line.startswith(replica_id) and b"slave" in line for line in lines)


class SentinelGroup:
    """One master, its replicas, and sentinels that watch them; fails over within about a second."""

    SERVICE = "sessions"

    def __init__(self, replicas: int = 1, sentinels: int = 1) -> None:
        self.master = RedisServer("repl-diskless-sync-delay 0")
        self.replicas = [
            RedisServer(f"replicaof 127.0.0.1 {self.master.port}", "repl-diskless-sync-delay 0")
            for _ in range(replicas)
        ]
        quorum = sentinels // 2 + 1
        watch = (
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.master.port} {quorum}",
            f"sentinel down-after-milliseconds {self.SERVICE} 500",
            f"sentinel failover-timeout {self.SERVICE} 2000",
        )
        self.sentinels = [RedisServer(*watch, sentinel=True) for _ in range(sentinels)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.SERVICE}/0"

    def current(self) -> RedisServer:
        """Whom the sentinels hold for the master."""
        port = int(self.sentinels[0].command("SENTINEL", "get-master-addr-by-name", self.SERVICE)[1])
        return next(one for one in (self.master, *self.replicas) if one.port == port)

    def __enter__(self) -> SentinelGroup:
        with contextlib.ExitStack() as stack:
            for one in (self.master, *self.replicas):
                stack.enter_context(one)
            for replica in self.replicas:
                eventually(partial(_is_replicating, replica), "replication")
            for one in self.sentinels:
                stack.enter_context(one)
            for one in self.sentinels:
                eventually(partial(self._is_settled, one), "sentinels that know each other")
            self._stack = stack.pop_all()
        return self

    def _is_settled(self, sentinel: RedisServer) -> bool:
        fields = sentinel.command("SENTINEL", "master", self.SERVICE)
        state = dict(zip(fields[::2], fields[1::2], strict=True))
        return (
            int(state[b"num-slaves"]) == len(self.replicas)
            and int(state[b"num-other-sentinels"]) == len(self.sentinels) - 1
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class RedisCluster:
    """Three masters that share the slots."""

    def __init__(self, nodes: int = 3) -> None:
        self.nodes = [
            RedisServer(
                "cluster-enabled yes", "cluster-node-timeout 1000", "cluster-require-full-coverage no"
            )
            for _ in range(nodes)
        ]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> RedisCluster:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            step = 16384 // len(self.nodes)
            for index, node in enumerate(self.nodes):
                last = 16383 if node is self.nodes[-1] else (index + 1) * step - 1
                node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                node.command("CLUSTER", "ADDSLOTSRANGE", index * step, last)
                self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)
            for node in self.nodes:
                eventually(partial(self._is_whole, node), "a cluster that agrees")
            self._stack = stack.pop_all()
        return self

    def _is_whole(self, node: RedisServer) -> bool:
        fields = node.command("CLUSTER", "INFO").decode()
        slots = node.command("CLUSTER", "SLOTS")
        return "cluster_state:ok" in fields and len({slot[2][1] for slot in slots}) == len(self.nodes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def adopt(self, spare: RedisServer, of: RedisServer) -> None:
        """Make ``spare``, a running server with ``cluster-enabled``, a replica of ``of``."""
        owner, spare_id = of.command("CLUSTER", "MYID"), spare.command("CLUSTER", "MYID")
        spare.command("CLUSTER", "MEET", "127.0.0.1", of.port)
        eventually(lambda: owner in spare.command("CLUSTER", "NODES"), "a node that knows its master")
        eventually(lambda: spare.command("CLUSTER", "REPLICATE", owner), "a node that may replicate")
        eventually(partial(_is_replicating, spare), "replication")
        for node in self.nodes:
            eventually(partial(_knows_replica, node, spare_id), "nodes that know the replica")

    # --- slots -----------------------------------------------------------------------

    def slot(self, key: str) -> int:
        return int(self.nodes[0].command("CLUSTER", "KEYSLOT", key))

    def owner(self, slot: int) -> RedisServer:
        for first, last, master, *_ in self.nodes[0].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, slot: int, target: RedisServer) -> RedisServer:
        """From now on the owner answers ASK for keys that it does not have (any more)."""
        source = self.owner(slot)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))
        return source

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> int:
        keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        if keys:
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: RedisServer) -> None:
        """From now on everybody but the new owner answers MOVED."""
        owner = target.command("CLUSTER", "MYID")
        for node in (target, *(node for node in self.nodes if node is not target)):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", owner)
        # Another move before all know the new epoch may take this one back.
        eventually(lambda: len({self._epoch(node) for node in self.nodes}) == 1, "one epoch")

    def _epoch(self, node: RedisServer) -> bytes:
        lines = node.command("CLUSTER", "INFO").splitlines()
        return next(line for line in lines if line.startswith(b"cluster_current_epoch:"))  # type: ignore[no-any-return]

    def move(self, slot: int, target: RedisServer) -> None:
        source = self.begin_move(slot, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, target)


@contextlib.contextmanager
def running(redis: RedisServer) -> Iterator[RedisServer]:
    """A server that the test itself starts, perhaps late; stopped at the end."""
    try:
        yield redis
    finally:
        redis.stop()
