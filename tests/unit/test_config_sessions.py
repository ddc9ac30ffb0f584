"""Where sessions are kept: the long and the short ways to say it, and keys that nobody gets to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.config import Config, ConfigErrors, PoolConfig, Secret, load, read

POOLS = {"a": {"backends": ["http://a/mcp"]}}
YAML = "pools: {a: {backends: [http://a/mcp]}}\n"
KEY = "correct horse battery staple, twice"
OTHER_KEY = "x" * 32


def sessions(text: str, tmp_path: Path, environ: dict[str, str] | None = None, **flags: object) -> Any:
    file = tmp_path / "proxy.yaml"
    file.write_text(YAML + text)
    return load(file, environ or {}, flags).sessions


def test_sessions_are_in_memory_unless_somebody_says_otherwise() -> None:
    config = Config.model_validate({"pools": POOLS})
    assert config.sessions.store == "memory"
    assert (config.sessions.url, config.sessions.keys) == (None, ())
    assert (config.sessions.ttl, config.sessions.cache_ttl) == (7200.0, 30.0)
    assert config.pools["a"].on_backend_loss == "end"
    assert (config.pools["a"].affinity.key, config.pools["a"].affinity.tap) == ("principal", None)


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis:6379/0", "rediss://h", "unix:///run/redis.sock", "redis+sentinel://h1,h2/service/0",
        "redis+cluster://h1,h2:7000", "redis://user:hunter2@h/3",
    ],
)  # fmt: skip
def test_a_redis_url_is_short_for_a_redis_store(tmp_path: Path, url: str) -> None:
    short = sessions(f"sessions: {{store: '{url}'}}\n", tmp_path)
    long = sessions(f"sessions: {{store: redis, url: '{url}'}}\n", tmp_path)
    flag = sessions("", tmp_path, sessions=url)
    variable = sessions("", tmp_path, {"MCP_PROXY_SESSIONS": url})
    assert short == long == flag == variable
    assert (short.store, short.url) == ("redis", url)


def test_a_url_may_come_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:hunter2@h/0\n")
    for source in ("env:REDIS", f"file:{tmp_path}/url"):
        found = sessions(
            f"sessions: {{store: redis, url: '{source}'}}\n", tmp_path, {"REDIS": "redis://:hunter2@h/0"}
        )
        assert found.url == "redis://:hunter2@h/0"


def test_signed_sessions_take_their_key_from_a_variable(tmp_path: Path) -> None:
    environ = {"MCP_PROXY_SESSION_KEY": KEY}
    for found in (
        sessions("sessions: {store: signed}\n", tmp_path, environ),
        sessions("sessions: {store: signed, keys: []}\n", tmp_path, environ),
        sessions("", tmp_path, environ, sessions="signed"),
        sessions("sessions: {store: signed, keys: [env:MCP_PROXY_SESSION_KEY]}\n", tmp_path, environ),
    ):
        assert (found.store, found.keys) == ("signed", (Secret(KEY),))


def test_keys_stay_in_order_because_the_first_seals(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(OTHER_KEY + "\n")
    text = f"sessions: {{store: signed, url: 'redis://h', keys: ['file:{tmp_path}/key', env:K]}}\n"
    found = sessions(text, tmp_path, {"K": KEY})
    assert [key.value for key in found.keys] == [OTHER_KEY, KEY]
    assert found.url == "redis://h"


def test_no_way_of_showing_a_configuration_shows_a_key_or_a_password() -> None:
    config = Config.model_validate(
        {"pools": POOLS, "sessions": {"store": "signed", "url": "redis://u:hunter2@h/0", "keys": [KEY]}}
    )
    for shown in (
        repr(config),
        str(config),
        config.model_dump_json(),
        repr(config.sessions),
        str(config.sessions),
    ):
        assert "hunter2" not in shown
        assert "horse" not in shown
    dumped = json.loads(config.model_dump_json())["sessions"]
    assert "redis://" in dumped["url"]
    assert len(dumped["keys"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "sessions: {store: 'redis://u:hunter2@h/zero'}\n",
        "sessions: {store: 'rediz://u:hunter2@h/0'}\n",
        "sessions: {store: redis, url: 'redis://u:hunter2@h i/0'}\n",
        "sessions: {store: redis, url: 'redis://u:hunter2@h/0?x=hunter2'}\n",
        "sessions: {store: signed, keys: [hunter2]}\n",
        "sessions: {store: redis, url: env:URL}\n",
    ],
)
def test_no_message_repeats_a_password(tmp_path: Path, text: str) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(YAML + text)
    with pytest.raises(ConfigErrors) as errors:
        load(file, {"URL": "nonsense:hunter2"}, {})
    assert "hunter2" not in str(errors.value)
    assert "sessions" in str(errors.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"sessions: {{store: signed, keys: ['{KEY}']}}\n", 1),
        (f"sessions: {{store: signed, keys: [env:K, '{KEY}', '{OTHER_KEY}']}}\n", 2),
        ("sessions: {store: redis, url: 'redis://u:hunter2@h'}\n", 1),
        ("sessions: {store: 'redis://u:hunter2@h'}\n", 1),
        ("sessions: {store: redis, url: env:URL}\n", 0),
        ("sessions: {store: redis, url: 'redis://h'}\n", 0),
        ("sessions: {store: signed, keys: [env:K]}\n", 0),
    ],
)
def test_secrets_in_the_file_itself_are_worth_a_warning(tmp_path: Path, text: str, count: int) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(YAML + text)
    loaded = read(file, {"K": KEY, "URL": "redis://u:hunter2@h"}, {})
    assert len(loaded.warnings) == count
    assert all("hunter2" not in str(warning) and "horse" not in str(warning) for warning in loaded.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sessions: {url: 'redis://h'}\n", "sessions in memory use no Redis"),
        ("sessions: {keys: [env:K]}\n", "memory sessions use no keys"),
        ("sessions: {store: 'redis://h', keys: [env:K]}\n", "redis sessions use no keys"),
    ],
)
def test_what_is_written_and_not_used_is_worth_a_warning(tmp_path: Path, text: str, message: str) -> None:
    """Not an error: a flag may have said another store than the file was written for."""
    file = tmp_path / "proxy.yaml"
    file.write_text(YAML + text)
    (warning,) = read(file, {"K": KEY}, {}).warnings
    assert message in str(warning)
    assert "horse" not in str(warning)


@pytest.mark.parametrize(
    ("store", "is_possible"),
    [
        ({"store": "memory"}, True),
        ({"store": "redis://h"}, True),
        ({"store": "signed", "keys": [KEY]}, False),
        ({"store": "signed", "keys": [KEY], "url": "redis://h"}, True),
    ],
    ids=["memory", "redis", "signed", "signed with redis"],
)
def test_sessions_are_made_anew_where_it_can_be_written_down(
    store: dict[str, object], is_possible: bool
) -> None:
    document = {"pools": {"a": POOLS["a"] | {"on_backend_loss": "reinitialize"}}, "sessions": store}
    if is_possible:
        assert Config.model_validate(document).pools["a"].on_backend_loss == "reinitialize"
    else:
        with pytest.raises(ValueError, match="cannot tell where the session has moved"):
            Config.model_validate(document)


@pytest.mark.parametrize(("store", "is_possible"), [("memory", False), ("redis://h", True), ("signed", True)])
def test_workers_need_sessions_that_they_can_share(tmp_path: Path, store: str, is_possible: bool) -> None:
    environ = {"MCP_PROXY_SESSION_KEY": KEY}
    if is_possible:
        assert sessions("workers: 2\n", tmp_path, environ, sessions=store).store != "memory"
        return
    with pytest.raises(ConfigErrors, match="2 workers cannot share"):
        sessions("workers: 2\n", tmp_path, environ, sessions=store)


def test_affinity_is_read(tmp_path: Path) -> None:
    pool = PoolConfig.model_validate(
        {"backends": ["http://a/mcp"], "affinity": {"key": "header:X-Tenant", "tap": "64KiB"}}
    )
    assert (pool.affinity.key, pool.affinity.tap) == ("header:x-tenant", 65536)
    assert (
        PoolConfig.model_validate({"backends": ["http://a"], "affinity": {"tap": False}}).affinity.tap is None
    )


def test_the_schema_knows_every_way() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Config.model_json_schema()
    for given in (
        {"store": "memory"}, {"store": "redis", "url": "redis://h"}, {"store": "signed", "keys": ["env:K"]},
        {"store": "redis://h/0"}, {"store": "redis", "url": "env:URL", "ttl": "1h", "cache_ttl": "5s"},
    ):  # fmt: skip
        jsonschema.validate({"pools": POOLS, "sessions": given}, schema)
    for wrong in ({"store": "postgres"}, {"store": 7}, {"stor": "memory"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"pools": POOLS, "sessions": wrong}, schema)
