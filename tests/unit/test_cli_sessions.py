"""``mcp-proxy sessions list``, ``show`` and ``end``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mcp_proxy.admin.app import create_admin
from mcp_proxy.cli.session_client import Session
from mcp_proxy.cli.session_table import tables
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, Page, SessionKey, SessionRecord
from tests.unit.registered import BACKEND, Registered
from tests.unit.running import KEY, MOVED, Running, serving


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    view = Registered()
    async with serving(create_admin(view, None)) as address:
        yield Running(view, address)


# --- list -----------------------------------------------------------------------------------------


async def test_without_sessions_a_list_is_empty(running: Running) -> None:
    result = await running.run("list")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no sessions\n")


async def test_a_list_has_one_aligned_line_per_session(running: Running) -> None:
    names = running.view.fill(3)
    running.view.store.create(KEY, MOVED)

    title, *lines = (await running.run("list")).stdout.splitlines()

    assert [line.split()[0] for line in lines] == sorted([*names, KEY.name])
    assert title.split() == ["NAME", "POOL", "BACKEND", "AGE", "LEFT", "MOVES"]
    at = title.index("BACKEND")
    assert all(line[at:].startswith(BACKEND + "  ") for line in lines)
    assert max(map(len, lines)) <= 110


async def test_a_list_follows_all_pages(running: Running) -> None:
    names = running.view.fill(2500)

    result = await running.run("list", "--json")

    document = json.loads(result.stdout)
    assert [session["name"] for session in document["sessions"]] == names
    assert running.view.pages == [1000] * 3
    assert result.stderr == ""


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_any_number_of_sessions_is_one_json_document(running: Running, count: int) -> None:
    running.view.fill(count)

    document = json.loads((await running.run("list", "--json")).stdout)

    assert len(document["sessions"]) == count


async def test_a_limit_is_kept_over_pages_and_pools(running: Running) -> None:
    running.view.fill(1500)
    running.view.fill(30, "/other")

    for args, count in [
        (["--limit", "1"], 1),
        (["--limit", "1200"], 1200),
        (["--limit", "9999"], 1530),
        (["--pool", "other"], 30),
        (["--pool", "other", "--limit", "7"], 7),
        (["--pool", "nosuch"], 0),
    ]:
        document = json.loads((await running.run("list", "--json", *args)).stdout)
        assert len(document["sessions"]) == count, args


async def test_titles_wait_for_the_first_session(running: Running) -> None:
    running.view.fill(1)
    page = [session async for session in _listed(running)]

    assert [len(text.splitlines()) for text in tables([[], page, [], page])] == [2, 1]


async def _listed(running: Running) -> AsyncIterator[Any]:
    for session in json.loads((await running.run("list", "--json")).stdout)["sessions"]:
        yield Session(**session)


# --- show and end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [[KEY.name], [KEY.name[:8]], [KEY.name[:39]], ["--id", "secret-session-id"], ["--id-file", "-"]],
    ids=["name", "prefix", "longer prefix", "id", "id on stdin"],
)
async def test_a_session_is_shown_by_its_name_a_prefix_or_its_id(running: Running, args: list[str]) -> None:
    running.view.fill(20)
    running.view.store.create(KEY, MOVED)

    shown = await running.run("show", *args, stdin=b"secret-session-id\r\n")
    document = await running.run("show", "--json", *args, stdin=b"secret-session-id")

    assert shown.exit_code == document.exit_code == 0
    facts = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert (facts["name"], facts["pool"], facts["backend"]) == (KEY.name, "main", BACKEND)
    assert facts["created"].startswith("2023-11-14 22:13:20 UTC")
    assert json.loads(document.stdout)["name"] == KEY.name
    assert "secret" not in shown.output + document.output


async def test_the_route_is_a_part_of_the_id(running: Running) -> None:
    running.view.store.create(SessionKey("/other", b"x"), MOVED)

    assert (await running.run("show", "--id", "x")).exit_code == 1
    assert (await running.run("show", "--id", "x", "--route", "/other")).exit_code == 0


async def test_sessions_are_ended_and_the_others_reported(running: Running) -> None:
    names = running.view.fill(3)

    result = await running.run("end", names[0], "f" * 40, names[1][:12])

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"ended {names[0]}", f"ended {names[1]}"]
    assert result.stderr.startswith("f" * 40 + ": there is no such session")
    assert running.view.store.count("/mcp") == 1


async def test_a_session_is_ended_by_its_id(running: Running) -> None:
    running.view.store.create(KEY, MOVED)

    result = await running.run("end", "--id-file", "-", stdin=b"secret-session-id\n")

    assert (result.exit_code, result.stdout) == (0, f"ended {KEY.name}\n")


async def test_an_ambiguous_prefix_ends_nothing(running: Running) -> None:
    twins = ["abcdef12" + digit * 32 for digit in "01"]
    running.view.store.restore([Listed(name, "", MOVED, None) for name in twins])

    result = await running.run("end", "abcdef12")

    assert result.exit_code == 1
    assert all(name in result.stderr for name in twins)
    assert all(running.view.store.show(name) for name in twins)


@pytest.mark.parametrize(
    "args",
    [
        ["show"], ["end"], ["show", "abc"], ["show", "xyz-not-hex"], ["show", "A" * 40], ["end", "f" * 41],
        ["show", "../export"], ["show", "f" * 40, "--id", "x"], ["show", "--id", ""], ["show", "--id", "a b"],
        ["show", "--id", "x" * 513], ["list", "--limit", "0"], ["list", "--admin", "off"],
        ["list", "--admin", "ftp://localhost"], ["list", "--admin", "http://user:pw@localhost"],
        ["list", "--admin", "localhost:port"], ["list", "--admin", "http://localhost/?a=b"],
        ["list", "--token", "hunter2"], ["list", "--token", "env:NO_SUCH_VARIABLE"],
        ["import", "/nonexistent/file"], ["show", "--id-file", "/nonexistent/file"],
    ],
)  # fmt: skip
async def test_bad_usage_is_2_and_asks_nobody(running: Running, args: list[str]) -> None:
    running.view.failure = StoreError("asked")

    result = await running.run(*args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "asked" not in result.stderr
    assert "pw" not in result.stderr


async def test_what_is_not_known_of_a_restored_session_is_said_in_words(running: Running) -> None:
    bare = SessionRecord("http://gone.example/mcp", created_s=2**53)
    running.view.store.restore([Listed(KEY.name, "", bare, None)])

    shown = (await running.run("show", KEY.name)).stdout
    listed = (await running.run("list")).stdout

    assert "not known: its client was not here yet" in shown
    assert "none of this configuration" in shown
    assert f"created    {2**53}" in shown
    assert listed.splitlines()[1].split()[1] == "-"


async def test_a_prefix_of_nothing_is_1(running: Running) -> None:
    running.view.fill(3)

    result = await running.run("show", "00000000")

    assert result.exit_code == 1
    assert "no such session" in result.stderr


async def test_a_prefix_is_not_looked_for_without_end() -> None:
    class Endless(Registered):
        async def sessions_page(self, cursor: str, limit: int) -> Page:
            self.pages.append(limit)
            return Page([], str(len(self.pages)))

    view = Endless()
    async with serving(create_admin(view, None)) as address:
        result = await Running(view, address).run("end", "00000000")

    assert result.exit_code == 1
    assert "give all 40 digits" in result.stderr
    assert len(view.pages) == 100
