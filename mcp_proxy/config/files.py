"""Files that the configuration names: they are opened once, so that a wrong one is found at start.

Rules of this file: nothing is kept open, nothing is created, and nobody is asked for a passphrase.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from pathlib import Path

from mcp_proxy.config.problems import Signature
from mcp_proxy.config.values import Invalid


def readable(path: Path) -> Path:
    """``path``, of a file that this process may read."""
    try:
        with path.open("rb"):
            return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise Invalid(
            f"cannot read {str(path)!r}: {reason.lower()}", "check the path and its permissions"
        ) from None


def writable(value: object) -> Path:
    """The path of a file that exists, or of one in a directory that does."""
    path = named(value)
    if path.is_dir() or not path.parent.is_dir():
        raise Invalid(f"{str(path)!r} cannot become a file", "name a file in a directory that exists")
    return path


def check_authority(path: Path) -> Path:
    """``path`` holds at least one certificate in PEM."""
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise Invalid(f"{str(path)!r} holds no certificate", "give a file in PEM format") from None
    return path


def check_pair(certificate: Path, key: Path) -> None:
    """The certificate and the key belong together and need no passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a callback OpenSSL would ask for the passphrase on the terminal and wait.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"the key {str(key)!r} does not belong to the certificate {str(certificate)!r}"
            raise Invalid(message, "give the key that the certificate was made with") from None
        raise Invalid(
            f"cannot use the certificate {str(certificate)!r} with the key {str(key)!r}",
            "give both in PEM format, the key without a passphrase",
        ) from None


def digest(path: Path) -> str:
    """Says whether two files hold the same. Empty when it cannot be read any more."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def signature(path: Path) -> Signature | None:
    """Of the file that ``path`` leads to in the end, whatever symbolic links are on the way; None when
    there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def named(value: object) -> Path:
    """A path, whether there is something or not."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise Invalid("a file name must be text", "write a path")
    return Path(value)
