"""What of a backend's response head the client gets: pure decisions.

Rules of this file: no I/O, no state. A head passes as it is unless it names a place or a
session that only this proxy may name, or speaks to a browser; then a changed copy passes,
because the block itself may be delivered again with another response.
"""

from __future__ import annotations

from mcp_proxy.headers import Facts, rewrite_location
from mcp_proxy.policy.origin import cors_headers
from mcp_proxy.wire import Fields, Rejection


def adapt(
    status: int,
    fields: Fields,
    facts: Facts,
    *,
    backend: str,
    route: str,
    has_credentials: bool,
    origin: bytes | None,
    theirs: bytes | None,
    ours: bytes | None,
) -> Fields | Rejection:
    """The headers to pass on, or why the response must not be. ``fields``: those so far.

    backend: URL of the backend. route: path under which the client asked. has_credentials:
    the proxy authenticated itself. origin: the request's, allowed. theirs: how the backend
    calls the only session that may be passed on, which the client calls ours; servers put
    throw-away ids on errors and some clients adopt whatever they see.
    """
    if has_credentials and status in (401, 403):
        # The client would start an authorization flow for a resource that is not ours.
        return Rejection("credentials_refused", f"the backend answered {status}")
    if facts.session_id is not None and (facts.session_id != theirs or theirs != ours):
        kept = [pair for pair in fields if pair[0] != b"mcp-session-id"]
        if facts.session_id == theirs and ours is not None:
            kept.append((b"mcp-session-id", ours))
        fields = Fields(kept)
    if facts.location is not None:
        location = rewrite_location(facts.location, backend, route)
        if location is None and 300 <= status < 400:
            return Rejection(
                "upstream_invalid",
                "the backend redirects away from its endpoint; configure the URL that it redirects to",
            )
        kept = [pair for pair in fields if pair[0] != b"location"]
        fields = Fields(kept if location is None else [*kept, (b"location", location)])
    if origin is not None:
        fields = Fields([*fields, *cors_headers(origin)])
    return fields
