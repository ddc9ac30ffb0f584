"""The status page: one file that asks nobody else for anything.

Rules of this file: the page runs what it was shipped with and nothing besides: its policy names the hashes of
its own script and style. It holds no data, so whoever can reach the listener may have it without the token.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from mcp_proxy.admin.answers import Endpoint, answer

_FILE: Final = Path(__file__).with_name("page.html")


def page_endpoint() -> Endpoint:
    """Reads the file once."""
    body = _FILE.read_bytes()
    headers = {"content-security-policy": policy(body), "referrer-policy": "no-referrer"}

    async def page(request: Request) -> Response:
        return answer(200, body, "text/html; charset=utf-8", headers)

    return page


def policy(page: bytes) -> str:
    """The Content-Security-Policy under which the page works, and nothing that was put into it would."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(page, b'script')}",
            f"style-src {_hash(page, b'style')}",
            "connect-src 'self'",
            "img-src data:",  # the empty icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(page: bytes, tag: bytes) -> str:
    (content,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
