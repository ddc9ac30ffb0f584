"""Test tools: the two ends of the wire, and what may go wrong between them.

Rules of this package: real sockets on loopback, no mocks, nothing of ``mcp_proxy`` is imported
(a bug that both sides share would not show), no waiting for time: every wait is for an event
of the other side and is bounded by ``PATIENCE_S``.
"""

PATIENCE_S = 20.0
"""Bound of every wait. Only ever reached by a failing test, so it is generous: a busy
machine must not turn a correct proxy into a failure."""
