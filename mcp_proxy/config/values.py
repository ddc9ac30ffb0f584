"""What one value of the configuration may look like: text in, value out.

Rules of this file: pure functions, no I/O, no pydantic. Whatever is refused raises ``Invalid``,
whose message names the cause and whose hint names the cure. No message repeats a value that may
hold a secret (URLs with a password, tokens).
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

DEFAULT_PATH = "/mcp"
"""Path of a backend URL without one, and of the route nobody wrote down."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Invalid(ValueError):
    """A refused value: ``message`` says what is wrong, ``hint`` what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest of ``known``, or all of them when none is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else ""


# Durations and sizes

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_HINT = "write a number and a unit without a space: 500ms, 5s, 10m, 2h"
_LONGEST_S = 366 * 86400.0
"""A year. Anything longer is a typing error, or means ``none``."""

_SIZE = re.compile(r"(\d+)(B|KiB|MiB|GiB)?", re.ASCII)
_SIZE_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE_HINT = "write a whole number of bytes, or with a unit: 512, 64KiB, 4MiB, 1GiB"
_LARGEST_BYTES = 1 << 40
"""1 TiB: a buffer limit above it is a typing error."""


def duration(value: object) -> float:
    """``"500ms"`` → 0.5. Numbers are seconds (the loader refuses bare numbers in files)."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            if value == "none":
                raise Invalid("'none' is not possible here, this wait needs a limit", _DURATION_HINT)
            raise Invalid(f"{value!r} is not a duration", _DURATION_HINT)
        seconds = float(match[1]) * _DURATION_S[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise Invalid(f"{_kind(value)} is not a duration", _DURATION_HINT)
    if not 0 <= seconds <= _LONGEST_S or math.isnan(seconds):
        raise Invalid(f"{value!r} is out of range", "durations go from 0s to 366d")
    return seconds


def positive_duration(value: object) -> float:
    """A duration that is not zero."""
    seconds = duration(value)
    if seconds == 0:
        raise Invalid(f"{value!r} would expire at once", "write a duration above zero")
    return seconds


def optional_duration(value: object) -> float | None:
    """A duration above zero; ``"none"`` and null mean no limit."""
    if value is None or value == "none":
        return None
    try:
        return positive_duration(value)
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}, or none for no limit") from None


def size(value: object) -> int:
    """``"64KiB"`` → 65536. Whole numbers are bytes. Never zero."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise Invalid(f"{value!r} is not a size", _SIZE_HINT)
        count = int(match[1]) * _SIZE_BYTES[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        raise Invalid(f"{_kind(value)} is not a size", _SIZE_HINT)
    if not 1 <= count <= _LARGEST_BYTES:
        raise Invalid(f"{value!r} is out of range", "sizes go from 1 byte to 1024GiB")
    return count


def optional_size(value: object) -> int | None:
    """A size; ``off`` (which YAML reads as false) and null mean none."""
    if value is None or value is False or value == "off":
        return None
    try:
        return size(value)
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}, or off") from None


def format_duration(seconds: float | None) -> str:
    """The shortest text that ``optional_duration`` reads back as the same number of milliseconds."""
    if seconds is None:
        return "none"
    milliseconds = round(seconds * 1000)
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def format_size(count: int) -> str:
    """The shortest text that ``size`` reads back as exactly ``count``."""
    for unit in ("GiB", "MiB", "KiB"):
        if count % _SIZE_BYTES[unit] == 0:
            return f"{count // _SIZE_BYTES[unit]}{unit}"
    return f"{count}B"


# Addresses and networks

_HOSTNAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?", re.ASCII)
_ADDRESS_HINT = 'write HOST:PORT, for example 127.0.0.1:8080, :8080 (all IPv4 interfaces) or "[::1]:8080"'


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. ``host`` is never empty and has no brackets; port 0: the system chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Every interface of this machine."""
        return self.host in ("0.0.0.0", "::")

    def collides_with(self, other: Address) -> bool:
        """Both cannot be listened on at once."""
        same_port = self.port == other.port != 0
        return same_port and (self.host == other.host or self.is_wildcard or other.is_wildcard)


def address(value: object) -> Address:
    """``HOST:PORT``, ``[V6]:PORT`` or ``:PORT``."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise Invalid(f"{_kind(value)} is not an address", _ADDRESS_HINT)
    host, colon, port = value.rpartition(":")
    if not colon:
        raise Invalid(f"{value!r} has no port", _ADDRESS_HINT)
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        host = host[1:-1]
    elif host and not _HOSTNAME.fullmatch(host):
        raise Invalid(f"{value!r} is not an address", _ADDRESS_HINT)
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Invalid(f"{port!r} is not a port", "ports go from 0 (the system chooses) to 65535")
    return Address(host or "0.0.0.0", int(port))


def optional_address(value: object) -> Address | None:
    """An address; ``off`` (which YAML reads as false) and null mean no listener."""
    if value is None or value is False or value == "off":
        return None
    try:
        return address(value)
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}, or off") from None


def network(value: object) -> Network:
    """An address range in CIDR notation, or one address."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    if not isinstance(value, str):
        raise Invalid(f"{_kind(value)} is not a network", "write a range such as 10.0.0.0/8")
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise Invalid(
            f"{value!r} is not a network", "write a range such as 10.0.0.0/8, or one address"
        ) from None
    raise Invalid(f"{value!r} has bits set behind its prefix", f"did you mean {str(loose)!r}?")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


