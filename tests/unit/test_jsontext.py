"""What decoders hide, on chosen text. Generated text is in ``test_envelope_differential.py``."""

from __future__ import annotations

import msgspec
import pytest

from mcp_proxy import jsontext
from mcp_proxy.jsontext import elements, fault, members


def nested(levels: int, inside: bytes = b"") -> bytes:
    return b"[" * levels + inside + b"]" * levels


@pytest.mark.parametrize("inside", [b"", b"1", b'"[["', b'"\\"["', b'"\\\\"', b'"",""', b'"]","["'])
def test_64_levels_are_enough(inside: bytes) -> None:
    wide = b"[" + b"[],{}," * 99
    assert fault(nested(64, inside)) is None
    assert fault(nested(65, inside)) is not None
    assert fault(wide + nested(63, inside) + b"]") is None
    assert fault(wide + nested(64, inside) + b"]") is not None
    assert fault(b'{"a":' * 64 + b"1" + b"}" * 64) is None
    assert fault(b'{"a":' * 65 + b"1" + b"}" * 65) is not None


@pytest.mark.parametrize(
    "shape", [b"[[]],", b"[[[]]],", b"[[[],[]],[[]]],", nested(30) + b",", nested(63) + b","]
)
def test_breadth_is_not_depth(shape: bytes) -> None:
    assert fault(b"[" + shape * 5000 + b"1]") is None


STRINGS = [b"[" * 9000, b"]{" * 500, b'\\"[[' * 200, b"\\\\", b"\\\\\\\\[", b"1e400", b",1e400,", b"9" * 5000]


@pytest.mark.parametrize("string", [*STRINGS, b'\\",1e400,\\"'], ids=lambda string: repr(string[:12]))
def test_what_is_inside_a_string_does_not_count(string: bytes) -> None:
    text = b'["' + string + b'","' + string + b'",[' + b"[]," * 99 + b"1.5e300]]"
    assert fault(text) is None
    assert fault(text.replace(b"1.5e300", b"1.5e309")) is not None
    assert fault(text.replace(b"1.5e300", nested(63))) is not None


FINITE = [b"1.7976931348623157e308", b"1e-400", b"1e-99999", b"0e999", b"0.0000001e310", b"1" * 308]
FINITE += [b"0." + b"1" * 999, b"1" + b"0" * 400 + b"e-100", b"1e-" + b"9" * 400, b"1" + b"0" * 307]
INFINITE = [
    b"1e309",
    b"1E+309",
    b"1.7976931348623159e308",
    b"12.5e308",
    b"1e00400",
    b"1e99999999999999999999",
]
INFINITE += [
    b"9" * 309,
    b"1" + b"0" * 309,
    b"1" + b"0" * 400 + b"e-9",
    b"1" * 200 + b"e110",
    b"1" * 5000 + b".5",
]


@pytest.mark.parametrize(
    "frame", [b"%s", b"-%s", b"[%s]", b"[1,%s,1]", b'{"a":%s}', b'{"a": %s\n,"b":1}', b"\t%s "]
)
def test_a_number_is_finite_as_a_double(frame: bytes) -> None:
    for number in FINITE:
        assert fault(frame % number) is None, number
    for number in INFINITE:
        assert fault(frame % number) is not None, number


def test_more_large_numbers_than_anybody_sends_are_a_fault() -> None:
    assert fault(b"[" + b"1e300," * jsontext.MAX_LARGE + b"1]") is None
    assert fault(b"[" + b"1e300," * jsontext.MAX_LARGE + b"1e300]") is not None


def test_digits_that_are_not_numbers_do_not_count_as_large() -> None:
    assert fault(b'["' + b"123e4567-89ab-1e345-1e999x" * 10 * jsontext.MAX_LARGE + b'",1e300]') is None


@pytest.mark.parametrize(
    "text", [b"\xff", b'"\xc3"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf4\x90\x80\x80"']
)
def test_text_is_utf_8(text: bytes) -> None:
    assert fault(text) is not None


@pytest.mark.parametrize(
    "text", [b"]" * 99 + b"[" * 99, b'"' + b"[" * 99, b'["\\' * 99, b"1e999e999" * 9, b"\\" * 9]
)
def test_text_that_is_not_json_raises_nothing(text: bytes) -> None:
    fault(text)


def test_a_member_that_comes_twice_is_seen_twice() -> None:
    pairs = members(b'{"a":1, "\\u0061" : [2] ,"b":null}')
    assert [(name, bytes(raw)) for name, raw in pairs] == [("a", b"1"), ("a", b"[2]"), ("b", b"null")]


def test_members_and_elements_have_bounds() -> None:
    pairs = [b'"a":1'] * jsontext.MAX_MEMBERS
    assert len(members(b"{" + b",".join(pairs) + b"}")) == jsontext.MAX_MEMBERS
    with pytest.raises(msgspec.ValidationError):
        members(b"{" + b",".join([*pairs, pairs[0]]) + b"}")
    items = [b"[0]"] * jsontext.MAX_ELEMENTS
    assert [bytes(raw) for raw in elements(b"[" + b",".join(items) + b"]")] == items
    with pytest.raises(msgspec.ValidationError):
        elements(b"[" + b",".join([*items, items[0]]) + b"]")


@pytest.mark.parametrize("text", [b"1", b'"{}"', b"null"])
def test_other_values_have_no_members_and_no_elements(text: bytes) -> None:
    for read in (members, elements):
        with pytest.raises(msgspec.ValidationError):
            read(text)


def test_a_bound_stops_the_decoder() -> None:
    """Syntax behind the bound is not looked at: the rest of 4 MiB costs nothing."""
    for read, text in ((members, b'{"a":1' + b',"a":1' * 256), (elements, b"[1" + b",1" * 128)):
        with pytest.raises(msgspec.ValidationError):
            read(text + b",,,")
