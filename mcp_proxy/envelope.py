"""The JSON-RPC envelope: bytes in, an Envelope or an EnvelopeError out. Pure.

Rules of this file:
1. The body is forwarded as it came and read again behind us. What two JSON parsers could read
   differently, in anything that we route or judge by, is refused here.
2. Two readers. ``_plain`` may only ever say yes, about the compact messages that SDKs write;
   every doubt goes to ``_strict``, which says yes or why not. A yes of ``_plain`` is the yes
   that ``_strict`` would give: the tests compare both with a parser built on ``json``.
3. -32700 is for text that is not JSON to everyone: encoding, syntax, lone surrogates, nesting,
   numbers that are not finite. -32600 is for JSON that is not one acceptable MCP message.
4. Work and memory are linear in the body, whatever the body is: values that nobody reads are
   skipped in C and never become objects.
5. Details name our rule, never the client's bytes.

Members that we do not know pass, in the message, ``params``, ``_meta`` and ``ref``: MCP grows by
adding them. But nothing there may come twice, and nothing may be spelt almost like a member that
we read: Go matches names without case (CVE-2026-27896: ``Method``, and a long s for s), and the Python
SDK takes ``task_id`` for ``taskId``.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from enum import Enum
from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from mcp_proxy import jsontext

MAX_METHOD_CHARS: Final = 256
MAX_ID: Final = 2**53
"""Above, JavaScript rounds an integer id and answers somebody else's call."""
MAX_ID_BYTES: Final = 1024
"""Raw length of a string id, which is kept for the life of the exchange and echoed."""
MAX_NAME_BYTES: Final = 8192
"""Length of an ``Mcp-Name`` value: the field limit of common servers."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600


class Kind(Enum):
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    BATCH = "batch"


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What the proxy knows about one body. Everything else in it stays unread."""

    kind: Kind
    method: str
    """Printable, 1 to 256 characters; ``""`` for responses and batches."""
    id: bytes
    """Raw JSON as sent, a string or an integer within ±2^53; ``b"null"`` when there is none."""
    name: str | None
    """What the method acts on (tool, prompt, URI, task), without NUL; None when the method has
    no such field or the message does not carry it."""
    version: str | None
    """``io.modelcontextprotocol/protocolVersion``; of a batch, the one that its messages claim."""
    traceparent: str | None
    tracestate: str | None
    has_request_state: bool
    """``requestState`` or ``inputResponses`` is present, with any value; in a batch, anywhere."""
    methods: tuple[str, ...]
    """Of a batch: the method of each message, ``""`` for responses; else empty."""


class EnvelopeError(Exception):
    """The body is refused. ``detail`` is one sentence without client bytes; ``id`` is the raw id
    of the request if it has exactly one valid id, else ``b"null"``."""

    def __init__(self, code: int, detail: str, id: bytes = b"null") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.id = id


def parse(body: bytes) -> Envelope:
    """Read one POST body. Raises EnvelopeError and nothing else."""
    try:
        fault = jsontext.fault(body)
        if fault is None:
            return _plain(body) or _strict(body)
    except RecursionError:
        fault = "The body is nested too deeply."
    except MemoryError:
        fault = "The body needs more memory than there is."
    except msgspec.DecodeError:
        fault = "The body is not valid JSON."
    raise EnvelopeError(PARSE_ERROR, fault)


# Members with a meaning

_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
_CLIENT: Final = "io.modelcontextprotocol/clientInfo"
_LOG_LEVEL: Final = "io.modelcontextprotocol/logLevel"