# URLs and paths


SESSION_KEY_VARIABLE = "MCP_PROXY_SESSION_KEY"

SESSION_KEY_CHARS = 32
"""Of any secret that is a key. Key derivation makes guessing slow, not impossible."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
"""A header name (RFC 9110 section 5.6.2)."""


class DefaultedUrl(str):
    """A backend URL that was written without a path and got ``DEFAULT_PATH``."""

    __slots__ = ()


class LiteralUrl(str):
    """A URL with a password that stood in the configuration itself."""

    __slots__ = ()


_URL_TEXT = re.compile(r"[!-~]+")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def backend_url(value: object) -> str:
    """``http(s)://host[:port]/path``, host in lower case. Without a path: ``DefaultedUrl``."""
    parts = _split_url(value, "http://localhost:3000/mcp")
    if parts.path:
        return _join(parts, parts.path)
    return DefaultedUrl(_join(parts, DEFAULT_PATH))


def backend_identity(url: str) -> tuple[str, str, int, str]:
    """What makes two accepted backend URLs the same backend."""
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return parts.scheme, parts.hostname or "", port, parts.path


def external_url(value: object) -> str:
    """What clients see: scheme, host and perhaps a path prefix; never ends in a slash."""
    parts = _split_url(value, "https://mcp.example.com")
    return _join(parts, parts.path.rstrip("/"))


def egress_proxy_url(value: str) -> str:
    """``http(s)://[user:password@]host[:port]`` of a forward proxy."""
    parts = _split_url(value, "http://proxy.example.com:3128", userinfo=True)
    if parts.path not in ("", "/"):
        raise Invalid("the URL of an egress proxy has no path", "write http://proxy.example.com:3128")
    return value.rstrip("/")


def route_path(value: object) -> str:
    """The path that clients ask for; compared byte for byte, so only one spelling is accepted."""
    if not isinstance(value, str):
        raise Invalid(f"{_kind(value)} is not a path", "write a path such as /mcp")
    if not value.startswith("/"):
        raise Invalid(f"{value!r} is not a path", f"paths begin with a slash: {'/' + value!r}")
    if not _PATH.fullmatch(value):
        raise Invalid(
            f"{value!r} has characters that a path cannot have here",
            "use letters, digits and -._~ without query, fragment or %-escapes",
        )
    if any(segment in ("", ".", "..") for segment in value[1:].split("/")[:-1]) or value.endswith(
        ("/.", "/..")
    ):
        raise Invalid(
            f"{value!r} has empty or dot segments, clients would never ask for it", "write it resolved"
        )
    return value


def session_key(value: str) -> str:
    """A secret that session ids are sealed with. Raises Invalid when it is short enough to be guessed."""
    if len(value) < SESSION_KEY_CHARS:
        raise Invalid(
            f"the session key has {len(value)} characters, which is too few",
            f"use {SESSION_KEY_CHARS} or more that nobody can guess: openssl rand -base64 32",
        )
    return value


def affinity_key(value: object) -> str:
    """``principal``, ``client`` or ``header:name`` (the name in lower case)."""
    if isinstance(value, str):
        word, colon, name = value.partition(":")
        if (word in ("principal", "client") and not colon) or (word == "header" and _TOKEN.fullmatch(name)):
            return value.lower()
    raise Invalid(
        f"{_shown(value) if isinstance(value, str) else _kind(value)} is not a key of affinity",
        "write principal, client, or header: and the name of a header, such as header:x-tenant",
    )


def _split_url(value: object, example: str, *, userinfo: bool = False) -> SplitResult:
    if not isinstance(value, str):
        raise Invalid(f"{_kind(value)} is not a URL", f"write {example}")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise Invalid("this is not a URL: host or port cannot be read", f"write {example}") from None
    if "@" in parts.netloc and not userinfo:
        raise Invalid(
            "the URL holds a user or password",
            "remove it; a pool in a file has credentials: {authorization: env:NAME}",
        )
    if "://" not in value or parts.scheme not in _DEFAULT_PORTS:
        raise Invalid(f"{_shown(value)} does not begin with http:// or https://", f"write {example}")
    if not parts.hostname:
        raise Invalid(f"{_shown(value)} has no host", f"write {example}")
    if not _URL_TEXT.fullmatch(value) or not _is_host(parts.hostname) or port == 0:
        raise Invalid(
            f"{_shown(value)} has a host, port or characters that a URL cannot have", f"write {example}"
        )
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise Invalid(
            "the URL has a query or a fragment", "end it at the path: clients' queries are forwarded"
        )
    return parts


def _join(parts: SplitResult, path: str) -> str:
    host = parts.hostname or ""
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{path}"


def _is_host(host: str) -> bool:
    return _HOSTNAME.fullmatch(host) is not None or _is_ipv6(host)


def _shown(value: str) -> str:
    """``value`` for a message, unless something in it may be a password."""
    return "the URL" if "@" in value or len(value) > 200 else repr(value)


def _kind(value: object) -> str:
    names: dict[type, str] = {bool: "true/false", int: "a number", float: "a number", str: "text"}
    if value is None:
        return "an empty value"
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else "a mapping")
