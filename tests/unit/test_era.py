"""What an answer to ``server/discover`` says about the era of who gave it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.backends.era import is_modern
from tests.unit.checkups import LEGACY, MODERN, discovered, failed


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        # results
        (200, MODERN, True),
        (200, discovered("2025-11-25", "2026-07-28", "2027-01-01"), True),
        (200, discovered("2025-11-25"), False),
        (200, discovered(), False),
        (200, b'{"jsonrpc":"2.0","id":1,"result":{}}', False),
        # JSON-RPC errors, whatever the status
        (200, LEGACY, False), (404, LEGACY, False), (200, failed(-32600), False),
        (400, failed(-32602), False), (400, failed(-32000), False), (400, failed(-32001), False),
        (400, failed(-32022), False), (400, failed(-32022, supported=["2025-11-25"]), False),
        (400, failed(-32022, supported=["2026-07-28"]), True),
        (400, failed(-32022, supported="2026-07-28"), False),
        (400, b'{"id":1,"error":{"code":-32022,"message":"no data"}}', False),
        (200, failed(-32603), None), (400, failed(-32020), None), (400, failed(-32021), None),
        # other bodies
        (400, b"", False), (400, b"Bad Request", False), (404, b"<html>", False), (405, b"", False),
        (406, b"", False), (415, b"", False), (400, b"[]", False), (400, b'{"detail":"no"}', False),
        (200, b"", None), (202, b"", None), (204, b"", None), (200, b"<html>", None),
        (200, b"\xff\xfe", None),
        (200, b'{"result":{"supportedVersions":"2026-07-28"}}', None),
        # not about the era
        (301, MODERN, None), (307, b"", None), (401, LEGACY, None), (403, b"", None), (407, b"", None),
        (408, b"", None), (421, b"Invalid Host header", None), (425, b"", None), (429, b"", None),
        (500, MODERN, None), (502, b"<html>", None), (503, LEGACY, None), (599, b"", None),
        # event streams
        (200, b"event: message\r\ndata: " + MODERN + b"\r\n\r\n", True),
        (200, b": ping\n\ndata:" + MODERN + b"\n\n", True),
        (200, b"id: 1\ndata: \n\ndata: " + LEGACY + b"\n\n", False),
        (200, b'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\ndata: ' + MODERN + b"\n\n", True),
        (200, b"data: half", None),
    ],
)  # fmt: skip
def test_what_an_answer_says(status: int, body: bytes, expected: bool | None) -> None:
    assert is_modern(status, body) is expected


@given(st.integers(100, 999), st.binary(max_size=200))
def test_no_body_is_too_strange(status: int, body: bytes) -> None:
    assert is_modern(status, body) in (False, None)
