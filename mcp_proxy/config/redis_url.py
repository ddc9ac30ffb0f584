"""Where the Redis of the session registry is: one URL in, one record out.

Rules of this file: pure functions, no I/O, and redis is not imported. A URL may hold passwords, so
no message repeats any part of it but the names of its parameters and its scheme; ``redacted`` is
the only form for logs and people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote

from mcp_proxy.config.values import Invalid, did_you_mean

Kind = Literal["server", "sentinel", "cluster"]

SCHEMES: Final[Mapping[str, tuple[Kind, bool]]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
"""What a scheme means: the kind of set-up, and whether TLS is spoken."""

_DEFAULT_PORT: Final[Mapping[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS: Final = frozenset(
    ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_ciphers")
)
_TLS_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "ssl_cert_reqs": frozenset(("none", "optional", "required")),
    "ssl_check_hostname": frozenset(("true", "false")),
}
_SENTINEL_OPTIONS: Final = frozenset(("sentinel_username", "sentinel_password"))
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\]", re.ASCII)
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_HIGHEST_DB: Final = 1 << 15
"""Redis has 16 unless told otherwise; above this a number is a typing error."""
_EXAMPLE = "write redis://HOST:6379/0, redis+sentinel://HOST1,HOST2/SERVICE/0 or redis+cluster://HOST1,HOST2"
_ENCODE = "percent-encode special characters of the user name and password: @ is %40, / is %2F, # is %23"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says. Which fields hold something depends on ``kind``; a Unix socket is a
    ``server`` with a ``path`` and without ``hosts``."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    """Of the server, the sentinels or some nodes of the cluster. IPv6 without brackets."""
    path: str = ""
    service: str = ""
    db: int = 0
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)
    """``ssl_*`` and ``sentinel_*``, under the names that redis-py has for them."""

    @property
    def redacted(self) -> str:
        """For people: scheme, hosts, service and database; no user, password or parameter."""
        if self.path:
            return f"unix://{self.path}"
        scheme = "rediss" if self.tls else "redis"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        if self.kind == "sentinel":
            return f"{scheme}+sentinel://{hosts}/{self.service}/{self.db}"
        if self.kind == "cluster":
            return f"{scheme}+cluster://{hosts}"
        return f"{scheme}://{hosts}/{self.db}"


def parse_url(text: str) -> RedisUrl:
    """Read a URL; raises ValueError with a sentence that names cause and cure."""
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES) if separator and len(scheme) < 20 else _EXAMPLE
        raise Invalid("the Redis URL has no scheme that is known here", hint)
    kind, tls = SCHEMES[scheme]
    parts = _split(text)
    if parts.fragment or "@" in parts.path or "@" in parts.query or any(c.isspace() for c in text):
        raise Invalid("the Redis URL holds characters that have no place there", _ENCODE)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options, db = _options(parts.query, kind, tls)
    common = {"username": unquote(username), "password": unquote(password), "options": options}
    if scheme == "unix":
        if hosts or not parts.path.strip("/"):
            raise Invalid("the Redis URL names no socket", "write unix:///path/to/redis.sock?db=0")
        return RedisUrl("server", False, (), path=unquote(parts.path), db=db or 0, **common)  # type: ignore[arg-type]
    service, path_db = _path(parts, kind)
    if db is not None and path_db is not None:
        raise Invalid("the Redis URL names the database twice", "write it in the path alone")
    return RedisUrl(
        kind,
        tls,
        _hosts(hosts, kind),
        service=service,
        db=db or path_db or 0,
        **common,  # type: ignore[arg-type]
    )


def _split(text: str) -> SplitResult:
    """RFC 3986 section 3 and no more: urlsplit refuses lists of hosts with IPv6 addresses, depending on
    the version of Python."""
    scheme, _, rest = text.partition("://")
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    netloc, slash, path = rest.partition("/")
    return SplitResult(scheme, netloc, slash + path, query, fragment)


def redacted(text: str) -> str:
    """What may be shown of a URL, also of one that cannot be read."""
    try:
        return parse_url(text).redacted
    except ValueError:
        return f"{scheme}://..." if (scheme := text.partition("://")[0]) in SCHEMES else "..."


def _hosts(text: str, kind: Kind) -> tuple[tuple[str, int], ...]:
    pieces = text.split(",")
    if kind == "server" and len(pieces) > 1:
        raise Invalid("a single Redis server has one host", "several hosts: redis+sentinel or redis+cluster")
    return tuple(_host(piece, _DEFAULT_PORT[kind]) for piece in pieces)


def _host(text: str, default_port: int) -> tuple[str, int]:
    """The host or the port may be half of a password that was not encoded: neither is repeated."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default_port)
    if not _HOST.fullmatch(host):
        raise Invalid("the Redis URL has no host, or one that cannot be a host", f"{_EXAMPLE}; {_ENCODE}")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise Invalid("the Redis URL has a port that is not a number from 1 to 65535", _ENCODE)
    return host.strip("[]"), int(port)


def _path(parts: SplitResult, kind: Kind) -> tuple[str, int | None]:
    """Service and database. An absent database is None."""
    path = parts.path.removeprefix("/").removesuffix("/")
    pieces = path.split("/") if path else []
    service = ""
    if kind == "sentinel":
        service = unquote(pieces.pop(0)) if pieces else ""
        if not _SERVICE.fullmatch(service):
            raise Invalid(
                "a Sentinel URL names the service",
                "write redis+sentinel://HOST1,HOST2/SERVICE/0, as in sentinel.conf",
            )
    if len(pieces) > 1:
        raise Invalid("the path of the Redis URL has too many parts", _EXAMPLE)
    db = _database(pieces[0]) if pieces else None
    if kind == "cluster" and db:
        raise Invalid("a Redis Cluster has database 0 only", "leave the path away")
    return service, db


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) >= _HIGHEST_DB:
        raise Invalid(
            "the database of the Redis URL is not a number", "write it as the last part: redis://HOST:6379/0"
        )
    return int(text)


def _options(query: str, kind: Kind, tls: bool) -> tuple[dict[str, str | bool], int | None]:
    """The parameters, and the database if it is among them."""
    known = {"db"} if kind != "cluster" else set()
    known |= _TLS_OPTIONS | set(_TLS_WORDS) if tls else set()
    known |= _SENTINEL_OPTIONS if kind == "sentinel" else set()
    options: dict[str, str | bool] = {}
    db: int | None = None
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            if not tls and name.startswith("ssl_"):
                raise Invalid(
                    "the Redis URL sets up TLS but does not use it", "write rediss instead of redis"
                )
            raise Invalid(
                "the Redis URL has a parameter that is not known here", f"known: {', '.join(sorted(known))}"
            )
        if name in options or (name == "db" and db is not None):
            raise Invalid(f"the Redis URL has {name} twice", "keep one")
        if name == "db":
            db = _database(value)
        elif name in _TLS_WORDS and value.lower() not in _TLS_WORDS[name]:
            raise Invalid(
                f"{name} of the Redis URL is none of its values", ", ".join(sorted(_TLS_WORDS[name]))
            )
        elif name == "ssl_check_hostname":
            options[name] = value.lower() == "true"
        else:
            options[name] = value.lower() if name in _TLS_WORDS else value
    return options, db
