"""Where something is: addresses, networks, names, ports, paths and URLs.

Rules of this file: those of ``values.py``. Names are never looked up.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from mcp_proxy.config.values import Invalid, kind_of, shown

DEFAULT_PATH = "/mcp"
"""Path of a backend URL without one, and of the route nobody wrote down."""

COLLECTOR_PATH = "/v1/traces"
"""Where a collector takes spans over HTTP."""

_COLLECTOR = "http://localhost:4318"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

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
        raise Invalid(f"{kind_of(value)} is not an address", _ADDRESS_HINT)
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
        raise Invalid(f"{kind_of(value)} is not a network", "write a range such as 10.0.0.0/8")
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


# Names and ports of discovery

_DISCOVERY_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_.])?", re.ASCII | re.IGNORECASE)


def discovery_name(value: object) -> str:
    """A name for DNS or Kubernetes."""
    if not isinstance(value, str) or not _DISCOVERY_NAME.fullmatch(value) or ".." in value:
        raise Invalid(f"{value!r} is not a DNS name", "write it like weather.mcp.svc.cluster.local")
    return value


_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?", re.ASCII)


def port_reference(value: object) -> int | str:
    """A number, or the name of a port of a Kubernetes Service."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    if isinstance(value, str) and _PORT_NAME.fullmatch(value):
        return value
    raise Invalid(f"{value!r} is not a port", "write a number from 1 to 65535, or the name of a port")


# URLs and paths


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


def collector_url(value: object) -> str:
    """Where spans are sent: a URL without a path gets that of the protocol, as OTLP says for a base URL."""
    if isinstance(value, str) and ("?" in value or "#" in value):
        raise Invalid("the URL has a query or a fragment", "end it at the path")
    parts = _split_url(value, _COLLECTOR, userinfo=True)
    if "@" in parts.netloc:
        raise Invalid("the URL holds a user or password", "write headers: {authorization: env:NAME}")
    return _join(parts, COLLECTOR_PATH if parts.path in ("", "/") else parts.path)


def route_path(value: object) -> str:
    """The path that clients ask for; compared byte for byte, so only one spelling is accepted."""
    if not isinstance(value, str):
        raise Invalid(f"{kind_of(value)} is not a path", "write a path such as /mcp")
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


def check_kind(value: object) -> str:
    """``tcp``, ``discover`` or the path of a side endpoint."""
    if value in ("tcp", "discover"):
        return str(value)
    if isinstance(value, str) and value.startswith("/"):
        return route_path(value)
    raise Invalid(f"{value!r} is not a check", "write tcp, discover, or a path such as /healthz")


def _split_url(value: object, example: str, *, userinfo: bool = False) -> SplitResult:
    if not isinstance(value, str):
        raise Invalid(f"{kind_of(value)} is not a URL", f"write {example}")
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
        raise Invalid(f"{shown(value)} does not begin with http:// or https://", f"write {example}")
    if not parts.hostname:
        raise Invalid(f"{shown(value)} has no host", f"write {example}")
    if not _URL_TEXT.fullmatch(value) or not _is_host(parts.hostname) or port == 0:
        raise Invalid(
            f"{shown(value)} has a host, port or characters that a URL cannot have", f"write {example}"
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
