"""The kinds of values that the models are made of: reader, JSON schema and writer of each.

Rules of this file: a kind reads what a user writes and also what it has read before, so that a
Config can be built in Python as well as from a file; its schema describes what a user writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from mcp_proxy.config import addresses, amounts, files, values
from mcp_proxy.config.addresses import Address, Network
from mcp_proxy.config.problems import Files
from mcp_proxy.config.redis_url import parse_url
from mcp_proxy.config.secret import FILE, MASK, Secret, read_secret
from mcp_proxy.config.values import Invalid


def _environ(info: ValidationInfo) -> Mapping[str, str]:
    context: Mapping[str, Any] = info.context or {}
    environ: Mapping[str, str] = context.get("environ", os.environ)
    return environ


def _with_unit(value: object, info: ValidationInfo) -> object:
    """In a file a bare number could be milliseconds or seconds: the writer must say."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and info.context is not None:
        raise Invalid(f"{value} has no unit", f"write {value}s for seconds, {value}ms for milliseconds")
    return value


def _seen(path: Path, info: ValidationInfo) -> None:
    """Tells the loader about a file before it is opened: what changes from then on is news."""
    seen: Files | None = (info.context or {}).get("seen")
    if seen is not None:
        seen.setdefault(path, files.signature(path))


def _readable(value: object, info: ValidationInfo) -> Path:
    path = files.named(value)
    _seen(path, info)
    return files.readable(path)


def _fraction(value: object, info: ValidationInfo) -> object:
    """In a file 1 could be one percent or all: the writer must say."""
    if isinstance(value, int | float) and not isinstance(value, bool) and info.context is not None:
        raise Invalid(f"{value} is not a share", "write a percentage from 0% to 100%, such as 50%")
    return value


def _secret(value: object, info: ValidationInfo) -> Secret:
    if isinstance(value, str) and value.startswith(FILE):
        _seen(Path(value.removeprefix(FILE)), info)
    return read_secret(value, _environ(info))


def _proxy_url(value: object, info: ValidationInfo) -> str:
    secret = _secret(value, info)
    url = addresses.egress_proxy_url(secret.value)
    return addresses.LiteralUrl(url) if secret.is_literal and "@" in url else url


def _registry_url(value: object, info: ValidationInfo) -> str:
    secret = _secret(value, info)
    parse_url(secret.value)
    return addresses.LiteralUrl(secret.value) if secret.is_literal and "@" in secret.value else secret.value


def _session_key(value: object, info: ValidationInfo) -> Secret:
    secret = _secret(value, info)
    values.session_key(secret.value)
    return secret


def _off_word(value: object) -> object:
    """YAML 1.1 reads a bare ``off`` as false."""
    return "off" if value is False else value


def off_is_none(value: object) -> object:
    """For sections that can be left out by a word."""
    return None if value is False or value in ("off", "none") else value


def _text_schema(description: str, pattern: str | None = None) -> WithJsonSchema:
    schema = {"type": "string", "description": description}
    return WithJsonSchema(schema if pattern is None else schema | {"pattern": pattern})


_DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
_DURATION_TEXT = "a duration such as 500ms, 5s, 10m, 2h"

