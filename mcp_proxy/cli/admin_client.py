"""How commands ask a running proxy: the admin listener over HTTP.

Rules of this file: the one place of the commands that imports httpx2, so it is imported when something
is to be asked. Redirects are not followed (the token would go along), every wait and every answer has
a bound, and whatever goes wrong becomes a sentence with its cause and a cure, exit code 1.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import click
import httpx2
import msgspec

from mcp_proxy.cli.text import plain
from mcp_proxy.config.secret import read_secret
from mcp_proxy.config.values import Invalid

DEFAULT_ADMIN: Final = "127.0.0.1:9901"
ADMIN_VARIABLE: Final = "MCP_PROXY_ADMIN"
TOKEN_VARIABLE: Final = "MCP_PROXY_ADMIN_TOKEN"

ANSWER_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a document. A page of 1,000 sessions is 400 KB."""

TIMEOUT_S: Final = 60.0
"""A page may take a registry 5 s; a batch of an import somewhat longer. Events come with a heartbeat every
15 s."""

_CONNECT_S: Final = 5.0

_DONE: Final = (200, 202)

_MISSING: Final = ("session_not_found", "backend_not_found")

_NUMBER: Final = re.compile(r"\[Errno -?[0-9]+\] ?")

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}

T = TypeVar("T")


class AdminError(click.ClickException):
    """The proxy said no, or could not be reached. Exit code 1."""


class NotThere(AdminError):
    """What was asked for does not exist."""


class Silent(AdminError):
    """Nobody answered, or the answer broke off."""


class _Error(msgspec.Struct):
    reason: str
    detail: str


class _Refusal(msgspec.Struct):
    error: _Error


def base_url(text: str) -> str:
    """``http://host:port`` of ``host:port`` or a URL. Raises UsageError."""
    if text == "off":
        raise click.UsageError(
            f"{ADMIN_VARIABLE} is off: there is no admin listener to ask; give --admin URL"
        )
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        return _checked(parts)
    except ValueError:
        raise click.UsageError("not an admin address: write HOST:PORT or http://HOST:PORT") from None


def _checked(parts: SplitResult) -> str:
    port = parts.port  # raises ValueError if it is none
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    if "@" in parts.netloc or any(not "!" <= character <= "~" for character in parts.geturl()):
        raise ValueError
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host = _WILDCARDS.get(parts.hostname, host)
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def _token(given: str | None) -> str | None:
    text = given or os.environ.get(TOKEN_VARIABLE)
    if not text:
        return None
    try:
        secret = read_secret(text, os.environ)
    except Invalid as invalid:
        raise click.UsageError(f"the admin token: {invalid}") from None
    if given is not None and secret.is_literal:
        raise click.UsageError(
            "a token on the command line can be seen by everybody on this machine: "
            f"write --token env:NAME or file:PATH, or set {TOKEN_VARIABLE}"
        )
    return secret.value


@contextlib.contextmanager
def connect(admin: str | None, token: str | None, timeout_s: float = TIMEOUT_S) -> Iterator[Admin]:
    """The admin listener that flags and variables name. Raises UsageError."""
    base = base_url(admin or os.environ.get(ADMIN_VARIABLE) or DEFAULT_ADMIN)
    secret = _token(token)
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    # Not by way of an HTTP proxy of the environment: loopback is here.
    verify = ssl.create_default_context() if base.startswith("https:") else False
    timeout = httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
    with httpx2.Client(headers=headers, timeout=timeout, trust_env=False, verify=verify) as client:
        yield Admin(base, client)


class Admin:
    """Made by ``connect``. Everything raises AdminError."""

    def __init__(self, base: str, client: httpx2.Client) -> None:
        self.base = base
        self._client = client

    def ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: Iterable[bytes] | None = None,
        content_type: str | None = None,
    ) -> T:
        """The document at ``path``. ``content``: a body that is sent as it comes."""
        headers = {} if content_type is None else {"content-type": content_type}
        with self._sent(method, path, params=params, content=content, headers=headers) as response:
            body = self._whole(response)
        try:
            return msgspec.json.decode(body, type=kind)
        except (ValueError, RecursionError):
            raise self._stranger(response) from None

    @contextlib.contextmanager
    def stream(self, path: str, content_type: str) -> Iterator[Iterator[bytes]]:
        """The body at ``path``, as it comes."""
        with self._sent("GET", path) as response:
            if response.headers.get("content-type") != content_type:
                raise self._stranger(response)
            yield response.iter_bytes()

    @contextlib.contextmanager
    def _sent(self, method: str, path: str, **options: Any) -> Iterator[httpx2.Response]:
        try:
            with self._client.stream(method, self.base + path, **options) as response:
                if response.status_code not in _DONE:
                    raise self._refused(response)
                yield response
        except httpx2.ConnectError as error:
            raise Silent(
                f"cannot reach {self.base} ({_cause(error)}): is the proxy running, with its admin listener "
                f"there? Name another with --admin or {ADMIN_VARIABLE}."
            ) from None
        except httpx2.TimeoutException:
            raise Silent(
                f"{self.base} did not answer in time: see its log, and whether something is in between."
            ) from None
        except httpx2.HTTPError as error:
            raise Silent(
                f"{self.base} broke off ({error}): see the log of the proxy, then try again."
            ) from None

    def _refused(self, response: httpx2.Response) -> AdminError:
        try:
            refusal = msgspec.json.decode(self._whole(response), type=_Refusal).error
        except (ValueError, RecursionError):
            return self._stranger(response)
        if response.status_code == 401:
            how = f"set {TOKEN_VARIABLE} or --token to its token"
            what = "another token than was sent" if "authorization" in self._client.headers else "a token"
            return AdminError(f"{self.base} wants {what}: {how}.")
        if refusal.reason in _MISSING:
            return NotThere(plain(refusal.detail))
        return AdminError(f"{self.base} refused ({plain(refusal.reason)}): {plain(refusal.detail)}.")

    def _whole(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > ANSWER_LIMIT:
                raise self._stranger(response)
        return bytes(body)

    def _stranger(self, response: httpx2.Response) -> AdminError:
        return AdminError(
            f"{self.base} answered {response.status_code}, and not as an admin listener of this version "
            "does: check the address."
        )


def _cause(error: Exception) -> str:
    """In words: the number of an error of the system tells nobody anything."""
    return plain(_NUMBER.sub("", str(error)))
