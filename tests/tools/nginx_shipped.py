"""The configuration in ``nginx/`` as it is shipped, run by a real nginx: only the site is filled in.

Rules of this file: of the shipped files nothing changes but addresses, ports, paths of certificates, logs and
the pid; all of that happens in ``install``. Which of the two ``listen`` files belongs to the nginx at hand
is read from its version, as an operator would do it. ``MCP_PROXY_TEST_NGINX`` names another nginx than that
of the system, such as a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports

SHIPPED = Path(__file__).parents[2] / "nginx"
NAME = "localhost"
"""In the place of ``mcp.example.com``."""

HTTP2_DIRECTIVE = (1, 25, 1)
"""Since then HTTP/2 is a directive of its own."""

_TEMP = ("client_body_temp_path", "proxy_temp_path", "fastcgi_temp_path", "uwsgi_temp_path", "scgi_temp_path")
"""Built into nginx with paths that only root may write; laid into the test's folder."""


def program() -> str:
    found = os.environ.get("MCP_PROXY_TEST_NGINX") or shutil.which("nginx")
    found = found or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    assert found is not None, "nginx is not installed (make setup)"
    return found


@cache
def version() -> tuple[int, ...]:
    said = subprocess.run([program(), "-v"], capture_output=True, text=True, check=True).stderr
    match = re.search(r"nginx/([0-9.]+)", said)
    assert match is not None, said
    return tuple(map(int, match[1].split(".")))


@dataclass(frozen=True)
class Installed:
    """The shipped files in ``folder``, ready for an nginx that listens on 127.0.0.1."""

    folder: Path
    http_port: int
    https_port: int

    @property
    def config(self) -> Path:
        return self.folder / "nginx.conf"

    @property
    def certificate(self) -> Path:
        """Signed by itself, for ``NAME`` and ``127.0.0.1``."""
        return self.folder / "tls.crt"

    def command(self, *arguments: str) -> list[str]:
        """That runs nginx on these files."""
        error_log = str(self.folder / "error.log")
        return [program(), "-p", f"{self.folder}/", "-e", error_log, "-c", str(self.config), *arguments]

    def check(self) -> str:
        """What ``nginx -t`` says. Raises CalledProcessError when the configuration is not valid."""
        done = subprocess.run(self.command("-t"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def access_lines(self) -> list[dict[str, Any]]:
        """The access log so far."""
        whole = (self.folder / "access.log").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def error_log(self) -> str:
        return (self.folder / "error.log").read_text()


def install(
    replicas: Sequence[int], folder: Path, *, unlimited: Sequence[str] = (), with_http2: bool = False
) -> Installed:
    """Copy the shipped files into ``folder`` (which may exist) and fill in the site: replicas at these ports
    of 127.0.0.1, networks in ``unlimited`` without limits per address. ``with_http2``: the variant that
    ``listen-before-1.25.1.conf`` has as a comment, if that is the file for the nginx at hand."""
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    http_port, https_port = free_ports(2)
    installed = Installed(folder, http_port, https_port)
    _make_certificate(installed.certificate, folder / "tls.key")
    if version() < HTTP2_DIRECTIVE:
        text = (folder / "mcp-proxy/listen-before-1.25.1.conf").read_text()
        if with_http2:
            text = re.sub(r"^listen .*\n", "", text, flags=re.M).replace("# listen ", "listen ")
        (folder / "mcp-proxy/listen.conf").write_text(text)
    for file in folder.rglob("*.conf"):
        file.write_text(_placed(file.read_text(), installed))
    site = folder / "mcp-proxy/site"
    servers = re.findall(r"^server 127\.0\.0\.1:8080( .*;)$", (site / "replicas.conf").read_text(), re.M)
    assert len(servers) == 2, "one line each for its turn and for the time when all are left out"
    lines = (f"server 127.0.0.1:{port}{rest}\n" for rest in servers for port in replicas)
    (site / "replicas.conf").write_text("".join(lines))
    (site / "unlimited.conf").write_text("".join(f"{network} 0;\n" for network in unlimited))
    temp = "".join(f"{name} {folder}/temp-{number};\n" for number, name in enumerate(_TEMP))
    (folder / "conf.d/00-temp.conf").write_text(temp)
    return installed


def _placed(text: str, site: Installed) -> str:
    """The text with addresses and paths of the test."""
    text = re.sub(r"^( *)listen \[::\]:.*\n", "", text, flags=re.M)
    text = re.sub(r"\blisten 80;", f"listen 127.0.0.1:{site.http_port};", text)
    text = re.sub(r"\blisten 443 ", f"listen 127.0.0.1:{site.https_port} ", text)
    text = text.replace("mcp.example.com", NAME).replace("/etc/nginx/tls/", f"{site.folder}/")
    return text.replace("/var/log/nginx/", f"{site.folder}/").replace("/run/nginx.pid", f"{site.folder}/pid")


def _make_certificate(certificate: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))


class RunningNginx:
    """Made by ``run``."""

    def __init__(self, installed: Installed, process: asyncio.subprocess.Process) -> None:
        self.installed = installed
        self.process = process
        self.port = installed.https_port

    def reload(self) -> None:
        """As ``nginx -s reload``."""
        self.process.send_signal(signal.SIGHUP)

    def workers(self) -> list[int]:
        """Process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(each) for each in children.split()]


@contextlib.asynccontextmanager
async def run(installed: Installed) -> AsyncIterator[RunningNginx]:
    """With its master, so that it can be reloaded; ends with what it started."""
    installed.check()
    process = await asyncio.create_subprocess_exec(
        *installed.command("-g", "daemon off;"), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        await listening(installed.https_port, process)
        yield RunningNginx(installed, process)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()


async def listening(port: int, process: asyncio.subprocess.Process) -> None:
    """The wait with a pause: before the listener exists there is nothing to wait on."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assert process.returncode is None, "nginx ended"
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)
