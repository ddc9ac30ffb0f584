"""Where a message goes: pure decisions over the head and the envelope, both eras.

Rules of this file: no I/O, no state. A decision is a Plan (one of a few constants) or a
Rejection. The era is decided per request, by header *and* body: SDK servers disagree about
which of the two they believe, so a request in which they disagree is refused rather than
interpreted (MCP 2026-07-28, transports: Server Validation).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from mcp_proxy.envelope import NAMED_METHODS, Envelope, Kind, decode_mcp_name
from mcp_proxy.headers import RequestHead
from mcp_proxy.wire import Rejection

HANDSHAKE_VERSIONS: Final = frozenset(
    (b"2024-10-07", b"2024-11-05", b"2025-03-26", b"2025-06-18", b"2025-11-25")
)
"""Revisions with ``initialize``. 2024-10-07 is still sent by TypeScript clients."""

MODERN_VERSIONS: Final = frozenset((b"2026-07-28",))

BATCH_VERSIONS: Final = frozenset((None, b"2025-03-26"))
"""Batches exist in 2025-03-26 only; an absent header means that revision."""

_NAME_BEARING: Final = frozenset(("tools/call", "prompts/get", "resources/read"))
"""Methods whose ``Mcp-Name`` the core specification demands."""

_REPEATABLE: Final = frozenset(
    (
        "tools/list", "prompts/list", "resources/list", "resources/templates/list",
        "resources/read", "prompts/get", "completion/complete", "subscriptions/listen",
    )
)  # fmt: skip
"""Modern methods without effect: may go to another backend until a response head came."""


class Era(Enum):
    NONE = ""
    LEGACY = "legacy"
    MODERN = "modern"


class Aim(Enum):
    """Which backends may serve the request."""

    NEW_SESSION = "new_session"
    """Any backend; a session may be learnt from its 2xx answer."""
    SESSION = "session"
    """The backend that owns the session named by ``Mcp-Session-Id``, no other."""
    ANY = "any"


class Plan(msgspec.Struct, frozen=True):
    era: Era
    aim: Aim
    repeatable: bool = False
    """May be sent to another backend after bytes reached the first, until a head came."""
    discover: bool = False
    """``server/discover``: any failure makes clients fall back to sessions for good, so it
    is answered by whichever backend can, 5xx included."""
    listens: bool = False
    """Opens a stream meant to stay: counts against ``limits.streams``."""
    ends_session: bool = False


_INITIALIZE: Final = Plan(Era.LEGACY, Aim.NEW_SESSION, repeatable=True)
_LEGACY_SESSION: Final = Plan(Era.LEGACY, Aim.SESSION)
LEGACY_ANYWHERE: Final = Plan(Era.LEGACY, Aim.ANY)
"""Legacy requests outside sessions, and all requests to backends that keep none."""
_LEGACY_STREAM: Final = Plan(Era.LEGACY, Aim.SESSION, listens=True)
_LEGACY_DELETE: Final = Plan(Era.LEGACY, Aim.SESSION, ends_session=True)
_MODERN: Final = Plan(Era.MODERN, Aim.ANY)
_MODERN_REPEATABLE: Final = Plan(Era.MODERN, Aim.ANY, repeatable=True)
_MODERN_DISCOVER: Final = Plan(Era.MODERN, Aim.ANY, repeatable=True, discover=True)
_MODERN_LISTEN: Final = Plan(Era.MODERN, Aim.ANY, repeatable=True, listens=True)

ALLOW_ALL: Final = [(b"allow", b"GET, POST, DELETE, OPTIONS")]
ALLOW_POST: Final = [(b"allow", b"POST, OPTIONS")]


def plan_post(head: RequestHead, envelope: Envelope) -> Plan | Rejection:
    """Classify a POST."""
    version = head.version
    claimed = envelope.version
    if version is None:
        if claimed is not None and envelope.method != "initialize":
            return _mismatch(
                envelope, "the body names a protocol version, the MCP-Protocol-Version header is missing"
            )
        return _legacy(head, envelope)
    if claimed is not None and claimed.encode() != version:
        return _mismatch(envelope, "MCP-Protocol-Version differs from the version in the body")
    if version in HANDSHAKE_VERSIONS:
        return _legacy(head, envelope)
    return _modern(head, envelope)


def _legacy(head: RequestHead, envelope: Envelope) -> Plan | Rejection:
    if envelope.kind is Kind.BATCH and head.version not in BATCH_VERSIONS:
        return Rejection("invalid_request", "batches exist in protocol revision 2025-03-26 only")
    if head.method is not None or head.name is not None:
        # Nobody needs these headers here, but somebody behind us may judge by them.
        problem = _header_problem(head, envelope, required=False)
        if problem is not None:
            return _mismatch(envelope, problem)
    if head.session_id is not None:
        return _LEGACY_SESSION
    if envelope.method == "initialize" and envelope.kind is Kind.REQUEST:
        return _INITIALIZE
    # Do not ask for a session here: backends without sessions exist, and one that has them
    # says 400 itself.
    return LEGACY_ANYWHERE


def _modern(head: RequestHead, envelope: Envelope) -> Plan | Rejection:
    """2026-07-28, and any version that is neither: a backend answers -32022 to that."""
    if envelope.kind is Kind.BATCH:
        return Rejection("invalid_request", "this protocol revision has no batches")
    if envelope.kind is Kind.RESPONSE:
        return Rejection("invalid_request", "this protocol revision has no client responses")
    is_request = envelope.kind is Kind.REQUEST
    if is_request and envelope.version is None and head.version in MODERN_VERSIONS:
        # Without it a body-first server would treat the message as legacy, and could serve
        # a session that was never checked here.
        return Rejection(
            "missing_meta", "params._meta has no io.modelcontextprotocol/protocolVersion", envelope.id
        )
    problem = _header_problem(head, envelope, required=is_request and head.version in MODERN_VERSIONS)
    if problem is not None:
        return _mismatch(envelope, problem)
    if not is_request:
        return _MODERN
    method = envelope.method
    if method == "server/discover":
        return _MODERN_DISCOVER
    if method == "subscriptions/listen":
        return _MODERN_LISTEN
    if method in _REPEATABLE and not envelope.has_request_state:
        return _MODERN_REPEATABLE
    return _MODERN


def _header_problem(head: RequestHead, envelope: Envelope, *, required: bool) -> str | None:
    """Compare the mirrored headers with the body. ``required``: they must be present."""
    if head.method is not None:
        if head.method != envelope.method.encode():
            return "Mcp-Method differs from the method in the body"
    elif required:
        return "the Mcp-Method header is missing"
    if head.name is not None:
        try:
            name = decode_mcp_name(head.name)
        except ValueError:
            return "Mcp-Name is not in its canonical encoding"
        if name != envelope.name and (envelope.name is not None or envelope.method in NAMED_METHODS):
            return "Mcp-Name differs from the name in the body"
    elif required and envelope.name is not None and envelope.method in _NAME_BEARING:
        return "the Mcp-Name header is missing"
    return None


def _mismatch(envelope: Envelope, detail: str) -> Rejection:
    return Rejection("header_mismatch", detail, envelope.id)


def plan_get(head: RequestHead) -> Plan | Rejection:
    """A GET opens the stream of a known session; anything else is 405."""
    if head.version is not None and head.version not in HANDSHAKE_VERSIONS:
        return Rejection("method_not_allowed", "this protocol revision has POST only", extra=ALLOW_POST)
    if head.session_id is None:
        # Stateless SDK servers would leave a sessionless GET hanging for ever.
        return Rejection("method_not_allowed", "GET needs the Mcp-Session-Id of a session", extra=ALLOW_ALL)
    return _LEGACY_STREAM


def plan_delete(head: RequestHead) -> Plan | Rejection:
    """A DELETE ends a known session."""
    if head.version is not None and head.version not in HANDSHAKE_VERSIONS:
        return Rejection("method_not_allowed", "this protocol revision has POST only", extra=ALLOW_POST)
    if head.session_id is None:
        return Rejection("missing_session", "DELETE needs the Mcp-Session-Id of a session")
    return _LEGACY_DELETE
