"""Who may talk to this listener at all: the Host and Origin guard against DNS rebinding.

Rules of this file: pure. Backends get a Host of their own and no Origin, so their own guards
are blind behind this proxy; the judgement is made here, before anything else is read. An
absent Origin is fine (no browser), ``null`` is not. Comparison is by parsed host, never by
prefix: ``localhost:evil`` and ``localhost.evil.com`` are not localhost.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from mcp_proxy.headers import parse_authority
from mcp_proxy.wire import Headers

_CORS_METHODS: Final = b"GET, POST, DELETE"
_CORS_REQUEST_HEADERS: Final = (
    b"authorization, content-type, accept, "
    b"mcp-protocol-version, mcp-session-id, mcp-method, mcp-name, last-event-id"
)
_CORS_EXPOSED: Final = b"mcp-session-id, www-authenticate, mcp-proxy-reason, retry-after"
_CORS_MAX_AGE_S: Final = b"600"


def is_loopback(host: str) -> bool:
    """``localhost`` or a literal loopback address; names are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OriginGuard:
    """Judges Host and Origin of every request of one listener.

    A loopback listener is reachable by any web page of this machine's browsers, so it serves
    loopback Hosts and Origins only; any listener also serves those of ``external_url``.
    """

    def __init__(self, listen_host: str, external_url: str | None) -> None:
        self._is_local = is_loopback(listen_host)
        external = urlsplit(external_url) if external_url else None
        self._external_host = external.hostname if external else None
        self._external_origin = _origin(f"{external.scheme}://{external.netloc}") if external else None
        self.judge_host = lru_cache(maxsize=1024)(self._judge_host)

    def _judge_host(self, host: bytes) -> str | None:
        """None, or the reason for a refusal."""
        authority = parse_authority(host)
        if authority is None:
            return "bad_request"
        if not self._is_local or is_loopback(authority[0]) or authority[0] == self._external_host:
            return None
        return "misdirected"

    def allows_origin(self, origin: bytes) -> bool:
        parsed = _origin(origin.decode("latin-1").lower())
        if parsed is None:
            return False
        return parsed == self._external_origin or (self._is_local and is_loopback(parsed[1]))


def _origin(text: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of a serialised http(s) origin (RFC 6454 section 6.2), None for
    anything else, such as ``null``. Not urlsplit's idea of a host: it forgives too much."""
    scheme, mark, rest = text.partition("://")
    authority = parse_authority(rest.encode("latin-1"))
    if not mark or scheme not in _DEFAULT_PORTS or authority is None:
        return None
    host, port = authority
    return scheme, host, _DEFAULT_PORTS[scheme] if port is None else port


_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def cors_headers(origin: bytes) -> Headers:
    """For any answer to an allowed Origin. Caches must not mix origins up."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _CORS_EXPOSED),
        (b"vary", b"Origin"),
    ]


_PARAM: Final = re.compile(rb"mcp-param-[!#$%&'*+\-.^_`|~0-9a-z]{1,54}")


def preflight_headers(origin: bytes, requested: bytes) -> Headers:
    """Answer to a preflight. ``Mcp-Param-*`` names that the page asks for are granted:
    their names are the tool author's choice. A missing name would look to the client like a
    server of the old era."""
    params = [name.strip() for name in requested.lower().split(b",")]
    params = [name for name in params if _PARAM.fullmatch(name)][:32]
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", _CORS_METHODS),
        (b"access-control-allow-headers", b", ".join([_CORS_REQUEST_HEADERS, *params])),
        (b"access-control-max-age", _CORS_MAX_AGE_S),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
