"""``/sessions/import`` of the admin listener, with whole, broken and hostile backups."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from mcp_proxy.admin.backup import LINE_LIMIT
from mcp_proxy.admin.sessions import BATCH
from mcp_proxy.sessions import INITIALIZE_LIMIT, SessionKey, SessionRecord
from tests.unit.registered import BACKEND, KEY, Registered, ask, export_of, line, reason, restore

MOVED = SessionRecord(
    BACKEND, "someone", b"secret-upstream-id", 2, b'{"method":"initialize","secret":1}', 1_700_000_000
)


@pytest.fixture
def view() -> Registered:
    return Registered()


async def test_a_restore_skips_what_exists_or_was_ended(view: Registered) -> None:
    keys = [SessionKey("/mcp", b"%d" % number) for number in range(3)]
    view.store.create(keys[0], MOVED)
    view.store.create(keys[1], MOVED)
    view.store.delete(keys[1])

    answer = await restore(view, export_of([line(key) for key in keys]))

    assert answer.json() == {"restored": 1, "skipped": 2}
    assert view.store.get(keys[0], "someone") == MOVED
    assert view.store.get(keys[1], "") is None
    assert view.store.get(keys[2], "") == SessionRecord(BACKEND)


async def test_equal_names_in_a_backup_are_restored_once(view: Registered) -> None:
    answer = await restore(view, export_of([line(), line(backend="http://b/"), line(generation=9)]))

    assert answer.json() == {"restored": 1, "skipped": 2}
    assert view.store.get(KEY, "") == SessionRecord(BACKEND)


@pytest.mark.parametrize("size", [1, 3, 17, 1000])
async def test_the_pieces_in_which_a_backup_comes_mean_nothing(view: Registered, size: int) -> None:
    body = export_of([line(SessionKey("/mcp", b"%d" % number)) for number in range(20)])

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    assert (await restore(view, pieces())).json() == {"restored": 20, "skipped": 0}


async def test_the_last_line_feed_may_be_missing_and_lines_may_end_like_on_windows(view: Registered) -> None:
    body = export_of([line()]).replace(b"\n", b"\r\n").rstrip()

    assert (await restore(view, body)).json() == {"restored": 1, "skipped": 0}


async def test_two_hundred_thousand_sessions_are_restored_in_batches(view: Registered) -> None:
    def pieces() -> Iterable[bytes]:
        yield b'{"mcp_proxy_sessions":1}\n'
        for number in range(200_000):
            yield b'{"name":"%040x","backend":"http://a/"}\n' % number
        yield b'{"mcp_proxy_sessions_end":200000}\n'

    answer = await restore(view, b"".join(pieces()))

    assert answer.json() == {"restored": 200_000, "skipped": 0}
    assert max(view.restorations) <= BATCH


BAD_LINES: dict[str, Any] = {
    "a name that is too short": line(name="f" * 39),
    "a name in capitals": line(name="F" * 40),
    "a name with a line feed": line(name="f" * 40 + "\n"),
    "a name that is a number": line(name=1),
    "no name": {"backend": BACKEND},
    "no backend": {"name": KEY.name},
    "an empty backend": line(backend=""),
    "a backend with a space": line(backend="http://a b/"),
    "a backend without end": line(backend="x" * 3000),
    "a route that is none": line(route="mcp"),
    "a route with a NUL": line(route="/\0"),
    "an unknown key": line(secret_key=1),
    "a generation below zero": line(generation=-1),
    "a generation with a fraction": line(generation=1.5),
    "a generation that is true": line(generation=True),
    "a generation beyond all numbers": line(generation=10**30),
    "a time that is up": line(expires_in_s=0),
    "a time below zero": line(expires_in_s=-5),
    "a time without end": line(expires_in_s=1e300),
    "a time that is text": line(expires_in_s="100"),
    "an upstream id that splits the head": line(
        upstream_id=base64.b64encode(b"a\r\nX-Evil: 1").decode()
    ),
    "an upstream id that is too long": line(upstream_id=base64.b64encode(b"a" * 513).decode()),
    "an upstream id that is not base64": line(upstream_id="***"),
    "an initialize that is too long": line(
        initialize=base64.b64encode(b"a" * (INITIALIZE_LIMIT + 1)).decode()
    ),
    "a principal with a line feed": line(principal="a\nb"),
    "a list": [],
    "a number": 5,
    "null": None,
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
async def test_a_line_that_is_no_session_is_400_with_its_number(view: Registered, bad: Any) -> None:
    other = SessionKey("/mcp", b"other")

    answer = await restore(view, export_of([line(other), bad]))

    assert (answer.status_code, reason(answer)) == (400, "invalid_backup")
    assert "line 3 " in answer.text
    assert view.store.show(KEY.name) is None


RAW = {
    "nothing": (b"", "empty"),
    "a line feed": (b"\n", "line 1 "),
    "no backup": (b'{"sessions":[]}\n', "line 1 "),
    "another format": (b'{"mcp_proxy_sessions":2}\n', "format 2"),
    "a page": (b"<!doctype html>\n<title>x</title>\n", "line 1 "),
    "binary": (bytes(range(256)) * 10, "line 1 "),
    "compressed": (b"\x1f\x8b\x08" + b"\0" * 100, "line 1 "),
    "UTF-16": ('{"mcp_proxy_sessions":1}\n'.encode("utf-16"), "line 1 "),
    "a byte order mark": (b"\xef\xbb\xbf" + export_of([]), "line 1 "),
    "a header alone": (b'{"mcp_proxy_sessions":1}\n', "cut short"),
    "the first half": (export_of([line()])[:-50], "line 2 is not whole"),
    "no trailer": (export_of([line()]).rpartition(b'{"mcp')[0], "cut short"),
    "a trailer that counts too many": (export_of([line()], 2), "says 2 sessions and there are 1"),
    "a trailer that counts too few": (export_of([line()], 0), "says 0 sessions and there are 1"),
    "two backups": (export_of([line()]) * 2, "line 4 follows"),
    "an empty line": (export_of([line()]).replace(b"\n", b"\n\n", 1), "line 2 "),
    "bytes that are no text": (export_of([]).replace(b"\n", b'\n{"name":"\xff"}\n', 1), "line 2 "),
    "a line that is too long": (export_of([line(route="/" + "a" * LINE_LIMIT)]), "line 2 is longer"),
    "a line that never ends": (b'{"mcp_proxy_sessions":1}\n' + b"a" * (3 * LINE_LIMIT), "line 2 is longer"),
    "a pit of brackets": (b'{"mcp_proxy_sessions":1}\n' + b"[" * 60_000 + b"\n", "line 2 "),
    "a pit at the start": (b"[" * 60_000 + b"\n", "line 1 "),
    "a trailer that is none": (b'{"mcp_proxy_sessions":1}\n{"mcp_proxy_sessions_end":[]}\n', "line 2 "),
}


@pytest.mark.parametrize(("body", "says"), RAW.values(), ids=RAW.keys())
async def test_what_is_no_whole_backup_is_400_with_a_sentence(
    view: Registered, body: bytes, says: str
) -> None:
    answer = await restore(view, body)

    assert (answer.status_code, reason(answer)) == (400, "invalid_backup")
    assert says in answer.json()["error"]["detail"]


async def test_an_error_repeats_nothing_of_the_backup(view: Registered) -> None:
    upstream_id = base64.b64encode(b"hunter2 with a space").decode()
    answers = [
        await restore(view, export_of([line(upstream_id=upstream_id)])),
        await restore(view, export_of([line(hunter2=1)])),
        await restore(view, export_of([line(name="hunter2")])),
    ]

    assert not any("hunter2" in answer.text or upstream_id in answer.text for answer in answers)


async def test_an_error_says_what_was_restored_before_it(view: Registered) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield export_of([line()]).rpartition(b'{"mcp')[0]
        yield b"nonsense\n"

    answer = await restore(view, pieces())

    assert "line 3 " in answer.text
    assert "1 sessions were restored before that" in answer.text
    assert view.store.show(KEY.name) is not None


async def test_a_full_registry_says_what_was_restored_and_is_503() -> None:
    view = Registered(limit=2)

    answer = await restore(view, export_of([line(SessionKey("/mcp", b"%d" % n)) for n in range(3)]))

    assert (answer.status_code, reason(answer)) == (503, "store_unavailable")
    assert "full" in answer.text


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json", "multipart/form-data"])
async def test_what_a_page_could_send_without_asking_is_415(view: Registered, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}

    answer = await ask(view, "/sessions/import", "POST", content=export_of([line()]), headers=headers)

    assert answer.status_code == 415
    assert view.store.show(KEY.name) is None
