"""Who may talk to the admin listener: decided on the head, before any route exists.

Rules of this file:
* Pure comparisons of bytes; what cannot be read strictly is refused (no prefix tests, no regex).
* A web page must not reach the listener through the visitor's browser. Without a token the defence is
  the Host header, which a page cannot forge: after DNS rebinding it still carries the attacker's name.
  An Origin means that a browser asks on behalf of a page; only the listener's own pages may.
* ``HEALTH`` answers nothing but health, and kubelets send neither token nor a loopback Host. There, an
  address is enough: rebinding needs a name.
* Browsers say of every request where it comes from (Sec-Fetch-Site). Another site may lead a visitor here
  with a link, as any site may; it may load, post or embed nothing.
"""

from __future__ import annotations

import hmac
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from mcp_proxy.admin.answers import refusal
from mcp_proxy.admin.contract import OPEN

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    RawHeaders = list[tuple[bytes, bytes]]

HEALTH = frozenset({"/livez", "/readyz"})
METRICS = "/metrics"
_CHALLENGE = {"www-authenticate": 'Bearer realm="mcp-proxy admin"'}
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Guard:
    """ASGI middleware. ``token`` None: only for loopback names; else for who knows it. Who knows
    ``metrics_token`` may read ``/metrics``."""

    def __init__(self, app: ASGIApp, token: str | None, metrics_token: str | None = None) -> None:
        if token == "" or metrics_token == "":
            raise ValueError("an empty admin token protects nothing")
        self._app = app
        self._token = None if token is None else token.encode()
        self._metrics_token = None if metrics_token is None else metrics_token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        answer = self._judge(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _judge(self, scope: Scope) -> Response | None:
        headers: RawHeaders = scope["headers"]
        is_health = scope["path"] in HEALTH
        host = _sole(headers, b"host")
        if self._token is None and not _is_admissible(host, is_health):
            return refusal(421, "host_not_allowed", "without a token, Host must be a loopback name")
        origins = _all(headers, b"origin")
        if origins and not (len(origins) == 1 and _is_own_origin(origins[0], host, scope["scheme"])):
            return refusal(403, "origin_not_allowed", "Origin must be the listener itself, on loopback")
        if not _is_asked_for(scope["method"], headers):
            return refusal(403, "origin_not_allowed", "a page of another site may only link to this listener")
        if self._token is None or scope["path"] in OPEN or _knows(self._token, headers):
            return None
        scrapes = scope["path"] == METRICS and self._metrics_token is not None
        if scrapes and _knows(self._metrics_token or b"", headers):
            return None
        return refusal(401, "token_required", "send the admin token as a bearer token", _CHALLENGE)


def _all(headers: RawHeaders, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _sole(headers: RawHeaders, name: bytes) -> bytes | None:
    """The value of a field that must occur once; None if it is missing or repeated."""
    values = _all(headers, name)
    return values[0] if len(values) == 1 else None


def _knows(token: bytes, headers: RawHeaders) -> bool:
    scheme, _, credentials = (_sole(headers, b"authorization") or b"").partition(b" ")
    # RFC 9110 section 11.1: the scheme is case-insensitive. The token is compared in a time that does
    # not tell where the first difference is.
    return scheme.lower() == b"bearer" and hmac.compare_digest(credentials.strip(b" "), token)


def _is_asked_for(method: str, headers: RawHeaders) -> bool:
    """By a program, a person or a page of this listener (W3C Fetch Metadata)."""
    sites = _all(headers, b"sec-fetch-site")
    if all(site in (b"same-origin", b"none") for site in sites):
        return True
    is_link = _sole(headers, b"sec-fetch-mode") == b"navigate"
    return is_link and _sole(headers, b"sec-fetch-dest") == b"document" and method in ("GET", "HEAD")


def _authority(value: bytes) -> tuple[str, int | None] | None:
    """Host in lower case and port, or None if it is anything but ``host[:port]`` (RFC 3986 3.2)."""
    try:
        text = value.decode("ascii").lower()
    except UnicodeDecodeError:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, None
    return (host, int(port)) if port.isdigit() and len(port) <= 5 else None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        if host.startswith("[") and host.endswith("]") and "%" not in host:
            return IPv6Address(host[1:-1])
        return IPv4Address(host)
    except AddressValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _is_admissible(host: bytes | None, is_health: bool) -> bool:
    authority = None if host is None else _authority(host)
    if authority is None:
        return False
    return _is_loopback(authority[0]) or (is_health and _address(authority[0]) is not None)


def _is_own_origin(origin: bytes, host: bytes | None, scheme: str) -> bool:
    """RFC 6454 section 6.2: ``scheme://host[:port]``, compared with the Host of the same request."""
    prefix, separator, rest = origin.partition(b"://")
    theirs = _authority(rest)
    ours = None if host is None else _authority(host)
    if not separator or theirs is None or ours is None or not _is_loopback(theirs[0]):
        return False
    their_port = theirs[1] or _DEFAULT_PORTS.get(prefix.decode("latin-1").lower())
    return theirs[0] == ours[0] and their_port == (ours[1] or _DEFAULT_PORTS.get(scheme))
