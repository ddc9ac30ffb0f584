"""The models: the defaults of the Contract, frozen values, secrets that stay hidden, a true schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mcp_proxy.config import Address, BackendConfig, Config, PoolConfig, RouteConfig, Secret, load

POOLS = {"a": {"backends": ["http://a/mcp"]}}

EVERYTHING = """
listen: 127.0.0.1:8080
admin: {listen: 127.0.0.1:9901, token: env:ADMIN_TOKEN}
external_url: https://mcp.example.com
trusted_proxies: [127.0.0.0/8]
workers: 1
sessions: {store: memory, ttl: 2h}
limits: {body: 4MiB, head: 32KiB, header_fields: 100, json_hold: 1048576, streams: 10000, head_timeout: 10s,
         drain: 30s}
pools:
  weather:
    backends: [http://10.0.0.11:8000/mcp, {url: http://10.0.0.12:8000/mcp, weight: 2}]
    balance: least_sessions
    on_backend_loss: end
    lost_after: 10s
    transport: httpx
    timeouts: {connect: 2s, response_head: none, idle: 1.5s}
    credentials: {authorization: env:WEATHER_TOKEN}
    proxy: http://proxy.example.com:3128
    http2: true
routes:
  - {path: /weather/mcp, pool: weather}
telemetry: {access_log: off, metrics: true}
"""


def test_defaults_are_those_of_the_contract() -> None:
    config = Config.model_validate({"pools": POOLS})
    pool = config.pools["a"]

    assert (str(config.listen), str(config.admin.listen)) == ("127.0.0.1:8080", "127.0.0.1:9901")
    assert (config.workers, config.sessions.store, config.sessions.ttl) == (1, "memory", 7200.0)
    assert config.limits.model_dump() == {
        "body": 4 << 20, "head": 32 << 10, "header_fields": 100, "json_hold": 1 << 20, "streams": 10_000,
        "head_timeout": 10.0, "drain": 30.0,
    }  # fmt: skip
    assert pool.timeouts.model_dump() == {"connect": 2.0, "response_head": None, "idle": None}
    assert (pool.balance, pool.on_backend_loss, pool.lost_after) == ("least_sessions", "end", 10.0)
    assert (pool.transport, pool.http2, pool.proxy, pool.tls) == ("http11", False, None, None)
    assert pool.credentials.authorization is None
    assert config.telemetry.model_dump() == {"access_log": "json", "access_log_file": None, "metrics": True}
    assert (config.tls, config.external_url, config.trusted_proxies) == (None, None, ())


def test_one_pool_without_routes_is_reached_at_mcp() -> None:
    assert Config.model_validate({"pools": POOLS}).routes == (RouteConfig(path="/mcp", pool="a"),)


def test_every_key_of_this_version_is_read(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(EVERYTHING)

    config = load(file, {"ADMIN_TOKEN": "t", "WEATHER_TOKEN": "Bearer w"}, {})

    pool = config.pools["weather"]
    assert pool.backends == (
        BackendConfig(url="http://10.0.0.11:8000/mcp"),
        BackendConfig(url="http://10.0.0.12:8000/mcp", weight=2),
    )
    assert pool.credentials.authorization == Secret("Bearer w")
    assert (pool.timeouts.idle, pool.timeouts.response_head) == (1.5, None)
    assert config.telemetry.access_log == "off"
    assert str(config.trusted_proxies[0]) == "127.0.0.0/8"


def test_the_schema_accepts_what_the_loader_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Config.model_json_schema()
    document = yaml.safe_load(EVERYTHING)
    document["telemetry"]["access_log"] = "off"  # YAML 1.2, which editors use, reads it as text.

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"limts": {}}, schema)


def test_the_schema_shows_defaults_as_a_user_writes_them() -> None:
    limits = Config.model_json_schema()["$defs"]["Limits"]["properties"]

    assert limits["body"]["default"] == "4MiB"
    assert limits["head_timeout"]["default"] == "10s"
    assert limits["body"]["description"]


def test_a_configuration_built_in_python_is_checked_like_one_from_a_file() -> None:
    pool = PoolConfig.model_validate({"backends": ["http://a/mcp"]})

    with pytest.raises(ValidationError, match="there is no pool 'b'"):
        Config(pools={"a": pool}, routes=(RouteConfig(path="/mcp", pool="b"),))
    assert Config(pools={"a": pool}, listen=Address("127.0.0.1", 0)).listen.port == 0


def test_nothing_can_be_changed_afterwards() -> None:
    config = Config.model_validate({"pools": POOLS})

    with pytest.raises(ValidationError, match="frozen"):
        config.workers = 2


def test_no_way_of_showing_a_configuration_shows_its_secrets() -> None:
    pool = {
        "backends": ["http://a/mcp"],
        "credentials": {"authorization": "hunter2"},
        "transport": "httpx",
        "proxy": "http://u:hunter2@proxy:3128",
    }
    config = Config.model_validate({"pools": {"a": pool}, "admin": {"token": "hunter2"}})

    assert config.admin.token is not None
    assert config.admin.token.value == "hunter2"
    for shown in (repr(config), str(config), config.model_dump_json(), repr(config.admin.token)):
        assert "hunter2" not in shown
        assert "redacted" in shown
    assert json.loads(config.model_dump_json())["listen"] == "127.0.0.1:8080"


def test_values_that_were_read_before_are_accepted_again(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "pools": POOLS,
            "admin": {"token": "t"},
            "trusted_proxies": ["10.0.0.0/8"],
            "telemetry": {"access_log_file": str(tmp_path / "access.log")},
        }
    )

    assert Config.model_validate(config.model_dump(mode="python") | dict(config)) == config
