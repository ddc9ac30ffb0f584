"""The wire between the parent and one worker: calls by name, over a pair of sockets.

Rules of this file:
* A message is its length in four bytes and MessagePack. Only the parent calls; the worker answers
  each call once, in whatever order the answers come.
* The pair is inherited, so nobody else can speak here, and its end is the news that the other
  process is gone, however it went.
* Errors that are part of a contract travel as such (``_RAISED``); any other is a ``WorkerError`` and
  its traceback stays in the worker's log.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import msgspec

from mcp_proxy.errors import StartupError, StoreError

if TYPE_CHECKING:
    import socket

    from mcp_proxy.tasks import Tasks

logger = logging.getLogger("mcp_proxy")

MESSAGE_LIMIT: Final = 64 * 1024 * 1024
"""Far above a page of a backup; a longer one would be a defect."""
_LENGTH = struct.Struct(">I")

R = TypeVar("R")

Handler = Callable[..., Any]
"""Takes the arguments of its call; returns the result or an awaitable of it."""


class WorkerError(Exception):
    """A call failed in the worker, for a reason that its log has."""


class WorkerGone(WorkerError):
    """The worker ended before it answered."""


_RAISED: Mapping[str, type[Exception]] = {
    "value": ValueError,
    "store": StoreError,
    "startup": StartupError,
    "error": WorkerError,
}


class Call(Generic[R]):
    """What may be asked: a name, the types of the arguments and of the result."""

    __slots__ = ("arguments", "name", "result")

    def __init__(self, name: str, result: Any, *arguments: Any) -> None:
        self.name = name
        self.result = result
        self.arguments: Any = tuple.__class_getitem__(arguments)


class _Question(msgspec.Struct, array_like=True):
    id: int
    name: str
    arguments: msgspec.Raw


class _Answer(msgspec.Struct, array_like=True):
    id: int
    raised: str
    """A key of ``_RAISED``, empty for a result."""
    value: msgspec.Raw
    """The result, or the sentence of the error."""


_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


async def _receive(reader: asyncio.StreamReader) -> bytes | None:
    """The next message; None at the end, also within a message."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MESSAGE_LIMIT:
            raise ConnectionError("a message is too long")
        return await reader.readexactly(length)
    except (EOFError, ConnectionError):
        return None


def _send(writer: asyncio.StreamWriter, message: _Question | _Answer) -> None:
    body = _encode(message)
    writer.write(_LENGTH.pack(len(body)) + body)


class WorkerLink:
    """The parent's end. ``aclose`` tells the worker that the parent has no more to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tasks: Tasks) -> None:
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._last_id = 0
        self._is_over = False
        tasks.spawn(self._listen(reader))

    @classmethod
    async def over(cls, sock: socket.socket, tasks: Tasks) -> WorkerLink:
        return cls(*await asyncio.open_unix_connection(sock=sock), tasks)

    async def ask(self, call: Call[R], *arguments: object, wait_s: float | None) -> R:
        """The worker's answer. Raises WorkerGone, WorkerError, TimeoutError when it takes longer than
        ``wait_s``, and what the contract of the call names."""
        if self._is_over:
            raise WorkerGone("the worker has ended")
        self._last_id += 1
        number = self._last_id
        answered: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answered
        _send(self._writer, _Question(number, call.name, msgspec.Raw(_encode(arguments))))
        try:
            async with asyncio.timeout(wait_s):
                raw = await answered
        finally:
            self._waiting.pop(number, None)
        return cast("R", msgspec.msgpack.decode(raw, type=call.result))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (message := await _receive(reader)) is not None:
            answer = _decode_answer(message)
            answered = self._waiting.get(answer.id)
            if answered is None or answered.done():
                continue  # came too late
            if answer.raised:
                text = msgspec.msgpack.decode(answer.value, type=str)
                answered.set_exception(_RAISED[answer.raised](text))
            else:
                answered.set_result(answer.value)
        self._is_over = True
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(WorkerGone("the worker has ended"))

    def close(self) -> None:
        """Idempotent."""
        self._writer.close()


async def answer_calls(
    sock: socket.socket, handlers: Mapping[str, tuple[Call[Any], Handler]], tasks: Tasks
) -> None:
    """The worker's end: answers until the parent closes the link or is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    while (message := await _receive(reader)) is not None:
        question = _decode_question(message)
        tasks.spawn(_answer(writer, question, *handlers[question.name]))
    writer.close()


async def _answer(
    writer: asyncio.StreamWriter, question: _Question, call: Call[Any], handler: Handler
) -> None:
    raised = ""
    value: Any
    try:
        value = handler(*msgspec.msgpack.decode(question.arguments, type=call.arguments))
        if inspect.isawaitable(value):
            value = await value
        body = _encode(value)
    except Exception as error:
        raised = next((word for word, kind in _RAISED.items() if isinstance(error, kind)), "error")
        if raised == "error":
            logger.exception("call %s failed", question.name)
        body = _encode("the worker's log says more" if raised == "error" else str(error))
    _send(writer, _Answer(question.id, raised, msgspec.Raw(body)))
