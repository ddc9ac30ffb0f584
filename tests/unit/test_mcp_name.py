"""The ``Mcp-Name`` field: one spelling per name."""

from __future__ import annotations

import pytest

from mcp_proxy.envelope import decode_mcp_name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"get_weather", "get_weather"),
        (b"file:///a b?c=d", "file:///a b?c=d"),
        (b"", ""),
        (b"=?", "=?"),
        (b"what?=", "what?="),
        (b"=?utf-8?b?eA==?=", "=?utf-8?b?eA==?="),
        (b"=?base64?ZXZpbA==?=", "evil"),
        (b"=?base64?w6k=?=", "é"),
        (b"=?base64?IGEK?=", " a\n"),
        (b"=?base64??=", ""),
    ],
)
def test_a_name_is_plain_or_in_its_sentinel(value: bytes, name: str) -> None:
    assert decode_mcp_name(value) == name


@pytest.mark.parametrize(
    "value",
    [
        *(
            b" a",
            b"a ",
            b"a\tb",
            b"a\nb",
            b"a\x7f",
            b"a\x00",
            b"\xff",
            "é".encode(),
            "tools\uff0fcall".encode(),
        ),
        *(b"=?BASE64?ZXZpbA==?=", b"=?Base64?ZXZpbA==?=", b"=?base64?ZXZpbA==?= ", b"=?base64?ZXZp bA==?="),
        *(b"=?base64?ZXZpbA==", b"=?base64?=", b"=?base64?", b"=?base64?=?=?=", b"=?base64?ZXZpbA?="),
        *(b"=?base64?ZXZpbA===?=", b"=?base64?ZXZpbB==?=", b"=?base64?__8=?=", b"=?base64?/w==?="),
        *(b"=?base64?7aCA?=", b"=?base64?PT9iYXNlNjQ/ZXZpbA==?=", b"x" * 8193),
    ],
)
def test_any_other_name_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
        decode_mcp_name(value)
