"""Bodies of orders: small, read whole, and taken as JSON whatever type is claimed.

Rules of this file: no page of another site can send one, see ``guard.py``; so the type protects nothing.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import ClientDisconnect, Request

BODY_LIMIT: Final = 1024
"""Bytes. A whole order has 20."""


async def order_of(request: Request) -> bytes:
    """Raises ValueError for a body that is none."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT:
                raise ValueError("too large")
    except ClientDisconnect:
        raise ValueError("the client has left") from None  # and nobody reads this
    return body.strip()
