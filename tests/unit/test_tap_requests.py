"""Owners of tasks and request states: what requests ask for, and the keys of owners."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy import envelope
from mcp_proxy.headers import is_session_id
from mcp_proxy.sessions import SessionKey
from mcp_proxy.tap import Owned, Tap, asked, owner_key


def task(value: str = "t-1") -> Owned:
    return Owned("task", value.encode())


def state(value: str = "s-1") -> Owned:
    return Owned("request_state", value.encode())


# --- requests --------------------------------------------------------------------------------------


def asks(method: str, params: dict[str, Any] | None, **more: Any) -> list[Owned]:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, **more}
    body = json.dumps(message if params is None else message | {"params": params}).encode()
    return asked(envelope.parse(body), body)


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
def test_a_request_about_a_task_asks_for_its_owner(method: str) -> None:
    assert asks(method, {"taskId": "t-1"}) == [task()]
    assert asks(method, {"taskId": "é😀"}) == [task("é😀")]
    assert asks(method, {"taskId": "t-1", "inputResponses": {}, "requestState": "s-1"}) == [task()]
    assert asks(method, {"taskId": ""}) == []
    assert asks(method, {}) == []
    assert asks(method, None) == []


@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read", "vendor/anything"])
def test_a_request_with_a_request_state_asks_for_its_owner(method: str) -> None:
    assert asks(method, {"requestState": "s-1", "inputResponses": {}}) == [state()]
    assert asks(method, {"requestState": "s-1"}) == [state()]


@pytest.mark.parametrize(
    "params",
    [
        {"inputResponses": {"requestState": "s-1"}},
        {"requestState": None},
        {"requestState": 7},
        {"requestState": ""},
        {"requestState": ["s-1"]},
        {"arguments": {"requestState": "s-1"}},
        {"arguments": {"taskId": "t-1"}},
        {"taskId": "t-1"},
    ],
)
def test_a_request_without_a_readable_state_asks_for_nothing(params: dict[str, Any]) -> None:
    assert asks("tools/call", {"name": "tool", **params}) == []


def test_a_stream_asks_for_the_owner_of_the_first_task_that_it_lists() -> None:
    filters = {"toolsListChanged": True, "taskIds": ["t-1", "t-2", 7]}

    assert asks("subscriptions/listen", {"notifications": filters}) == [task()]


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"notifications": {}},
        {"notifications": None},
        {"notifications": []},
        {"notifications": {"taskIds": []}},
        {"notifications": {"taskIds": None}},
        {"notifications": {"taskIds": "t-1"}},
        {"notifications": {"taskIds": [7]}},
        {"notifications": {"taskIds": [""]}},
        {"notifications": {"taskIds": {"0": "t-1"}}},
        {"taskIds": ["t-1"]},
    ],
)
def test_a_stream_that_lists_no_task_asks_for_nothing(params: dict[str, Any] | None) -> None:
    assert asks("subscriptions/listen", params) == []


@pytest.mark.parametrize("method", ["tasks/list", "tasks/result", "tools/list", "server/discover"])
def test_other_requests_ask_for_nothing(method: str) -> None:
    assert asks(method, {"taskId": "t-1"}) == []
    assert asks(method, None) == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","method":"tasks/get","params":{"taskId":"t-1"}}',
        b'{"jsonrpc":"2.0","method":"tools/call","params":{"requestState":"s-1"}}',
        b'[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"requestState":"s-1"}}]',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
    ],
)
def test_only_a_single_request_asks(body: bytes) -> None:
    assert asked(envelope.parse(body), body) == []


def test_a_request_asks_for_what_a_response_told() -> None:
    created = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"task","taskId":"t-1"}}'
    paused = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","requestState":"s-1"}}'

    assert asks("tasks/get", {"taskId": "t-1"}) == Tap(1024).whole(created)
    assert asks("tools/call", {"requestState": "s-1"}) == Tap(1024).feed(b"data: " + paused + b"\n\n")


# --- keys of owners --------------------------------------------------------------------------------


def test_the_key_of_an_owner_is_the_same_on_every_replica() -> None:
    assert owner_key("weather", "alice", task()) == SessionKey(
        "task:weather", b"4059d1fcf3e4bcf7e7b17a64f420bfc17c7a96d9"
    )
    assert owner_key("weather", "alice", state()) == SessionKey(
        "state:weather", b"2ea94a95c56e6cbd00d14ed1810f87102b447928"
    )


def test_owners_of_different_things_have_different_keys() -> None:
    things = [task("1"), state("1"), task("2"), task("1\0")]
    keys = {
        owner_key(pool, who, owned)
        for pool in ("weather", "news")
        for who in ("", "alice", "5:alice")
        for owned in things
    }

    assert len(keys) == 24
    assert len({key.name for key in keys}) == 24


@given(value=st.text(min_size=1))
def test_every_value_has_a_legal_key_that_does_not_show_it(value: str) -> None:
    key = owner_key("weather", "alice", state(value))

    assert is_session_id(key.session_id)
    assert len(key.session_id) == 40
    assert not key.route.startswith("/")
