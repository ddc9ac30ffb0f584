"""The configuration as operators see it: everything is there but the secrets, of whatever kind of key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mcp_proxy.config import Config

SECRET = "planted-secret-of-32-characters-x"
URL = "http://10.0.0.11:8000/mcp"

PLANTED: dict[str, Any] = {
    "admin": {"token": SECRET, "metrics_token": SECRET + "-too"},
    "sessions": {
        "store": "signed",
        "url": f"redis://:{SECRET}@redis.example:6379/0",
        "keys": [SECRET, SECRET + "2"],
    },
    "pools": {
        "a": {
            "backends": [URL],
            "transport": "httpx",
            "credentials": {"authorization": f"Bearer {SECRET}"},
            "proxy": f"http://user:{SECRET}@egress.example:3128",
        }
    },
    "limits": {"drain": "7s"},
    "telemetry": {"traces": {"endpoint": "http://collector.example", "headers": {"x-key": SECRET}}},
}


def secret_keys(schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the keys that can be read from ``env:``: what is worth that is worth hiding."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "env:" in schema.get("description", "") and schema.get("type") == "string":
        yield path
    for each in schema.get("anyOf", []):
        yield from secret_keys(each, root, path)
    for name, each in schema.get("properties", {}).items():
        yield from secret_keys(each, root, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from secret_keys(schema[name], root, path)


def keys_with_secrets(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from keys_with_secrets(each, f"{path}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from keys_with_secrets(each, path)
    elif isinstance(value, str) and SECRET in value:
        yield path


def test_a_secret_is_planted_in_every_key_that_can_hold_one() -> None:
    schema = Config.model_json_schema()

    traces = PLANTED["telemetry"]["traces"]
    named = {"pools": PLANTED["pools"], "telemetry": {"traces": traces | {"headers": [SECRET]}}}
    planted = PLANTED | named | {"pools": list(PLANTED["pools"].values())}

    # A change of this set needs a new kind of key in PLANTED.
    assert set(secret_keys(schema, schema)) == set(keys_with_secrets(planted))


def test_no_secret_is_shown_and_everything_else_is() -> None:
    dumped = Config(**PLANTED).model_dump(mode="json", by_alias=True)
    text = json.dumps(dumped)

    assert SECRET not in text
    assert "redis.example:6379" in text
    assert dumped["telemetry"]["traces"]["headers"] == {"x-key": "[redacted]"}
    assert dumped["limits"]["drain"] == 7.0
    assert dumped["pools"]["a"]["backends"][0]["url"] == URL
    assert dumped["pools"]["a"]["health"]["eject"]["for"] == 30.0, "named as in the file"
    assert dumped["admin"] == {
        "listen": "127.0.0.1:9901",
        "token": "[redacted]",
        "metrics_token": "[redacted]",
    }
