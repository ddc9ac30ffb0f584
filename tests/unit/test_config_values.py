"""What one value may look like, and that what is written comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.config.amounts import (
    duration,
    format_duration,
    format_size,
    optional_count,
    optional_duration,
    optional_size,
    positive_duration,
    share,
    size,
)
from mcp_proxy.config.values import SESSION_KEY_CHARS, Invalid, affinity_key, session_key

YEAR_MS = 366 * 86_400_000


@given(st.integers(min_value=1, max_value=YEAR_MS))
def test_a_duration_of_whole_milliseconds_survives_being_written_and_read(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)

    assert round(positive_duration(text) * 1000) == milliseconds


@given(st.integers(min_value=1, max_value=1 << 40))
def test_a_size_survives_being_written_and_read(count: int) -> None:
    assert size(format_size(count)) == count


@given(st.text(max_size=12))
def test_any_text_is_a_duration_and_size_or_refused_with_a_cure(text: str) -> None:
    for reader in (optional_duration, size):
        value: object = None
        refusal = None
        try:
            value = reader(text)
        except Invalid as error:
            refusal = error
        assert value or text == "none" or (refusal is not None and refusal.message and refusal.hint)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1.5s", 1.5),
        ("0s", 0.0),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def test_no_limit_is_written_none_and_back() -> None:
    assert optional_duration("none") is None
    assert optional_duration(None) is None
    assert format_duration(None) == "none"
    assert format_duration(0) == "0s"


@pytest.mark.parametrize(
    "value",
    ["5", "5 s", "-5s", "s", "5S", "5sec", "1e3s", "", True, None, [], "400d", "\u0665s", float("nan"), -1],
)
def test_what_is_not_a_duration_is_refused_with_examples(value: object) -> None:
    with pytest.raises(Invalid) as error:
        duration(value)

    assert "500ms" in error.value.hint or "366d" in error.value.hint


@pytest.mark.parametrize(
    ("value", "count"), [("64KiB", 65536), ("4MiB", 4 << 20), ("1GiB", 1 << 30), ("7B", 7), ("7", 7), (8, 8)]
)
def test_sizes_are_binary_or_plain_bytes(value: object, count: int) -> None:
    assert size(value) == count


@pytest.mark.parametrize("value", ["4MB", "4 MiB", "1.5MiB", "", "-1", 0, "0B", True, 1.5, None, "4096GiB"])
def test_what_is_not_a_size_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match=r"not a size|out of range"):
        size(value)


@pytest.mark.parametrize("count", [0, 1, SESSION_KEY_CHARS - 1])
def test_a_session_key_that_could_be_guessed_is_refused_without_being_repeated(count: int) -> None:
    key = "k3Y" * count
    with pytest.raises(Invalid, match="too few") as error:
        session_key(key[:count])

    assert not count or key[:count] not in str(error.value) or count == 1
    assert "openssl rand" in error.value.hint


def test_a_session_key_is_taken_as_it_is() -> None:
    assert session_key(" " * SESSION_KEY_CHARS) == " " * SESSION_KEY_CHARS
    assert session_key("x" * 1000) == "x" * 1000


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("principal", "principal"),
        ("client", "client"),
        ("header:x-tenant", "header:x-tenant"),
        ("header:X-Tenant", "header:x-tenant"),
    ],
)
def test_affinity_is_kept_by_who_asks_or_by_a_header(text: str, meaning: str) -> None:
    assert affinity_key(text) == meaning


@pytest.mark.parametrize(
    "value",
    [
        "", "header", "header:", "header:x tenant", "header:x:y", "header:x\n", "principal:", "client:x",
        "Client", "cookie:x", None, 7, ["client"],
    ],
)  # fmt: skip
def test_what_cannot_keep_a_caller_with_a_backend_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="not a key of affinity") as error:
        affinity_key(value)

    assert "header:x-tenant" in error.value.hint


def test_a_size_may_be_off_however_yaml_reads_it() -> None:
    for value in ("off", False, None):
        assert optional_size(value) is None
    assert optional_size("64KiB") == 65536
    with pytest.raises(Invalid, match="not a size") as error:
        optional_size("some")
    assert "or off" in error.value.hint


@pytest.mark.parametrize("value", ["none", None])
def test_a_count_may_have_no_limit(value: object) -> None:
    assert optional_count(value) is None
    assert optional_count(7) == 7


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "7", "many", [], {}])
def test_what_is_not_a_count_is_refused_with_a_cure(value: object) -> None:
    with pytest.raises(Invalid, match="not a number of things") as error:
        optional_count(value)
    assert "or none" in error.value.hint


@given(st.integers(min_value=0, max_value=100))
def test_a_share_is_a_percentage(percent: int) -> None:
    assert share(f"{percent}%") == percent / 100
    assert share(percent / 100) == percent / 100


@pytest.mark.parametrize("value", ["101%", "-1%", "50", "5 %", "0.5", "%", 7, 1.1, -0.1, True, None, []])
def test_what_is_not_a_share_is_refused_with_a_cure(value: object) -> None:
    with pytest.raises(Invalid, match="not a share") as error:
        share(value)
    assert "50%" in error.value.hint
