"""The status page and the description of the interface: what a browser and a generator get."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import pytest
from openapi_spec_validator import validate
from starlette.routing import Route

from mcp_proxy.admin.app import create_admin
from mcp_proxy.admin.contract import OPERATIONS
from tests.unit.operated import ONE, Operated
from tests.unit.registered import ask

TOKEN = "correct horse battery staple"


@pytest.fixture
def view() -> Operated:
    return Operated()


# --- the page -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_the_page_is_there_with_or_without_a_token_and_holds_no_data(
    view: Operated, token: str | None
) -> None:
    answer = await ask(view, "/", token=token)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "10.0.0.11" not in answer.text
    assert (await ask(view, "/", "POST", token=token)).status_code == 405


async def test_the_policy_lets_the_page_run_its_own_script_and_nothing_else(view: Operated) -> None:
    answer = await ask(view, "/")

    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


@pytest.mark.parametrize(
    "sink",
    [
        r"innerHTML", r"outerHTML", r"insertAdjacent", r"document\.write", r"\beval\b", r"new Function",
        r"localStorage", r"sessionStorage", r"cookie", r"https?://", r" style=", r" on[a-z]+=", r"<iframe",
        r"@import", r"url\(",
    ],
)  # fmt: skip
async def test_the_page_has_nothing_that_turns_data_into_markup_keeps_it_or_asks_somebody_else(
    view: Operated, sink: str
) -> None:
    assert re.search(sink, (await ask(view, "/")).text) is None


# --- the description ----------------------------------------------------------------------------------


async def described(view: Operated) -> dict[str, Any]:
    document: dict[str, Any] = (await ask(view, "/openapi.json")).json()
    return document


async def test_the_description_is_valid(view: Operated) -> None:
    document = await described(view)

    assert document["openapi"].startswith("3.1")
    validate(document)


async def test_every_route_is_described_and_every_description_has_its_route(view: Operated) -> None:
    document = await described(view)

    routes = create_admin(view, None).routes
    served = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert len(routes) == len(document["paths"])
    assert served == told == {(operation.path, operation.method) for operation in OPERATIONS}


async def test_every_operation_has_a_name_of_its_own_and_says_what_it_does(view: Operated) -> None:
    operations = [
        operation for methods in (await described(view))["paths"].values() for operation in methods.values()
    ]

    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert all(answer["description"] for answer in operation["responses"].values())


async def test_only_health_and_the_page_need_no_token(view: Operated) -> None:
    document = await described(view)

    is_open = {
        path for path, methods in document["paths"].items() if methods.get("get", {}).get("security") == []
    }
    assert is_open == {"/", "/livez", "/readyz"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("401" in operation["responses"]) is (path not in is_open)


@pytest.mark.parametrize("path", ["/status.json", "/backends", "/backends/{id}", "/sessions"])
async def test_an_answer_has_the_keys_that_are_described(view: Operated, path: str) -> None:
    view.fill(1)
    document = await described(view)

    answer = (await ask(view, path.replace("{id}", ONE))).json()

    ok = document["paths"][path]["get"]["responses"]["200"]
    _check(answer, ok["content"]["application/json"]["schema"], document)


def _check(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """``value`` has exactly the keys of ``schema``, all the way down."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        assert value.keys() <= schema["properties"].keys()
        assert set(schema["required"]) <= value.keys()
        for name, each in value.items():
            _check(each, schema["properties"][name], document)
    elif isinstance(value, list):
        assert value
        for each in value:
            _check(each, schema["items"], document)
    elif isinstance(value, dict):
        for each in value.values():
            _check(each, schema["additionalProperties"], document)
