"""What a running process can take over: every key is known, and nothing else is said to have changed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from mcp_proxy.config import Config
from mcp_proxy.config.base import Model, key_of
from mcp_proxy.config.changes import PARTS, Part, compare
from tests.tools.tls import Authority

KEYS = ["a secret of at least 32 characters", "another secret of 32 characters or more"]
POOL: dict[str, Any] = {"backends": ["http://a/mcp"]}

# Two values of the same key; the second is the default where there is one.
VALUES: dict[str, tuple[Any, Any]] = {
    "listen": ("127.0.0.1:1", "127.0.0.1:8080"),
    "admin.listen": ("off", "127.0.0.1:9901"),
    "admin.token": ("one", "two"),
    "admin.metrics_token": ("three", "four"),
    "external_url": ("https://a.example", "https://b.example"),
    "trusted_proxies": (["10.0.0.0/8"], []),
    "workers": (2, 1),
    "sessions.store": ("signed", "memory"),
    "sessions.url": ("redis://a", "redis://b"),
    "sessions.ttl": ("1h", "2h"),
    "sessions.cache_ttl": ("1s", "30s"),
    "sessions.keys": (KEYS[:1], KEYS[1:]),
    "limits.body": ("1MiB", "4MiB"),
    "limits.head": ("1KiB", "32KiB"),
    "limits.header_fields": (10, 100),
    "limits.json_hold": ("2MiB", "1MiB"),
    "limits.streams": (10, 10_000),
    "limits.requests": (10, 10_000),
    "limits.per_client": ({"streams": 1}, {}),
    "limits.per_principal": ({"requests": 1}, {}),
    "limits.memory": ("1GiB", "off"),
    "limits.head_timeout": ("1s", "10s"),
    "limits.drain": ("1s", "30s"),
    "limits.drain_delay": ("1s", "0s"),
    "pools.*.backends": (["http://a/mcp", "http://b/mcp"], ["http://a/mcp"]),
    "pools.*.discover": ({"dns": "a", "port": 1}, {"dns": "a", "port": 2}),
    "pools.*.balance": ("round_robin", "least_sessions"),
    "pools.*.slow_start": ("1m", "none"),
    "pools.*.era": ("modern", "any"),
    "pools.*.health": ({"active": {}}, {}),
    "pools.*.drain": ("1m", "5m"),
    "pools.*.affinity": ({"key": "client"}, {}),
    "pools.*.on_backend_loss": ("reinitialize", "end"),
    "pools.*.lost_after": ("1s", "10s"),
    "pools.*.unknown_after": ("1s", "60s"),
    "pools.*.credentials": ({"authorization": "a"}, {"authorization": "b"}),
    "pools.*.transport": ("httpx", "http11"),
    "pools.*.timeouts": ({"connect": "1s"}, {}),
    "pools.*.tls": ({}, None),
    "pools.*.proxy": ("http://a:1", "http://b:1"),
    "pools.*.http2": (True, False),
    "routes": ([{"path": "/a", "pool": "a"}], [{"path": "/b", "pool": "a"}]),
    "telemetry.access_log": ("off", "json"),
    "telemetry.access_log_file": ("/tmp/a.log", "/tmp/b.log"),
    "telemetry.log": ("text", "json"),
    "telemetry.metrics": (False, True),
    "telemetry.traces": ({"endpoint": "http://a:4318"}, "off"),
}


def config(**sections: Any) -> Config:
    return Config.model_validate({"pools": {"a": POOL}} | sections)


def with_key(key: str, value: Any) -> Config:
    """A usable configuration in which ``key`` is ``value``."""
    sections: dict[str, Any] = {"pools": {"a": dict(POOL)}, "sessions": {}}
    if key in ("pools.*.proxy", "pools.*.http2"):
        sections["pools"]["a"]["transport"] = "httpx"
    if key == "workers":
        sections["sessions"] = {"store": "redis", "url": "redis://h"}
    if key in ("sessions.store", "sessions.keys"):
        sections["sessions"] = {"keys": KEYS[:1]}
    if key == "admin.metrics_token":
        sections["admin"] = {"token": "one"}
    section: Any = sections
    *path, last = key.replace("*", "a").split(".")
    for name in path:
        section = section.setdefault(name, {})
    section[last] = value
    if last == "discover":
        del section["backends"]
    return Config.model_validate(sections)


def keys(model: type[Model], prefix: str = "") -> Iterator[str]:
    """Every key that has a value, below models, lists and mappings of them."""
    for name, field in model.model_fields.items():
        key = prefix + key_of(name, field)
        inner, is_many = below(field.annotation)
        if inner is None:
            yield key
        else:
            yield from keys(inner, f"{key}.*." if is_many else f"{key}.")


def below(annotation: Any, is_many: bool = False) -> tuple[type[Model] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation, is_many
    origin = get_origin(annotation)
    if origin in (Annotated, Union, UnionType, dict, tuple):
        for part in get_args(annotation):
            found = below(part, is_many or origin in (dict, tuple))
            if found[0] is not None:
                return found
    return None, False


def prefixes(key: str) -> set[str]:
    names = key.split(".")
    return {".".join(names[:length]) for length in range(1, len(names) + 1)}


def test_every_key_of_the_configuration_belongs_to_a_part() -> None:
    all_keys = set(keys(Config))

    assert {"limits.per_client.connections", "pools.*.health.eject.for", "routes.*.pool"} <= all_keys
    assert [key for key in all_keys if len(prefixes(key) & PARTS.keys()) != 1] == []


def test_no_part_is_about_a_key_that_does_not_exist() -> None:
    assert PARTS.keys() <= {prefix for key in keys(Config) for prefix in prefixes(key)}


def test_a_section_whose_keys_differ_in_kind_is_never_classified_as_a_whole() -> None:
    assert PARTS.keys().isdisjoint({"admin", "tls", "sessions", "limits", "pools", "telemetry"})


def test_every_part_is_tried_out() -> None:
    assert VALUES.keys() == {key for key in PARTS if not key.startswith("tls.")}


@pytest.mark.parametrize("key", VALUES)
def test_a_change_of_one_key_is_reported_as_its_part_and_nothing_else_is(key: str) -> None:
    old, new = (with_key(key, value) for value in VALUES[key])
    part = PARTS[key]

    changes = compare(old, new)

    assert changes.keys == (key.replace("*", "a"),)
    assert changes
    assert (changes.new, changes.gone) == ((), ())
    if key.startswith("pools."):
        assert changes.changed == {"a": {part}}
        assert changes.parts == set()
        assert changes.issues == ()
    elif part is Part.RESTART:
        assert (changes.changed, changes.parts) == ({}, set())
        (issue,) = changes.issues
        assert ".".join(map(str, issue.loc)) == key
        assert "while the proxy runs" in issue.message
        assert "restart" in issue.hint
    else:
        assert (changes.changed, changes.parts, changes.issues) == ({}, {part}, ())


@pytest.mark.parametrize("key", VALUES)
def test_what_is_read_twice_has_not_changed(key: str) -> None:
    for value in VALUES[key]:
        assert not compare(with_key(key, value), with_key(key, value))


def test_pools_come_and_go_without_touching_the_others() -> None:
    routes = [{"path": "/b", "pool": "b"}]
    old = config(pools={"a": POOL, "b": POOL, "c": POOL}, routes=routes)
    new = config(pools={"e": POOL, "b": POOL, "c": POOL | {"drain": "1s"}, "d": POOL}, routes=routes)

    changes = compare(old, new)

    assert (changes.new, changes.gone, changes.changed) == (("d", "e"), ("a",), {"c": {Part.POLICY}})
    assert changes.keys == ("pools.a", "pools.c.drain", "pools.d", "pools.e")
    assert (changes.parts, changes.issues) == (set(), ())


def test_a_pool_whose_backends_are_found_from_now_on_has_other_members_only() -> None:
    found = {"discover": {"dns": "a", "port": 1}}

    changes = compare(config(), config(pools={"a": found}))

    assert changes.changed == {"a": {Part.MEMBERS}}
    assert changes.keys == ("pools.a.backends", "pools.a.discover")


def test_the_order_of_pools_and_spellings_of_a_url_are_no_changes() -> None:
    routes = [{"path": "/", "pool": "a"}]
    old = config(pools={"a": {"backends": ["http://A"]}, "b": POOL}, routes=routes)
    new = config(pools={"b": POOL, "a": {"backends": [{"url": "http://a/mcp"}]}}, routes=routes)

    assert not compare(old, new)


def test_several_changes_are_told_apart() -> None:
    old = config(listen="127.0.0.1:1", sessions={"ttl": "1h"}, limits={"body": "1MiB"})
    new = config(listen="127.0.0.1:2", external_url="https://a", pools={"a": POOL | {"era": "modern"}})

    changes = compare(old, new)

    assert [issue.loc for issue in changes.issues] == [("listen",), ("sessions", "ttl")]
    assert changes.parts == {Part.GUARD, Part.LIMITS}
    assert changes.changed == {"a": {Part.POLICY}}


def certificates(directory: Path) -> tuple[Authority, dict[str, Any]]:
    authority = Authority(directory)
    return authority, {"certificate": authority.certificate, "key": authority.key, "client_ca": authority.ca}


def test_a_renewed_certificate_is_a_change_though_its_name_stays(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    authority, tls = certificates(tmp_path)
    other, _ = certificates(tmp_path / "new")
    upstream = {"a": POOL | {"tls": {"ca": authority.ca}}}
    old = config(tls=tls, pools=upstream)
    assert not compare(old, config(tls=tls, pools=upstream))

    authority.certificate.write_bytes(other.certificate.read_bytes())
    authority.key.write_bytes(other.key.read_bytes())
    renewed = config(tls=tls, pools=upstream)

    assert compare(old, renewed).keys == ("tls.certificate", "tls.key")
    assert compare(old, renewed).parts == {Part.TLS}
    assert compare(old, renewed).issues == ()

    authority.ca.write_bytes(other.ca.read_bytes())
    changes = compare(renewed, config(tls=tls, pools=upstream))

    assert changes.changed == {"a": {Part.CONNECTIONS}}
    assert [issue.loc for issue in changes.issues] == [("tls", "client_ca")]


def test_a_configuration_that_went_to_another_process_is_the_same(tmp_path: Path) -> None:
    authority, tls = certificates(tmp_path)
    pool = POOL | {"tls": {"ca": authority.ca}, "health": {"eject": {"for": "1m"}}}
    here = config(tls=tls, pools={"a": pool}, limits={"memory": "1GiB"})

    there = pickle.loads(pickle.dumps(here))

    assert there == here
    assert not compare(here, there)
    assert not compare(here.model_copy(update={"workers": 1}), there)


def test_tls_cannot_come_or_go_while_the_listener_is_open(tmp_path: Path) -> None:
    _, tls = certificates(tmp_path)

    for old, new in ((config(), config(tls=tls)), (config(tls=tls), config())):
        changes = compare(old, new)
        assert [issue.loc for issue in changes.issues] == [("tls",)]
        assert changes.parts == set()


def test_no_change_shows_a_secret() -> None:
    old, new = (with_key("admin.token", value) for value in ("hunter1", "hunter2"))

    assert "hunter" not in repr(compare(old, new))
