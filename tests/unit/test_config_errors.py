"""Every mistake at once, each with file and line, cause and cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mcp_proxy.config import ConfigErrors, load, read
from tests.tools.tls import Authority

GOOD = "pools: {a: {backends: [http://a/mcp]}}\n"


def problems(tmp_path: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    """The problems of a file, without the directory it stands in."""
    file = tmp_path / "proxy.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigErrors) as errors:
        load(file, environ or {}, {})
    return [str(problem).replace(f"{tmp_path}/", "") for problem in errors.value.problems]


@pytest.mark.parametrize(
    "text",
    [
        "auth: {corp: {}}",
        "routes: [{path: /a, pool: a, auth: corp}]",
        "routes: [{path: /a, pool: a, allow: []}]",
        "routes: [{path: /a, pool: a, limits: []}]",
        "telemetry: {audit: {}}",
    ],
)
def test_what_a_later_version_brings_is_not_called_unknown(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, GOOD + text)

    assert "not available in this version" in problem


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """\
listen: nowhere
workers: 2
workers: 2
admin: {listen: 0.0.0.0:1}
limits: {body: 4MB, drain: 5}
pools:
  weather:
    backends: [http://a, http://a, nonsense]
    colour: blue
    http2: true
  other: {backends: []}
routes:
  - {path: /a, pool: wether}
  - {path: /a, pool: other, allow: []}
  - {path: b}
telemetry: {traces: {}}
""",
    )

    assert [problem.split(": ")[0].removeprefix("proxy.yaml:") for problem in found] == [
        "1", "3", "3", "4", "5", "5", "8", "8", "9", "10", "11", "13", "14", "14", "15", "15", "16",
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    for path, cause in ((tmp_path / "nope.yaml", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigErrors, match=cause):
            load(path, {}, {})


def test_a_file_that_is_no_text_or_far_too_large_is_one_problem(tmp_path: Path) -> None:
    assert "proxy.yaml:2: the file is not UTF-8 text" in problems(tmp_path, b"a: 1\n\xff\xfe\n")[0]
    assert "larger than 1 MiB" in problems(tmp_path, b"#" * (1 << 20) + b"\n")[0]
    assert "nested too deeply" in problems(tmp_path, "a: " + "[" * 5000 + "]" * 5000)[0]


def test_anchors_and_merge_keys_work_and_their_mistakes_are_reported_where_they_stand(tmp_path: Path) -> None:
    text = """\
pools:
  a: &base
    backends: [http://a]
    lost_after: {0}
  b:
    <<: *base
    backends: [http://b]
routes: [{{path: /a, pool: a}}, {{path: /b, pool: b}}]
"""
    file = tmp_path / "good.yaml"
    file.write_text(text.format("20s"))
    config = load(file, {}, {})

    assert config.pools["b"].lost_after == 20.0
    assert config.pools["b"].backends[0].url == "http://b/mcp"
    (problem,) = problems(tmp_path, text.format("soon"))
    assert problem.startswith("proxy.yaml:4: pools.a.lost_after: 'soon' is not a duration")


def test_an_alias_bomb_is_not_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 60)
    ]

    assert len(problems(tmp_path, "\n".join(lines) + "\n" + GOOD)) == 60


@pytest.mark.parametrize(
    "sign", ["!", "!!", "!x!", "*", "&a &", "!!int ", "!!float ", "@", "`", "%", "{", "[", "|", '"']
)
def test_a_secret_without_quotes_that_looks_like_yaml_is_not_repeated(tmp_path: Path, sign: str) -> None:
    (problem, *others) = problems(tmp_path, f"admin: {{token: {sign}hunter2-hunter2}}\n" + GOOD)

    assert problem.startswith("proxy.yaml:")
    assert not [each for each in (problem, *others) if "hunter2" in each]


def test_secrets_come_from_variables_and_files_without_the_last_line_break(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\r\n")
    file = tmp_path / "proxy.yaml"
    file.write_text(
        f"pools: {{a: {{backends: [http://a], credentials: {{authorization: 'file:{tmp_path}/token'}}}}}}\n"
        "admin: {token: env:TOKEN}\n"
    )

    loaded = read(file, {"TOKEN": "from-variable"}, {})

    assert loaded.warnings == []
    authorization = loaded.config.pools["a"].credentials.authorization
    assert authorization is not None
    assert authorization.value == "from-file"
    assert loaded.config.admin.token is not None
    assert loaded.config.admin.token.value == "from-variable"


def test_a_secret_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff")

    assert "is not UTF-8 text" in problems(tmp_path, GOOD + f"admin: {{token: 'file:{tmp_path}/token'}}")[0]


def test_what_works_but_is_not_wise_is_a_warning_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(
        """\
admin: {token: hunter2, metrics_token: hunter2hunter2}
pools:
  a:
    backends: [http://a]
    credentials: {authorization: Bearer hunter2}
    transport: httpx
    proxy: http://u:hunter2@p
    tls: {}
  b: {backends: [http://b]}
routes: [{path: /a, pool: a}]
"""
    )

    warnings = read(file, {}, {}).warnings

    assert sorted(str(warning).replace(f"{tmp_path}/", "").partition(" (")[0] for warning in warnings) == [
        "proxy.yaml:1: admin.metrics_token: a secret stands in the configuration",
        "proxy.yaml:1: admin.token: a secret stands in the configuration",
        "proxy.yaml:5: pools.a.credentials.authorization: a secret stands in the configuration",
        "proxy.yaml:7: pools.a.proxy: a secret stands in the configuration",
        "proxy.yaml:8: pools.a.tls: no backend of the pool is https",
        "proxy.yaml:9: pools.b: no route leads to this pool",
    ]
    assert "hunter2" not in str(warnings)


def test_a_certificate_with_its_key_and_authority_is_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    file = tmp_path / "proxy.yaml"
    file.write_text(
        f"tls: {{certificate: {authority.certificate}, key: {authority.key}, client_ca: {authority.ca}}}\n"
        "pools: {a: {backends: [https://a], tls: "
        f"{{ca: {authority.ca}, certificate: {authority.certificate}, key: {authority.key}}}}}}}\n"
    )

    config = load(file, {}, {})

    assert config.tls is not None
    assert (config.tls.certificate, config.tls.client_ca) == (authority.certificate, authority.ca)


def test_certificates_that_cannot_work_are_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    encrypted = tmp_path / "encrypted.key"
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )

    def first(certificate: Path, key: Path, ca: Path) -> str:
        return problems(tmp_path, GOOD + f"tls: {{certificate: {certificate}, key: {key}, client_ca: {ca}}}")[
            0
        ]

    assert "does not belong to the certificate" in first(authority.certificate, other.key, authority.ca)
    assert "the key without a passphrase" in first(authority.certificate, encrypted, authority.ca)
    assert "PEM format" in first(authority.key, authority.key, authority.ca)
    assert "holds no certificate" in first(authority.certificate, authority.key, authority.key)