_NAME_KEYS: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
    "completion/complete": "ref",
    "tasks/get": "taskId",
    "tasks/result": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""Which member of ``params`` says what the method acts on."""

TASK_METHODS: Final = frozenset(method for method in _NAME_KEYS if _NAME_KEYS[method] == "taskId")
"""Methods whose name is the id of a task."""

NAMED_METHODS: Final = frozenset(_NAME_KEYS)
"""Methods that act on something named in ``params``."""


def _fold(key: str) -> str:
    """One spelling for all that some parser takes for the same name. Upper case first, for the
    dotless i (Java) and the long s (Go); the dot above is what is left of a dotted I."""
    return key.upper().casefold().replace("\u0307", "")


class _Level:
    """One of the objects that we read: how we call it, and its members with a meaning."""

    def __init__(self, title: str, *names: str, aliases: tuple[str, ...] = ()) -> None:
        self.title = title
        self.names = frozenset(names)
        self.folded = frozenset(map(_fold, names + aliases))


_MESSAGE: Final = _Level("The message", "jsonrpc", "id", "method", "params", "result", "error")
_PARAMS: Final = _Level(
    *("params", "name", "uri", "taskId", "ref", "_meta", "requestState", "inputResponses"),
    aliases=("task_id", "request_state", "input_responses"),
)
_META: Final = _Level(
    *("_meta", _VERSION, _CAPABILITIES, _CLIENT, _LOG_LEVEL, "traceparent", "tracestate", "baggage")
)
_REF: Final = _Level("ref", "type", "name", "uri")


# The plain reader

_Skipped = Raw | UnsetType


class _PlainMeta(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    version: str | None = msgspec.field(default=None, name=_VERSION)
    capabilities: _Skipped = msgspec.field(default=UNSET, name=_CAPABILITIES)
    client: _Skipped = msgspec.field(default=UNSET, name=_CLIENT)
    log_level: _Skipped = msgspec.field(default=UNSET, name=_LOG_LEVEL)
    traceparent: str | None = None
    tracestate: str | None = None
    progressToken: _Skipped = UNSET


class _PlainParams(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    name: str | None = None
    uri: str | None = None
    taskId: str | None = None
    arguments: _Skipped = UNSET
    cursor: _Skipped = UNSET
    requestState: _Skipped = UNSET
    inputResponses: _Skipped = UNSET
    meta: _PlainMeta | UnsetType = msgspec.field(default=UNSET, name="_meta")


class _PlainMessage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    jsonrpc: Literal["2.0"]
    method: str
    id: _Skipped = UNSET
    params: _PlainParams | UnsetType = UNSET


_NO_META: Final = _PlainMeta()
_NO_PARAMS: Final = _PlainParams()
_SLACK: Final = len('"id":1,') - 1
"""The shortest member that could be there in vain has one byte more."""

_decode_plain = msgspec.json.Decoder(_PlainMessage).decode
_encode = msgspec.json.Encoder().encode


def _plain(body: bytes) -> Envelope | None:
    """The Envelope of a message that has known members only, or None for "cannot tell".

    The decoder refuses unknown members, so there are no variants. Of a member that comes twice
    it keeps the last; but then the message, written again, is shorter by the other one (or by
    a null). All that we skip is written as it came, and no string has a shorter spelling than
    the encoder's: a difference too small for a member proves that there is none.
    """
    try:
        message = _decode_plain(body)
    except msgspec.DecodeError:
        return None
    if len(body) - len(_encode(message)) > _SLACK:
        return None
    method, params = message.method, message.params or _NO_PARAMS
    name: str | None = getattr(params, _NAME_KEYS.get(method, ""), None)
    kind, id = (Kind.NOTIFICATION, b"null") if message.id is UNSET else (Kind.REQUEST, bytes(message.id))
    if not _is_method(method) or (name and "\0" in name) or not (message.id is UNSET or _is_id(id)):
        return None
    has_request_state = not (params.requestState is UNSET and params.inputResponses is UNSET)
    meta = params.meta or _NO_META
    trace = meta.traceparent, meta.tracestate
    return Envelope(kind, method, id, name, meta.version, *trace, has_request_state, ())


# The strict reader

_skip = msgspec.json.Decoder(Raw).decode
_decode_text = msgspec.json.Decoder(str).decode


def _strict(body: bytes) -> Envelope:
    _skip(body)  # the syntax of the whole, before any part is judged
    return _batch(body) if body.lstrip(b" \t\r\n").startswith(b"[") else _message(body)


def _batch(body: bytes) -> Envelope:
    """Of revision 2025-03-26. All messages are good, or all are refused."""
    try:
        envelopes = [_message(message) for message in jsontext.elements(body)]
    except msgspec.ValidationError:
        detail = f"A batch has at most {jsontext.MAX_ELEMENTS} messages."
        raise EnvelopeError(INVALID_REQUEST, detail) from None
    except EnvelopeError as error:
        raise EnvelopeError(error.code, f"In a batch: {error.detail}") from None
    methods = tuple(envelope.method for envelope in envelopes)
    if not methods or "initialize" in methods:
        raise EnvelopeError(INVALID_REQUEST, "A batch is not empty and does not initialize.")
    versions = {each.version for each in envelopes} - {None}
    if len(versions) > 1:
        raise EnvelopeError(INVALID_REQUEST, "The messages of a batch claim different protocol versions.")
    has_request_state = any(each.has_request_state for each in envelopes)
    version = next(iter(versions), None)
    return Envelope(Kind.BATCH, "", b"null", None, version, None, None, has_request_state, methods)


def _message(raw: bytes) -> Envelope:
    fields = _object(raw, _MESSAGE, b"null")
    id = bytes(fields.get("id", b"null"))
    if "id" in fields and not _is_id(id):
        raise EnvelopeError(INVALID_REQUEST, "id must be a string or an integer within 2^53.")
    is_call = "method" in fields
    echo = id if is_call else b"null"  # the id of a response is the backend's, not the client's
    if _string(fields, "jsonrpc") != "2.0":
        raise EnvelopeError(INVALID_REQUEST, 'jsonrpc must be "2.0".', echo)
    if is_call + ("result" in fields) + ("error" in fields) != 1:
        raise EnvelopeError(INVALID_REQUEST, "A message has one of method, result and error.", echo)
    if is_call:
        return _call(fields, id)
    if "id" not in fields:
        raise EnvelopeError(INVALID_REQUEST, "A response has an id.")
    return Envelope(Kind.RESPONSE, "", id, None, None, None, None, False, ())


def _call(fields: dict[str, Raw], id: bytes) -> Envelope:
    kind = Kind.REQUEST if "id" in fields else Kind.NOTIFICATION
    method = _string(fields, "method")
    if method is None or not _is_method(method):
        raise EnvelopeError(INVALID_REQUEST, "method must be 1 to 256 printable characters.", id)
    params = _object(fields["params"], _PARAMS, id) if "params" in fields else {}
    meta = _object(params["_meta"], _META, id) if "_meta" in params else {}
    has_request_state = "requestState" in params or "inputResponses" in params
    name, version = _name(method, params, id), _text(meta, _VERSION, id)
    trace = _string(meta, "traceparent"), _string(meta, "tracestate")
    return Envelope(kind, method, id, name, version, *trace, has_request_state, ())


def _name(method: str, params: dict[str, Raw], id: bytes) -> str | None:
    key = _NAME_KEYS.get(method)
    if key == "ref" and key in params:
        params = _object(params[key], _REF, id)
        key = "name" if "name" in params else "uri"
        if "name" in params and "uri" in params:
            raise EnvelopeError(INVALID_REQUEST, "ref must not have both name and uri.", id)
    name = None if key is None else _text(params, key, id)
    if name and "\0" in name:
        raise EnvelopeError(INVALID_REQUEST, f"{key} must not contain NUL.", id)
    return name


def _object(raw: bytes, level: _Level, id: bytes) -> dict[str, Raw]:
    """The members of an object, each of which comes once and is not a variant of another."""
    try:
        pairs = jsontext.members(raw)
    except msgspec.ValidationError:
        detail = f"{level.title} must be an object of at most {jsontext.MAX_MEMBERS} members."
        raise EnvelopeError(INVALID_REQUEST, detail, id) from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise EnvelopeError(INVALID_REQUEST, f"{level.title} has a member twice.", id)
    if any(_fold(key) in level.folded for key in fields.keys() - level.names):
        raise EnvelopeError(INVALID_REQUEST, f"{level.title} has a variant of a known member.", id)
    return fields


def _string(fields: dict[str, Raw], key: str) -> str | None:
    raw = bytes(fields.get(key, b""))
    return _decode_text(raw) if raw.startswith(b'"') else None


def _text(fields: dict[str, Raw], key: str, id: bytes) -> str | None:
    text = _string(fields, key)
    if text is None and key in fields:
        raise EnvelopeError(INVALID_REQUEST, f"{key} must be a string.", id)
    return text


def _is_method(method: str) -> bool:
    return 0 < len(method) <= MAX_METHOD_CHARS and method.isprintable()


def _is_id(raw: bytes) -> bool:
    if raw.isdigit() and len(raw) < 16:
        return True
    if raw.startswith(b'"'):
        return len(raw) <= MAX_ID_BYTES
    return len(raw) <= 17 and raw.lstrip(b"-").isdigit() and abs(int(raw)) <= MAX_ID


# Mcp-Name

_OPEN: Final = b"=?base64?"
_CLOSE: Final = b"?="


def decode_mcp_name(value: bytes) -> str:
    """The name in an ``Mcp-Name`` field: printable ASCII as it is, anything else as UTF-8 in
    canonical base64 between ``=?base64?`` and ``?=``. Raises ValueError for all other values,
    also for those that a lenient reader could decode (other case, padding or alphabet, a
    sentinel inside a sentinel)."""
    if len(value) > MAX_NAME_BYTES:
        raise ValueError("Mcp-Name is too long")
    if not value.lower().startswith(_OPEN):
        if not (value.isascii() and value.decode().isprintable() and value == value.strip()):
            raise ValueError("Mcp-Name is neither printable ASCII nor base64 in its sentinel")
        return value.decode()
    decoded = b64decode(value[len(_OPEN) : -len(_CLOSE)], validate=True)
    if value != _OPEN + b64encode(decoded) + _CLOSE or decoded.lower().startswith(_OPEN):
        raise ValueError("Mcp-Name is not canonical")
    return decoded.decode()
