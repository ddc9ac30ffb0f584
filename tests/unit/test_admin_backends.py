"""``/backends`` of the admin listener: seen, drained, taken back; and ``POST /drain``, ``/config``."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.unit.operated import ONE, SIX, TWO, Operated, backend
from tests.unit.registered import ask, reason

TOKEN = "correct horse battery staple"


@pytest.fixture
def view() -> Operated:
    return Operated()


def at(id: str, more: str = "") -> str:
    return f"/backends/{quote(id, safe='')}{more}"


# --- seen -------------------------------------------------------------------------------------------


async def test_every_backend_of_every_pool_is_listed(view: Operated) -> None:
    backends = (await ask(view, "/backends")).json()["backends"]

    assert [(each["pool"], each["id"]) for each in backends] == [
        ("weather", ONE),
        ("weather", TWO),
        ("other", ONE),
        ("other", SIX),
    ]
    assert backends[0] == {
        "id": ONE, "up": True, "sessions": 3, "inflight": 1, "streams": 2, "pool": "weather", "weight": 2,
        "state": "up", "era": "legacy", "drain": None, "ejections": 0,
    }  # fmt: skip


async def test_a_list_of_one_pool_has_no_other(view: Operated) -> None:
    backends = (await ask(view, "/backends?pool=other")).json()["backends"]

    assert [each["id"] for each in backends] == [ONE, SIX]
    assert (await ask(view, "/backends?pool=nosuch")).json() == {"backends": []}


@pytest.mark.parametrize("id", [ONE, TWO, SIX])
@pytest.mark.parametrize("safe", ["", ":/", ":/[]"], ids=["encoded", "half", "as it is"])
async def test_a_backend_is_found_by_its_id_however_much_of_it_is_encoded(
    view: Operated, id: str, safe: str
) -> None:
    answer = await ask(view, "/backends/" + quote(id, safe=safe))

    assert answer.status_code == 200
    assert {each["id"] for each in answer.json()["backends"]} == {id}


async def test_a_backend_in_two_pools_is_shown_in_both_or_in_the_one_asked_for(view: Operated) -> None:
    both = (await ask(view, at(ONE))).json()["backends"]
    one = (await ask(view, at(ONE, "?pool=other"))).json()["backends"]

    assert [each["pool"] for each in both] == ["weather", "other"]
    assert [(each["pool"], each["era"]) for each in one] == [("other", "modern")]


@pytest.mark.parametrize(
    "path",
    [
        "/backends/x",
        "/backends/",
        at("http://10.0.0.11:8000"),
        at(ONE + "/"),
        at(ONE, "x"),
        at(TWO, "?pool=other"),
    ],
)
@pytest.mark.parametrize("more", ["GET", "POST", "DELETE"])
async def test_what_is_no_backend_is_404(view: Operated, path: str, more: str) -> None:
    path, _, query = path.partition("?")
    if more != "GET":
        path += "/drain"

    answer = await ask(view, f"{path}?{query}", more)

    assert (answer.status_code, reason(answer)) == (404, "backend_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/backends?pol=x"),
        ("GET", "/backends?pool=a&pool=b"),
        ("GET", at(ONE, "?x=")),
        ("POST", at(ONE, "/drain?pools=weather")),
        ("DELETE", at(ONE, "/drain?for=5m")),
    ],
)
async def test_a_query_that_makes_no_sense_is_400_and_changes_nothing(
    view: Operated, method: str, path: str
) -> None:
    answer = await ask(view, path, method)

    assert (answer.status_code, reason(answer)) == (400, "bad_query")
    assert view.asked == []


# --- drained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "body", "seconds"),
    [
        ("", b"", None),
        ("", b"{}", None),
        ("", b" \n", None),
        ("", b'{"for": null}', None),
        ("", b'{"for": "5m"}', 300.0),
        ("", b'{"for":"0s"}', 0.0),
        ("?for=500ms", b"", 0.5),
        ("?for=0s", b"{}", 0.0),
    ],
)
async def test_a_drain_takes_as_long_as_the_order_says(
    view: Operated, query: str, body: bytes, seconds: float | None
) -> None:
    answer = await ask(view, at(TWO, "/drain" + query), "POST", content=body)

    assert answer.status_code == 200
    assert view.asked == [("drain", TWO, None, seconds)]
    (shown,) = answer.json()["backends"]
    assert (shown["pool"], shown["state"]) == ("weather", "draining")
    assert shown["drain"] == {
        "by": "operator",
        "left_s": 300.0 if seconds is None else seconds,
        "sessions": 0,
    }


@pytest.mark.parametrize("id", [ONE, SIX])
async def test_a_drain_meets_every_pool_that_has_the_backend_or_the_one_that_is_named(
    view: Operated, id: str
) -> None:
    everywhere = await ask(view, at(id, "/drain"), "POST")
    one = await ask(view, at(id, "/drain?pool=other"), "POST")

    pools = ["weather", "other"] if id == ONE else ["other"]
    assert [each["pool"] for each in everywhere.json()["backends"]] == pools
    assert [each["pool"] for each in one.json()["backends"]] == ["other"]


async def test_a_drain_is_taken_back(view: Operated) -> None:
    await ask(view, at(ONE, "/drain"), "POST")

    answer = await ask(view, at(ONE, "/drain?pool=other"), "DELETE")

    assert [(each["state"], each["drain"]) for each in answer.json()["backends"]] == [("up", None)]
    assert view.asked[-1] == ("undrain", ONE, "other", None)
    shown = (await ask(view, at(ONE))).json()["backends"]
    assert [each["state"] for each in shown] == ["draining", "up"]


@pytest.mark.parametrize(
    ("query", "body", "word"),
    [
        ("", b'{"for": "5"}', "bad_duration"),
        ("", b'{"for": "none"}', "bad_duration"),
        ("", b'{"for": "-5s"}', "bad_duration"),
        ("", b'{"for": "9999d"}', "bad_duration"),
        ("?for=", b"", "bad_duration"),
        ("?for=secret", b"", "bad_duration"),
        ("", b'{"for": 5}', "bad_body"),
        ("", b'{"four": "5m"}', "bad_body"),
        ("", b"[]", "bad_body"),
        ("", b'{"for": "5m"', "bad_body"),
        ("", b"for=5m", "bad_body"),
        ("", b'{"for": "5m"}' + b" " * 2000, "bad_body"),
        ("", b"[" * 1000, "bad_body"),
        ("?for=5m", b'{"for": "5m"}', "bad_query"),
    ],
)
async def test_an_order_that_makes_no_sense_is_400_and_drains_nothing(
    view: Operated, query: str, body: bytes, word: str
) -> None:
    answer = await ask(view, at(ONE, "/drain" + query), "POST", content=body)

    assert (answer.status_code, reason(answer)) == (400, word)
    assert "secret" not in answer.text
    assert view.asked == []


async def test_a_backend_whose_own_path_ends_in_drain_is_meant_only_by_its_whole_id(view: Operated) -> None:
    long, short = "http://10.0.0.9:80/mcp/drain", "http://10.0.0.9:80/mcp"
    view.pools["other"] |= {long: backend(long), short: backend(short)}

    assert (await ask(view, at(long))).json()["backends"][0]["id"] == long
    assert (await ask(view, at(long), "POST")).status_code in (404, 405)
    assert view.asked == []
    assert (await ask(view, at(long, "/drain"), "POST")).json()["backends"][0]["id"] == long


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH"])
@pytest.mark.parametrize("path", ["/drain", at(ONE, "/drain")])
async def test_nothing_changes_by_any_other_method(view: Operated, method: str, path: str) -> None:
    assert (await ask(view, path, method)).status_code in (404, 405)
    assert view.asked == []


# --- the proxy ----------------------------------------------------------------------------------------


async def test_the_proxy_is_drained(view: Operated) -> None:
    answer = await ask(view, "/drain", "POST")

    assert (answer.status_code, answer.json()) == (202, {"draining": True})
    assert view.asked == [("drain_proxy", "", None, None)]


async def test_the_configuration_is_shown(view: Operated) -> None:
    answer = await ask(view, "/config")

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == view.configuration()


# --- who may ------------------------------------------------------------------------------------------

CHANGES = [
    ("POST", "/drain"),
    ("POST", at(ONE, "/drain")),
    ("DELETE", at(ONE, "/drain")),
    ("PUT", "/log-level"),
]
READS = [
    ("GET", "/config"),
    ("GET", "/backends"),
    ("GET", at(ONE)),
    ("GET", "/events"),
    ("GET", "/log-level"),
    ("GET", "/openapi.json"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES + READS)
async def test_everything_wants_the_token(view: Operated, method: str, path: str) -> None:
    answer = await ask(view, path, method, token=TOKEN)

    assert (answer.status_code, reason(answer)) == (401, "token_required")
    assert view.asked == []


@pytest.mark.parametrize(("method", "path"), CHANGES + READS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"host": "evil.example"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
async def test_a_page_of_another_origin_can_trigger_nothing(
    view: Operated, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = await ask(view, path, method, headers=headers)

    assert answer.status_code in (403, 421)
    assert view.asked == []


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_a_form_on_another_page_that_leads_here_changes_nothing(
    view: Operated, method: str, path: str
) -> None:
    form = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}

    assert (await ask(view, path, method, headers=form)).status_code == 403
    assert view.asked == []
    assert (await ask(view, "/", headers=form)).status_code == 200, "a link is fine"


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_a_page_of_the_listener_and_a_person_may_ask(view: Operated, site: str) -> None:
    assert (await ask(view, "/backends", headers={"sec-fetch-site": site})).status_code == 200
