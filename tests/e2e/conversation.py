"""A scripted conversation, made of everything that is legal and that a re-encoder would not keep.

Rules of this file: data only. Bodies are raw bytes. What a step sends and what it is answered is
never interpreted by the tests, only compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SESSION = "{session}"
"""Stands for the id of the session in header values."""

Fields = list[tuple[str, str]]

REQUEST_FIELDS: Fields = [
    ("User-Agent", "odd/1.0 (two  spaces; and, a comma)"),
    ("X-Twice", "first"),
    ("aCCept", "application/json;q=0.5 ,  text/event-stream"),
    ("X-Between", ""),
    ("X-Twice", "second"),
    ("Content-Type", "application/json;  charset=UTF-8"),
    ("Authorization", "Bearer opaque/+==.~"),
    ("Mcp-Param-Region", "=?base64?w6Rz?="),
    ("Mcp-Param-Unheard-Of", "42"),
    ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("Tracestate", "b=2,a=1"),
    ("Tracestate", "c=3"),
    ("Baggage", "k=v;p=%20"),
    ("Accept-Encoding", "gzip, br;q=0.1"),
    ("Accept-Language", "de;q=0.9,  en"),
    ("X-Latin", "caf\xe9"),
]
"""End-to-end, in an order and a spelling of their own."""

RESPONSE_FIELDS: Fields = [
    ("Cache-Control", "no-cache,  no-transform"),
    ("X-Twice", "first"),
    ("ETag", 'W/"odd, \\"quoted\\""'),
    ("X-Twice", "second"),
    ("Vary", "Accept"),
    ("Vary", "Origin"),
    ("X-Empty", ""),
    ("X-Latin", "\xfcber"),
    ("x-lower", "a:b: c"),
    ("X-Accel-Buffering", "no"),
    ("Link", "<https://example.com/a>; rel=next"),
    ("Link", "<https://example.com/b>; rel=prev"),
]

LEGACY: Fields = [("MCP-Protocol-Version", "2025-11-25"), ("Mcp-Session-Id", SESSION)]
"""A request inside a session."""


@dataclass(frozen=True)
class Step:
    """One request and its answer."""

    name: str
    body: bytes = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    method: str = "POST"
    query: str = ""
    fields: Fields = field(default_factory=lambda: LEGACY)
    status: int = 200
    content_type: str = "application/json"
    answer: tuple[bytes, ...] = (b'{"jsonrpc":"2.0","id":1,"result":{}}',)
    """Pieces of the body. The next one is sent when the client has all before it, if the body is
    an event stream; else they are only apart on the wire."""
    framing: str = "length"
    """``length``, ``chunked`` or ``close``."""

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")


def stream(name: str, *answer: bytes, **options: object) -> Step:
    """An answer of server-sent events in these pieces."""
    defaults: dict[str, object] = {"content_type": "text/event-stream", "framing": "chunked"}
    return Step(name, answer=answer, **(defaults | options))  # type: ignore[arg-type]


def modern(method: str, name: str | None = None) -> Fields:
    """Headers of a request of 2026-07-28."""
    named = [("Mcp-Name", name)] if name else []
    return [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", method), *named]


META = (
    b'"_meta":{"io.modelcontextprotocol/clientCapabilities":{},'
    b'"io.modelcontextprotocol/protocolVersion":"2026-07-28"}'
)

BODIES = [
    Step("a compact request"),
    Step(
        "whitespace and an order of keys that nobody writes",
        b'\r\n\t { "params" :\t{ "b":1 , "a" : [ ] }\n,"method"\n:\n"ping","id" : 7 ,  "jsonrpc":"2.0" }\n\n',
    ),
    Step(
        "numbers that do not survive a float",
        b'{"jsonrpc":"2.0","id":9007199254740991,"method":"tools/call","params":{"name":"n","arguments":'
        b'{"a":123456789012345678901234567890,"b":1.0,"c":-0,"d":1E+2,"e":0.10,"f":1e-7,"g":1.7976931348623157e308}}}',
        answer=(b'{"id":9007199254740991,"result":{"n":1e400,"m":123456789012345678901234567890,"z":-0.0}}',),
    ),
    Step(
        "text in every spelling",
        b'{"jsonrpc":"2.0","id":"\\u0069d-\xc3\xa4\\/","method":"tools/call","params":{"name":"t\xc3\xb6ol",'
        b'"arguments":{"raw":"\xf0\x9d\x84\x9e","escaped":"\\ud834\\udd1e","slash":"\\/","":"\\u0000"}}}',
        answer=(
            b'{ "id" : "\\u0069d-\xc3\xa4\\/", "result":{"t":"\\ud834\\udd1e \xf0\x9d\x84\x9e \\/"}}\r\n',
        ),
    ),
    Step(
        "members that no specification has",
        b'{"jsonrpc":"2.0","id":1,"method":"com.example/x","vendor":{"x":[null,true]},"params":{"anything":{}}}',
        answer=(b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"com.example/never-heard"},"vendor":1}',),
    ),
    Step(
        "a modern call",
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{'
        + META
        + b',"arguments":{"x":1},"name":"n \xc3\xa9"}}',
        fields=modern("tools/call", "=?base64?biDDqQ==?="),
        answer=(b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"task","taskId":"t","ttlMs":1}}',),
    ),
    Step(
        "a modern method of an extension",
        b'{"method":"com.example/do","params":{"x":1,' + META + b'},"id":"a","jsonrpc":"2.0"}',
        fields=modern("com.example/do", "any name"),
        answer=(b'{"jsonrpc":"2.0","id":"a","error":{"code":-31999,"message":"\xe2\x9c\x93","data":[]}}',),
        status=404,
    ),
    Step(
        "a version that does not exist yet",
        b'{"jsonrpc":"2.0","id":1,"method":"x/y","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2031-01-01"}}}',
        fields=[("MCP-Protocol-Version", "2031-01-01"), ("Mcp-Method", "x/y")],
        status=400,
    ),
    Step(
        "a notification",
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}',
        answer=(),
        status=202,
    ),
    Step(
        "an answer to the server",
        b'{"result":{"action":"accept","content":{"n":1.50}},"id":0,"jsonrpc":"2.0"}',
        answer=(),
        status=202,
    ),
    Step(
        "a batch of 2025-03-26",
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"} ,\n'
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}]',
        fields=[("MCP-Protocol-Version", "2025-03-26"), ("Mcp-Session-Id", SESSION)],
        answer=(b'[{"jsonrpc":"2.0","id":1,"result":{}} ]',),
    ),
    Step("the end of a session", b"", method="DELETE", answer=(), status=200),
    Step("a query", query="?a=1&a=%32&b=%c3%a4&c"),
]

JSON_ANSWERS = [
    Step(
        "an error status with a body", status=400, answer=(b'{"error":{"code":-32602,"message":"\xc3\xa4"}}',)
    ),
    Step("a missing session on the server", status=404, answer=(b'{"id":null,"error":{"code":-32600}}',)),
    Step("a failing server", status=500, content_type="text/html", answer=(b"<h1>\xe4 Latin-1</h1>",)),
    Step("an empty answer", answer=()),
    Step("no content", status=204, answer=()),
    Step(
        "chunks that mean nothing",
        answer=(b'{"i', b'd":1,"', b"result", b'":"\xc3', b'\xa4"}'),
        framing="chunked",
    ),
    Step("an answer that ends with its connection", answer=(b'{"id":1,', b'"result":{}}'), framing="close"),
    Step("bytes that are no text", content_type="application/octet-stream", answer=(bytes(range(256)) * 9,)),
    Step(
        "more than any proxy would hold",
        answer=(b'{"id":1,"result":"', b"x\xc3\xa4" * 900_000, b'"}'),
        framing="chunked",
    ),
    Step(
        "more than any proxy would hold, announced",
        answer=(b'{"id":1,"result":"' + b"y" * 2_500_000 + b'"}',),
    ),
]

STREAMS = [
    stream(
        "comments, ids and retry",
        b": ping\n\n",
        b"id: 1\ndata:\n\n",
        b"retry: 1500\n\n",
        b'id:2\nevent: message\ndata: {"jsonrpc":"2.0","method":"notifications/message"}\n\n',
        b": a comment in\nevent: message\n: the middle\nid\ndata: {}\n\n",
        b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n',
    ),
    stream(
        "lines end with CRLF",
        b": ping\r\n\r\n",
        b"id: 1\r\ndata: {}\r\n\r\n",
        b"\r\n\r\n",
        b"data: {}\r\n\r\n",
    ),
    stream("lines end with CR", b": ping\r\r", b"id: 1\rdata: {}\r\r", b"data: {}\r\r"),
    stream("lines end with everything", b"data: 1\r\n\n", b"data: 2\n\r", b"\n", b"data: 3\r\r\n"),
    stream("a line end cut in two", b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\n"),
    stream(
        "empty events and unknown fields",
        b"\n\n\n",
        b"event:\n\n",
        b"data\n\n",
        b"vendor: x\n:\n\n",
        b"data: \n\n",
    ),
    stream("a byte order mark", b"\xef\xbb\xbfdata: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n"),
    stream("a character in two pieces", b"data: \xc3", b"\xa4 \xf0\x9d", b"\x84", b"\x9e\n\n"),
    stream("byte by byte", *(bytes([byte]) for byte in b'id: \xc3\xa9\r\ndata: {"id":1}\r\n\r\n')),
    stream("text that is no text", b"data: \xff\xfe\x00\x01\n\n", b"data: \xed\xa0\x80\n\n"),
    stream("an event of megabytes", b"data: " + b"z" * 3_000_000 + b"\n", b"\n"),
    stream("an end inside an event", b"data: 1\n\n", b"data: never fin"),
    stream("announced in length", b"data: 1\n\n", b"data: 2\n\n", framing="length"),
    stream("ends with its connection", b"data: 1\n\n", b"data: 2\n\n", framing="close"),
    stream("a type with parameters", b"data: 1\n\n", content_type="text/event-stream; charset=utf-8"),
    stream(
        "the listening stream, resumed",
        b": open\n\n",
        b'id: 8\ndata: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n',
        method="GET",
        body=b"",
        fields=[*LEGACY, ("Last-Event-ID", "7_\xc3\xa9:odd, id")],
    ),
    stream(
        "a modern subscription",
        b'data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged"}\r\n\r\n',
        b": ping\r\n\r\n",
        body=b'{"jsonrpc":"2.0","id":"l","method":"subscriptions/listen","params":{'
        + META
        + b',"notifications":{}}}',
        fields=modern("subscriptions/listen"),
    ),
]

STEPS = [*BODIES, *JSON_ANSWERS, *STREAMS]
