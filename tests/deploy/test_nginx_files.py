"""The shipped nginx configuration as files: valid without a warning, without a finding that nobody
has judged, in step with the proxy's own limits.

Rules of this file: what is suggested in a comment is as valid as what is in force. Nothing is started.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_proxy.config.models import Config, Limits
from mcp_proxy.downstream.settings import KEEPALIVE_S, PARTING_S
from mcp_proxy.headers import VALUE_LIMIT
from tests.tools.nginx_shipped import HTTP2_DIRECTIVE, SHIPPED, Installed, install, version

FILES = sorted(file.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob("*.conf"))
TEXTS = {name: (SHIPPED / name).read_text() for name in FILES}
DOCUMENT = (SHIPPED.parent / "docs/nginx.md").read_text()
OLD_LISTEN = "mcp-proxy/listen-before-1.25.1.conf"

ACCEPTED = {
    "default_server_flag": "the first server is the default; the flag collides with Debian's default site",
    "hsts_header": "it binds a whole host name and cannot be taken back: a comment, with that reason",
}
"""Findings of gixy, and why they stay."""


def is_valid(installed: Installed) -> bool:
    """Without a warning: nginx says nothing but that it is."""
    said = installed.check().splitlines()
    return [line.rpartition(" ")[2] for line in said] == ["ok", "successful"]


def test_it_is_valid(tmp_path: Path) -> None:
    assert is_valid(install([8080, 8081], tmp_path))


def test_it_is_valid_beside_another_site_that_is_the_default_one(tmp_path: Path) -> None:
    """As that of Debian."""
    installed = install([8080], tmp_path)
    listen = f"listen 127.0.0.1:{installed.http_port} default_server;"
    (tmp_path / "conf.d/zz-default.conf").write_text(f"server {{ {listen} server_name _; root /var/www; }}\n")
    assert is_valid(installed)


def test_it_is_valid_with_http2_whatever_the_version(tmp_path: Path) -> None:
    installed = install([8080], tmp_path, with_http2=True)
    assert is_valid(installed)
    listens = (tmp_path / "mcp-proxy/listen.conf").read_text()
    assert ("http2 on;" in listens) == (version() >= HTTP2_DIRECTIVE)


SUGGESTIONS = {
    "conf.d/mcp-proxy.conf": [
        "add_header Strict-Transport",
        "location ^~ /.well-known/acme",
        "alias /etc/nginx/",
    ],
    "mcp-proxy/site/real_ip.conf": ["set_real_ip_from", "real_ip_header", "real_ip_recursive"],
    "mcp-proxy/site/unlimited.conf": ["10.20.0.0/16 0;"],
}


@pytest.mark.parametrize("name", SUGGESTIONS)
def test_what_is_suggested_in_a_comment_is_valid(name: str, tmp_path: Path) -> None:
    installed = install([8080], tmp_path)
    file = tmp_path / name
    text = file.read_text() or TEXTS[name]
    for suggestion in SUGGESTIONS[name]:
        assert re.search(rf"^ *# .*{re.escape(suggestion)}", text, re.M)
    file.write_text(re.sub(r"^( *)# (.*[;{}])$", r"\1\2", text, flags=re.M))
    assert file.read_text() != text
    assert is_valid(installed)


def test_every_file_is_used(tmp_path: Path) -> None:
    installed = install([8080], tmp_path)
    done = subprocess.run(installed.command("-T"), capture_output=True, text=True, check=True)
    loaded = set(re.findall(rf"^# configuration file {tmp_path}/(.*):$", done.stdout, re.M))
    assert loaded - {"conf.d/00-temp.conf"} == set(FILES) - {OLD_LISTEN}


def test_gixy_finds_nothing_that_nobody_has_judged() -> None:
    argv = [str(Path(sys.executable).parent / "gixy"), "-f", "json", str(SHIPPED / "nginx.conf")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert {finding["plugin"] for finding in json.loads(done.stdout)} == set(ACCEPTED), done.stdout


# --- in step with the proxy ------------------------------------------------------------------------------


def value(name: str, directive: str) -> str:
    (found,) = re.findall(rf"^ *{directive} (.*);$", TEXTS[name], re.M)
    return str(found)


def size(text: str) -> int:
    return int(text[:-1]) * {"k": 1024, "m": 1024**2}[text[-1]]


def test_sizes_are_those_of_the_proxy() -> None:
    limits = Limits()
    client = "mcp-proxy/client.conf"
    assert size(value(client, "client_max_body_size")) == limits.body
    assert size(value(client, "client_body_buffer_size")) == limits.body, "no body is written to a file"
    count, line = value(client, "large_client_header_buffers").split()
    assert int(count) * size(line) == limits.head
    assert size(line) == VALUE_LIMIT
    assert value(client, "client_header_timeout") == "10s"
    assert limits.head_timeout == 10


def test_silence_is_borne_for_an_hour() -> None:
    assert value("mcp-proxy/pass.conf", "proxy_read_timeout") == "1h"
    assert value("nginx.conf", "worker_shutdown_timeout") == "1h"


def test_idle_connections_are_closed_here_before_the_proxy_closes_them() -> None:
    """In every state of the proxy, also without ``limits.drain_delay``."""
    (idle_ms,) = re.findall(r"^ {4}keepalive_timeout (\d+)ms;$", TEXTS["conf.d/mcp-proxy.conf"], re.M)
    assert int(idle_ms) / 1000 < min(PARTING_S, KEEPALIVE_S)


def test_the_path_of_the_proxy_is_passed_on_and_its_admin_listener_is_not() -> None:
    text = "\n".join(TEXTS.values())
    assert "9901" not in text
    assert "location = /mcp {" in text
    replicas = re.findall(r"^server (\S+) ", TEXTS["mcp-proxy/site/replicas.conf"], re.M)
    (replica,) = set(replicas)
    assert replica == Config.model_fields["listen"].default


FORBIDDEN = [
    r"non_idempotent", r"\bip_hash\b", r"^\s*hash ", r"\bsticky\b", r"\$http_upgrade",
    r"\$connection_upgrade",
    r"proxy_buffering on", r"\$proxy_add_x_forwarded_for", r"underscores_in_headers on", r"ssl_early_data on",
    r"^\s*gzip on", r"proxy_intercept_errors on", r"\$http_mcp_session_id", r"\$http_authorization",
]  # fmt: skip


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_the_usual_mistakes_are_not_made(pattern: str) -> None:
    text = "\n".join(line for text in TEXTS.values() for line in text.splitlines() if "#" not in line)
    assert not re.search(pattern, text, re.M | re.I)


@pytest.mark.parametrize("name", FILES)
def test_the_manual_has_every_file(name: str) -> None:
    assert f"`{name}`" in DOCUMENT


def test_the_manual_has_every_word_of_nginx() -> None:
    text = TEXTS["mcp-proxy/errors.conf"] + TEXTS["mcp-proxy/errors-variables.conf"]
    words = set(re.findall(r"[ \"](edge_[a-z_]+)[;\" ]", text))
    assert words == set(re.findall(r"^\| `(edge_[a-z_]+)`", DOCUMENT, re.M))