Duration = Annotated[
    float,
    PlainValidator(amounts.positive_duration),
    BeforeValidator(_with_unit),
    _text_schema(_DURATION_TEXT, _DURATION_PATTERN),
]
Delay = Annotated[
    float,
    PlainValidator(amounts.duration),
    BeforeValidator(_with_unit),
    _text_schema(f"{_DURATION_TEXT}; 0s is possible", _DURATION_PATTERN),
]
OptionalDuration = Annotated[
    float | None,
    PlainValidator(amounts.optional_duration),
    BeforeValidator(_with_unit),
    WithJsonSchema(
        {
            "description": f"{_DURATION_TEXT}, or none for no limit",
            "anyOf": [{"type": "string", "pattern": _DURATION_PATTERN}, {"const": "none"}, {"type": "null"}],
        }
    ),
]
Size = Annotated[
    int,
    PlainValidator(amounts.size),
    WithJsonSchema(
        {
            "description": "bytes, or a size such as 64KiB, 4MiB",
            "anyOf": [
                {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)?$"},
                {"type": "integer", "minimum": 1},
            ],
        }
    ),
]
Listen = Annotated[
    Address,
    PlainValidator(addresses.address),
    PlainSerializer(str),
    _text_schema("HOST:PORT, [V6]:PORT or :PORT (all IPv4 interfaces); port 0: the system chooses"),
]
OptionalListen = Annotated[
    Address | None,
    PlainValidator(addresses.optional_address),
    PlainSerializer(lambda address: "off" if address is None else str(address)),
    WithJsonSchema({"description": "HOST:PORT, or off", "anyOf": [{"type": "string"}, {"const": False}]}),
]
HeaderName = Annotated[str, PlainValidator(values.header_name), _text_schema("the name of a header")]
SecretText = Annotated[
    Secret,
    PlainValidator(_secret),
    PlainSerializer(lambda _: MASK),
    _text_schema("env:NAME, file:PATH, or the secret itself (check warns)"),
]
TrustedNetwork = Annotated[
    Network,
    PlainValidator(addresses.network),
    PlainSerializer(str),
    _text_schema("a network such as 10.0.0.0/8, or one address"),
]
BackendUrl = Annotated[
    str,
    PlainValidator(addresses.backend_url),
    _text_schema(
        f"http(s)://host[:port]/path; without a path {addresses.DEFAULT_PATH} is used", "^https?://"
    ),
]
ExternalUrl = Annotated[
    str, PlainValidator(addresses.external_url), _text_schema("http(s)://host[/prefix]", "^https?://")
]
CollectorUrl = Annotated[
    str,
    PlainValidator(addresses.collector_url),
    _text_schema(f"http(s)://host[:port]; without a path {addresses.COLLECTOR_PATH} is used", "^https?://"),
]
RoutePath = Annotated[
    str, PlainValidator(addresses.route_path), _text_schema("path that clients ask for", "^/")
]
PemFile = Annotated[Path, PlainValidator(_readable), _text_schema("a file in PEM format")]
AuthorityFile = Annotated[
    Path,
    PlainValidator(_readable),
    AfterValidator(files.check_authority),
    _text_schema("certificates in PEM"),
]
LogFile = Annotated[Path, PlainValidator(files.writable), _text_schema("a file in a directory that exists")]
Count = Annotated[int, Field(strict=True, ge=1)]
Weight = Annotated[int, Field(strict=True, ge=1, le=amounts.WEIGHT_LIMIT)]
OptionalCount = Annotated[
    int | None,
    PlainValidator(amounts.optional_count),
    WithJsonSchema(
        {
            "description": "a whole number, or none",
            "anyOf": [{"type": "integer", "minimum": 1}, {"const": "none"}, {"type": "null"}],
        }
    ),
]
Share = Annotated[
    float,
    PlainValidator(amounts.share),
    BeforeValidator(_fraction),
    PlainSerializer(lambda share: f"{share:.0%}"),
    _text_schema("a percentage, such as 50%", "^[0-9]{1,3}%$"),
]
Ratio = Annotated[
    float,
    PlainValidator(amounts.ratio),
    WithJsonSchema({"description": "from 0.0 to 1.0", "type": "number", "minimum": 0, "maximum": 1}),
]
ServiceName = Annotated[str, PlainValidator(values.service_name), _text_schema("a name without spaces")]
CheckKind = Annotated[
    str, PlainValidator(addresses.check_kind), _text_schema("tcp, discover or a path", "^(tcp|discover|/.+)$")
]
DiscoveryName = Annotated[str, PlainValidator(addresses.discovery_name), _text_schema("a DNS name")]
PortReference = Annotated[
    int | str,
    PlainValidator(addresses.port_reference),
    WithJsonSchema(
        {
            "description": "number of a port, or with kubernetes its name",
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string"}],
        }
    ),
]
Flag = Annotated[bool, Field(strict=True)]
Switch = Annotated[Literal["json", "off"], BeforeValidator(_off_word)]
ProxyUrl = Annotated[
    str,
    PlainValidator(_proxy_url),
    PlainSerializer(lambda _: MASK),
    _text_schema("URL of an egress proxy, or env:NAME or file:PATH when it holds a password"),
]
RegistryUrl = Annotated[
    str,
    PlainValidator(_registry_url),
    PlainSerializer(lambda url: parse_url(url).redacted),
    _text_schema(
        "redis://, rediss://, unix://, redis+sentinel://host1,host2/service/db "
        "or redis+cluster://host1,host2; env:NAME or file:PATH when it holds a password"
    ),
]
SessionKeyText = Annotated[
    Secret,
    PlainValidator(_session_key),
    PlainSerializer(lambda _: MASK),
    _text_schema(f"env:NAME or file:PATH; at least {values.SESSION_KEY_CHARS} characters"),
]
SessionStore = Annotated[
    Literal["memory", "redis", "signed"],
    WithJsonSchema(
        {
            "description": "memory, redis, signed, or the URL of a Redis",
            "anyOf": [
                {"enum": ["memory", "redis", "signed"]},
                {"type": "string", "pattern": "^(rediss?(\\+sentinel|\\+cluster)?|unix)://"},
            ],
        }
    ),
]
AffinityKey = Annotated[
    str,
    PlainValidator(values.affinity_key),
    _text_schema("principal, client or header:NAME", "^(principal|client|header:.+)$"),
]
OptionalSize = Annotated[
    int | None,
    PlainValidator(amounts.optional_size),
    WithJsonSchema(
        {
            "description": "bytes, or a size such as 64KiB; off: none",
            "anyOf": [
                {"type": "string", "pattern": "^([0-9]+(B|KiB|MiB|GiB)?|off)$"},
                {"type": "integer", "minimum": 1},
                {"const": False},
                {"type": "null"},
            ],
        }
    ),
]
