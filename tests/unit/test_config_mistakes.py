"""One mistake per row: every message names the line, the cause and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_proxy.config import ConfigErrors, load

GOOD = "pools: {a: {backends: [http://a/mcp]}}\n"

# The file, the line, words of the cause, words of the cure.
MISTAKES = {
    "unknown key": ("limts: {}\n" + GOOD, 1, "unknown key 'limts'", "did you mean 'limits'?"),
    "unknown key far from all": ("foo: 1\n" + GOOD, 1, "unknown key 'foo'", "known: listen, admin"),
    "unknown key below": (
        GOOD + "limits:\n  boddy: 1\n", 3, "limits.boddy: unknown key", "did you mean 'body'?",
    ),
    "unknown key in a pool": (
        "pools:\n  a:\n    backends: [http://a]\n    balence: x\n", 4, "'balence'", "'balance'",
    ),
    "unknown key in a backend": (
        "pools: {a: {backends: [{url: http://a, wieght: 2}]}}", 1, "wieght", "'weight'",
    ),
    "key twice": ("workers: 1\n" + GOOD + "workers: 1\n", 3, "stands here twice", "the first is in line 1"),
    "key twice below": (
        "pools:\n  a: {backends: [http://a]}\n  a: {backends: [http://b]}\n", 3, "twice", "line 2",
    ),
    "key is no text": ("on: 1\n" + GOOD, 1, "a key must be text", "put it in quotes"),
    "empty section": (GOOD + "limits:\n", 2, "limits: is empty", "remove the key"),
    "section is text": (GOOD + "limits: big\n", 2, "limits: must be keys with values", "indented"),
    "pools is a list": ("pools: [http://a]\n", 1, "pools: must be names with values", "indented"),
    "list is text": ("pools: {a: {backends: http://a}}\n", 1, "must be a list", "[a, b]"),
    "number is text": (GOOD + 'workers: "1"\n', 2, "must be a whole number", "without quotes"),
    "number is true": (GOOD + "workers: true\n", 2, "must be a whole number", "digits"),
    "number has a fraction": (GOOD + "workers: 1.5\n", 2, "must be a whole number", "digits"),
    "text is a number": (GOOD + "routes: [{path: /a, pool: 7}]\n", 2, "pool: must be text", "quotes"),
    "flag is text": (GOOD + "telemetry: {metrics: 'yes'}\n", 2, "must be true or false", "without quotes"),
    "word is a number": (GOOD + "telemetry: {access_log: 7}\n", 2, "must be a word", "json or off"),
    "sample as a percentage": (
        GOOD + "telemetry: {traces: {endpoint: http://c, sample: 1%}}\n", 2, "'1%' is not a ratio", "0.01",
    ),
    "sample above all": (
        GOOD + "telemetry: {traces: {endpoint: http://c, sample: 1.5}}\n", 2, "1.5 is not a ratio", "to 1.0",
    ),
    "traces to nowhere": (GOOD + "telemetry: {traces: {sample: 1}}\n", 2, "'endpoint' is missing", "add"),
    "collector without a scheme": (
        GOOD + "telemetry: {traces: {endpoint: 'c:4318'}}\n", 2, "does not begin", "http://localhost:4318",
    ),
    "collector with a password": (
        GOOD + "telemetry: {traces: {endpoint: 'http://u:p@c'}}\n", 2, "user or password", "headers:",
    ),
    "collector with a query": (
        GOOD + "telemetry: {traces: {endpoint: 'http://c/?key=1'}}\n", 2, "a query", "end it at the path",
    ),
    "header of the collector": (
        GOOD + "telemetry: {traces: {endpoint: http://c, headers: {'a b': c}}}\n",
        2, "not the name of a header", "x-api-key",
    ),
    "traces of a service without a name": (
        GOOD + "telemetry: {traces: {endpoint: http://c, service_name: ''}}\n",
        2, "not the name of a service", "mcp-proxy",
    ),
    "unknown word": (
        "pools: {a: {backends: [http://a], balance: roundrobin}}", 1, "not possible", "'round_robin'",
    ),
    "bad duration": (GOOD + "limits: {drain: 30sec}\n", 2, "'30sec' is not a duration", "500ms, 5s"),
    "duration without unit": (GOOD + "sessions: {ttl: 30}\n", 2, "30 has no unit", "30s for seconds"),
    "duration of zero": (GOOD + "sessions: {ttl: 0s}\n", 2, "would expire at once", "above zero"),
    "none where a limit is needed": (GOOD + "limits: {head_timeout: none}\n", 2, "needs a limit", "500ms"),
    "bad size": (GOOD + "limits: {body: 4MB}\n", 2, "'4MB' is not a size", "4MiB"),
    "count of zero": (GOOD + "limits: {streams: 0}\n", 2, "must be at least 1", "write 1 or more"),
    "bad listen": (GOOD + "listen: 8080\n", 2, "a number is not an address", "127.0.0.1:8080"),
    "listen without port": (GOOD + "listen: localhost\n", 2, "has no port", "HOST:PORT"),
    "bad network": (GOOD + "trusted_proxies: [10.0.0.1/8]\n", 2, "trusted_proxies[0]", "'10.0.0.0/8'"),
    "bad external url": (
        GOOD + "external_url: mcp.example.com\n", 2, "does not begin", "https://mcp.example.com",
    ),
    "no backend": ("listen: 127.0.0.1:1\n", 1, "there is no backend", "http://localhost:3000/mcp"),
    "no pools": ("pools: {}\n", 1, "there is no backend", "MCP_PROXY_BACKENDS"),
    "pool without backends": (
        "pools: {a: {balance: round_robin}}\n", 1, "has no backends", "[http://host:port/mcp], or discover",
    ),
    "pool with no backend": (
        "pools:\n  a:\n    backends: []\n", 3, "has no backends", "add backends: [http://host:port/mcp]",
    ),
    "backends written down and found": (
        "pools:\n  a:\n    backends: [http://a]\n    discover: {dns: a, port: 1}\n", 4,
        "has backends already", "remove backends or discover",
    ),
    "discovery of nothing": ("pools: {a: {discover: {}}}\n", 1, "not said where to look", "add dns: NAME"),
    "discovery in two places": (
        "pools:\n  a:\n    discover:\n      dns: a\n      port: 1\n      srv: b\n", 6,
        "discover.srv: there is dns already", "remove one",
    ),
    "addresses without a port": (
        "pools:\n  a: {discover: {dns: a}}\n", 2, "have no port", "add port: 8000",
    ),
    "port by name in DNS": (
        "pools: {a: {discover: {dns: a, port: web}}}\n", 1, "only Kubernetes knows ports by name", "number",
    ),
    "port beside SRV": (
        "pools: {a: {discover: {srv: a, port: 1}}}\n", 1, "have a port of their own", "remove port",
    ),
    "port out of range": (
        "pools: {a: {discover: {dns: a, port: 70000}}}\n", 1, "70000 is not a port", "1 to 65535",
    ),
    "name with a space": (
        "pools: {a: {discover: {dns: a b, port: 1}}}\n", 1, "'a b' is not a DNS name", "write it like",
    ),
    "discovery is text": ("pools: {a: {discover: a}}\n", 1, "must be keys with values", "indented"),
    "service without a name": (
        "pools: {a: {discover: {kubernetes: {namespace: b}}}}\n", 1, "'service' is missing", "add service",
    ),
    "health is misspelt": (
        "pools: {a: {backends: [http://a], health: {activ: {}}}}\n", 1, "unknown key 'activ'", "'active'",
    ),
    "active is no section": (
        "pools: {a: {backends: [http://a], health: {active: on}}}\n", 1, "must be keys with values", "key:",
    ),
    "eject with a wrong time": (
        "pools: {a: {backends: [http://a], health: {eject: {for: 5}}}}\n", 1, "for: 5 has no unit", "5s",
    ),
    "eject with a name of Python": (
        "pools: {a: {backends: [http://a], health: {eject: {for_: 5s}}}}\n", 1, "key 'for_'", "mean 'for'?",
    ),
    "eject nobody": (
        "pools: {a: {backends: [http://a], health: {eject: {at_most: 0%}}}}\n", 1,
        "nothing would be ejected", "eject: off",
    ),
    "share without a percent sign": (
        "pools: {a: {backends: [http://a], health: {eject: {at_most: 0.5}}}}\n", 1,
        "0.5 is not a share", "such as 50%",
    ),
    "check that makes sessions": (
        "pools:\n  a:\n    backends: [http://a, http://b/x/mcp/]\n    health:\n      active:\n"
        "        check: /x/mcp\n", 6, "is the MCP endpoint of http://b/x/mcp/: each GET", "such as /healthz",
    ),
    "check that makes sessions wherever they are": (
        "pools: {a: {discover: {dns: a, port: 1}, health: {active: {check: /mcp}}}}\n", 1,
        "MCP endpoint of the backends that are found", "check: tcp",
    ),
    "check of an era that is not spoken": (
        "pools: {a: {backends: [http://a], era: legacy, health: {active: {check: discover}}}}\n", 1,
        "server/discover is of 2026-07-28", "check: tcp",
    ),
    "unknown check": (
        "pools: {a: {backends: [http://a], health: {active: {check: ping}}}}\n", 1, "'ping' is not a check",
        "tcp, discover, or a path",
    ),
    "check slower than its pace": (
        "pools: {a: {backends: [http://a], health: {active: {every: 1s, timeout: 3s}}}}\n", 1,
        "may take 3s, and the next one begins after 1s", "write 1s or less",
    ),
    "unknown era": (
        "pools: {a: {backends: [http://a], era: modren}}\n", 1, "'modren' is not possible", "'modern'?",
    ),
    "endless slow start": (
        "pools: {a: {backends: [http://a], slow_start: 2h}}\n", 1, "less than its share for 2h", "1h or less",
    ),
    "drain without an end": (
        "pools: {a: {backends: [http://a], drain: none}}\n", 1, "this wait needs a limit", "500ms",
    ),
    "too heavy a backend": (
        "pools: {a: {backends: [{url: http://a, weight: 1001}]}}\n", 1, "at most 1000", "1000 or less",
    ),
    "limit per client of zero": (
        GOOD + "limits: {per_client: {streams: 0}}\n", 2, "0 is not a number of things", "1 or more, or none",
    ),
    "connections of a principal": (
        GOOD + "limits: {per_principal: {connections: 5}}\n", 2, "unknown key 'connections'", "streams",
    ),
    "memory without a size": (
        GOOD + "limits: {memory: much}\n", 2, "'much' is not a size", "1GiB, or off",
    ),
    "bad pool name": ("pools: {a b: {backends: [http://a]}}\n", 1, "cannot be the name of a pool", "letters"),
    "duplicate backend": (
        "pools:\n  a:\n    backends:\n    - http://a/mcp\n    - http://A:80\n", 5, "already", "weight",
    ),
    "backend without scheme": ("pools: {a: {backends: ['a:80']}}\n", 1, "backends[0].url", "write http://"),
    "backend with password": (
        "pools: {a: {backends: ['http://u:p@a']}}\n", 1, "user or password", "credentials",
    ),
    "backend with query": (
        "pools: {a: {backends: ['http://a/?x=1']}}\n", 1, "query or a fragment", "end it at",
    ),
    "weight of zero": (
        "pools: {a: {backends: [{url: http://a, weight: 0}]}}\n", 1, "at least 1", "1 or more",
    ),
    "backend without url": ("pools: {a: {backends: [{weight: 1}]}}\n", 1, "'url' is missing", "add url"),
    "http2 on http11": (
        "pools: {a: {backends: [http://a], http2: true}}\n", 1, "has no http2", "transport: httpx",
    ),
    "proxy on http11": ("pools: {a: {backends: [http://a], proxy: http://p}}\n", 1, "has no proxy", "httpx"),
    "route to nowhere": (GOOD + "routes:\n- path: /a\n  pool: b\n", 4, "there is no pool 'b'", "known: a"),
    "route to a misspelt pool": (
        "pools: {weather: {backends: [http://a]}}\nroutes: [{path: /a, pool: wether}]\n",
        2, "no pool", "'weather'?",
    ),
    "two routes with one path": (
        GOOD + "routes:\n- {path: /a, pool: a}\n- {path: /a, pool: a}\n",
        4, "/a has a route already", "its own path",
    ),
    "route without path": (GOOD + "routes: [{pool: a}]\n", 2, "'path' is missing", "add path"),
    "relative path": (GOOD + "routes: [{path: a, pool: a}]\n", 2, "not a path", "begin with a slash"),
    "several pools without routes": (
        "pools: {a: {backends: [http://a]}, b: {backends: [http://b]}}\n", 1, "no route", "add routes"
    ),
    "no routes on purpose": (GOOD + "routes: []\n", 2, "no route leads to any pool", "{path: /mcp, pool: a}"),
    "workers with memory": (
        GOOD + "workers: 2\n", 2, "2 workers cannot share", "--sessions signed or --sessions redis://",
    ),
    "redis without url": (
        GOOD + "sessions: {store: redis}\n", 2, "there is no Redis", "url: redis://host:6379/0",
    ),
    "signed without a key": (
        GOOD + "sessions: {store: signed}\n", 2, "'MCP_PROXY_SESSION_KEY' is not set",
        "export MCP_PROXY_SESSION_KEY",
    ),
    "signed with a short key": (
        GOOD + "sessions: {store: signed, keys: [abc]}\n", 2, "3 characters", "openssl rand -base64 32",
    ),
    "url of another database": (
        GOOD + "sessions: {store: redis, url: 'postgres://h/0'}\n", 2, "has no scheme that is known",
        "redis+sentinel",
    ),
    "unknown store": (GOOD + "sessions: {store: postgres}\n", 2, "sessions.store", "memory"),
    "cache without a limit": (
        GOOD + "sessions: {store: 'redis://h', cache_ttl: none}\n", 2, "'none' is not possible", "5s",
    ),
    "signed sessions cannot move": (
        "pools:\n  a:\n    backends: [http://a]\n    on_backend_loss: reinitialize\n"
        f"sessions: {{store: signed, keys: [{'k' * 32}]}}\n", 4, "cannot tell where the session has moved",
        "sessions.url: redis://",
    ),
    "unknown fate of sessions": (
        "pools: {a: {backends: [http://a], on_backend_loss: forget}}\n", 1, "on_backend_loss", "reinitialize",
    ),
    "open admin": (GOOD + "admin: {listen: ':9901'}\n", 2, "has no token", "MCP_PROXY_ADMIN_TOKEN"),
    "token for metrics alone": (
        GOOD + "admin: {metrics_token: hunter2}\n", 2, "open to whoever", "set admin.token",
    ),
    "one token for everything": (
        GOOD + "admin: {token: hunter2, metrics_token: hunter2}\n", 2, "opens more than", "one of its own",
    ),
    "admin on the same port": (GOOD + "admin: {listen: 127.0.0.1:8080}\n", 2, "already", "another port"),
    "missing variable": (GOOD + "admin: {token: env:NOPE}\n", 2, "'NOPE' is not set", "export NOPE"),
    "missing secret file": (GOOD + "admin: {token: file:/nope}\n", 2, "'/nope': no such file", "permissions"),
    "empty secret": (GOOD + "admin: {token: ''}\n", 2, "the secret is empty", "remove the key"),
    "secret with a line break": (GOOD + 'admin: {token: "a\\nb"}\n', 2, "visible ASCII", "line breaks"),
    "secret is a number": (GOOD + "admin: {token: 12345}\n", 2, "a secret must be text", "in quotes"),
    "missing certificate": (
        GOOD + "tls: {certificate: /nope, key: /nope}\n", 2, "cannot read '/nope'", "path",
    ),
    "file name is a number": (GOOD + "tls: {certificate: 7, key: 7}\n", 2, "must be text", "write a path"),
    "log into nowhere": (
        GOOD + "telemetry: {access_log_file: /no/pe}\n", 2, "cannot become a file", "directory",
    ),
    "upstream key alone": (
        "pools: {a: {backends: [https://a], tls: {key: /dev/null}}}\n",
        1, "a key but no certificate", "add cert",
    ),
    "yaml: bracket": ("listen: [::1]:8080\n" + GOOD, 1, "not YAML", "quotes"),
    "yaml: colon": ("a: b: c\n", 1, "not YAML", "put text with a colon in quotes"),
    "yaml: tab": ("pools:\n\ta: 1\n", 2, "not YAML", "spaces, not tabs"),
    "yaml: alias": ("pools: *x\n", 1, "not YAML", "define the anchor"),
    "yaml: documents": (GOOD + "---\n" + GOOD, 2, "not YAML", "one document"),
    "yaml: control character": ("a: 1\nb: \x01\n", 2, "a character that YAML forbids", "control character"),
    "yaml: tag": (GOOD + "workers: !!python/object:os.system 1\n", 2, "means nothing here", "remove it"),
    "yaml: wrong value for a tag": (GOOD + "workers: !!int x\n", 2, "cannot be read", "quotes"),
    "yaml: anchor in itself": (GOOD + "routes: &r [*r]\n", 2, "contains itself", "write the value out"),
    "yaml: list": ("- a\n", 1, "not keys with values", "begin with a key"),
    "yaml: text": ("hello\n", 1, "not keys with values", "begin with a key"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "cause", "cure"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_with_its_line_cause_and_cure(
    tmp_path: Path, text: str, line: int, cause: str, cure: str
) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(text)

    with pytest.raises(ConfigErrors) as errors:
        load(file, {}, {})

    first = str(errors.value.problems[0]).removeprefix(f"{tmp_path}/")

    assert first.startswith(f"proxy.yaml:{line}: ")
    assert cause in first
    assert cure in first.partition(cause)[2]
