"""The models: the defaults of the Contract, frozen values, secrets that stay hidden, a true schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mcp_proxy.config import (
    ActiveConfig,
    Address,
    AddressLimits,
    BackendConfig,
    Config,
    DiscoverConfig,
    EjectConfig,
    PoolConfig,
    RouteConfig,
    Secret,
    TracesConfig,
    load,
)

POOLS = {"a": {"backends": ["http://a/mcp"]}}

EVERYTHING = """
listen: 127.0.0.1:8080
admin: {listen: 127.0.0.1:9901, token: env:ADMIN_TOKEN}
external_url: https://mcp.example.com
trusted_proxies: [127.0.0.0/8]
workers: 1
sessions: {store: memory, ttl: 2h}
limits: {body: 4MiB, head: 32KiB, header_fields: 100, json_hold: 1048576, streams: 10000, requests: 5000,
         per_client: {streams: 10, requests: none, connections: 20}, per_principal: {requests: 5},
         memory: 512MiB, head_timeout: 10s, drain: 30s, drain_delay: 0s}
pools:
  weather:
    backends: [http://10.0.0.11:8000/mcp, {url: http://10.0.0.12:8000/mcp, weight: 2}]
    balance: least_sessions
    slow_start: 30s
    era: probe
    health:
      active: {check: /healthz, every: 5s, timeout: 2s, fall: 3, rise: 2}
      eject: {after: 5, for: 30s, at_most: 50%}
    drain: 5m
    on_backend_loss: end
    lost_after: 10s
    transport: httpx
    timeouts: {connect: 2s, response_head: none, idle: 1.5s}
    credentials: {authorization: env:WEATHER_TOKEN}
    proxy: http://proxy.example.com:3128
    http2: true
  found:
    discover: {dns: weather-headless.mcp.svc.cluster.local, port: 8000, path: /mcp, tls: false, every: 5s}
    balance: hash
    affinity: {key: client, tap: off}
    health: {active: off, eject: off}
routes:
  - {path: /weather/mcp, pool: weather}
  - {path: /found/mcp, pool: found}
telemetry:
  access_log: off
  metrics: true
  traces: {endpoint: http://10.0.0.5:4318, sample: 0.01, headers: {x-key: env:TRACES_KEY}, timeout: 5s,
           service_name: mcp}
"""


def test_defaults_are_those_of_the_contract() -> None:
    config = Config.model_validate({"pools": POOLS})
    pool = config.pools["a"]

    assert (str(config.listen), str(config.admin.listen)) == ("127.0.0.1:8080", "127.0.0.1:9901")
    assert (config.workers, config.sessions.store, config.sessions.ttl) == (1, "memory", 7200.0)
    assert config.limits.model_dump() == {
        "body": 4 << 20, "head": 32 << 10, "header_fields": 100, "json_hold": 1 << 20, "streams": 10_000,
        "requests": 10_000, "per_client": {"streams": None, "requests": None, "connections": None},
        "per_principal": {"streams": None, "requests": None}, "memory": None, "head_timeout": 10.0,
        "drain": 30.0, "drain_delay": 0.0,
    }  # fmt: skip
    assert pool.timeouts.model_dump() == {"connect": 2.0, "response_head": None, "idle": None}
    assert (pool.balance, pool.on_backend_loss, pool.lost_after) == ("least_sessions", "end", 10.0)
    assert (pool.transport, pool.http2, pool.proxy, pool.tls) == ("http11", False, None, None)
    assert (pool.discover, pool.slow_start, pool.era, pool.drain) == (None, None, "any", 300.0)
    assert pool.health.model_dump() == {"active": None, "eject": {"after": 5, "for": 30.0, "at_most": "50%"}}
    assert pool.credentials.authorization is None
    assert config.telemetry.model_dump() == {
        "log": "text", "access_log": "json", "access_log_file": None, "metrics": True, "traces": None,
    }  # fmt: skip
    assert (config.tls, config.external_url, config.trusted_proxies) == (None, None, ())


def test_one_pool_without_routes_is_reached_at_mcp() -> None:
    assert Config.model_validate({"pools": POOLS}).routes == (RouteConfig(path="/mcp", pool="a"),)


def test_every_key_of_this_version_is_read(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(EVERYTHING)

    config = load(file, {"ADMIN_TOKEN": "t", "WEATHER_TOKEN": "Bearer w", "TRACES_KEY": "k"}, {})

    pool = config.pools["weather"]
    assert pool.backends == (
        BackendConfig(url="http://10.0.0.11:8000/mcp"),
        BackendConfig(url="http://10.0.0.12:8000/mcp", weight=2),
    )
    assert pool.credentials.authorization == Secret("Bearer w")
    assert (pool.timeouts.idle, pool.timeouts.response_head) == (1.5, None)
    assert pool.health.active == ActiveConfig(check="/healthz")
    assert (pool.health.eject, pool.slow_start, pool.era) == (EjectConfig(), 30.0, "probe")
    found = config.pools["found"]
    assert found.discover == DiscoverConfig(dns="weather-headless.mcp.svc.cluster.local", port=8000)
    assert (found.health.active, found.health.eject, found.affinity.tap) == (None, None, None)
    assert config.limits.per_client == AddressLimits(streams=10, connections=20)
    assert (config.limits.per_principal.requests, config.limits.memory) == (5, 512 << 20)
    assert config.telemetry.access_log == "off"
    assert config.telemetry.traces == TracesConfig(
        endpoint="http://10.0.0.5:4318/v1/traces", headers={"x-key": Secret("k")}, timeout=5.0,
        service_name="mcp",
    )  # fmt: skip
    assert str(config.trusted_proxies[0]) == "127.0.0.0/8"


def test_the_schema_accepts_what_the_loader_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Config.model_json_schema()
    document = yaml.safe_load(EVERYTHING)
    # YAML 1.2, which editors use, reads these as text.
    document["telemetry"]["access_log"] = document["pools"]["found"]["affinity"]["tap"] = "off"
    document["pools"]["found"]["health"] = {"active": "off", "eject": "off"}

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"limts": {}}, schema)


def test_the_schema_shows_defaults_as_a_user_writes_them() -> None:
    limits = Config.model_json_schema()["$defs"]["Limits"]["properties"]

    assert limits["body"]["default"] == "4MiB"
    assert limits["head_timeout"]["default"] == "10s"
    assert limits["body"]["description"]
    assert (limits["memory"]["default"], limits["drain_delay"]["default"]) == ("off", "0s")
    eject = Config.model_json_schema()["$defs"]["EjectConfig"]["properties"]
    assert {key: value["default"] for key, value in eject.items()} == {
        "after": 5, "for": "30s", "at_most": "50%",
    }  # fmt: skip


@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"backends": ["http://a"], "discover": {"srv": "a"}},
        {"discover": {}},
        {"discover": {"dns": "a", "port": 1, "srv": "b"}},
        {"discover": {"kubernetes": {}}},
        {"backends": [{"url": "http://a", "weight": 1001}]},
        {"backends": ["http://a"], "health": {"eject": {"for_": "5s"}}},
        {"backends": ["http://a"], "health": {"eject": {"at_most": 0.5}}},
        {"backends": ["http://a"], "health": {"active": {"check": "ping"}}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_loader_refuses(pool: dict[str, object]) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"pools": {"a": pool}}, Config.model_json_schema())


def test_the_schema_knows_every_section() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Config.model_json_schema()
    document = yaml.safe_load(EVERYTHING)

    for loc in (("pools", "weather", "health", "eject"), ("pools", "found", "discover"), ("limits",)):
        broken = json.loads(json.dumps(document))
        section = broken
        for key in loc:
            section = section[key] if isinstance(section[key], dict) else section.setdefault(key, {})
        section["colour"] = "blue"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_a_key_that_is_a_word_of_python_has_an_underscore_there_and_nowhere_else() -> None:
    built = EjectConfig(for_=5.0)

    assert built == EjectConfig.model_validate({"for": "5s"})
    assert built.for_ == 5.0
    assert set(built.model_dump()) == {"after", "for", "at_most"}
    config = Config.model_validate({"pools": {"a": POOLS["a"] | {"health": {"eject": {"for": "5s"}}}}})
    assert config.pools["a"].health.eject == built
    assert '"for":5.0' in config.model_dump_json()


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
