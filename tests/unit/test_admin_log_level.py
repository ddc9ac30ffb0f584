"""``/log-level`` and ``mcp-proxy log-level``: show the level, change it, refuse what is none."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.admin.app import create_admin
from mcp_proxy.admin.bodies import BODY_LIMIT
from mcp_proxy.telemetry.app_log import LEVELS, Level
from tests.unit.operated import Operated
from tests.unit.operating import run
from tests.unit.registered import ask, reason
from tests.unit.running import serving


@pytest.fixture
def view() -> Operated:
    return Operated()


@pytest.fixture
async def address(view: Operated) -> AsyncIterator[str]:
    async with serving(create_admin(view, None)) as address:
        yield address


async def test_the_level_is_shown(view: Operated) -> None:
    answer = await ask(view, "/log-level")

    assert (answer.status_code, answer.json()) == (200, {"level": "info"})


@pytest.mark.parametrize("level", LEVELS)
async def test_the_level_is_changed_and_the_log_says_so(
    view: Operated, level: Level, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(view, "/log-level", "PUT", json={"level": level})

    assert (answer.status_code, answer.json()) == (200, {"level": level})
    assert view.level == level
    (said,) = caplog.records
    assert (said.levelno, said.name) == (logging.WARNING, "mcp_proxy")
    assert said.getMessage() == f"log level: changed from info to {level} by 127.0.0.1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"debug",
        b'"debug"',
        b'{"level": "loud"}',
        b'{"level": "DEBUG"}',
        b'{"level": 10}',
        b'{"level": null}',
        b"{}",
        b'{"level": "debug", "logger": "root"}',
        b"[" * BODY_LIMIT,
        b'{"level": "debug"}' + b" " * BODY_LIMIT,
        b'{"level": "\xff"}',
        b"level=debug",
    ],
)
async def test_what_is_no_level_changes_nothing_and_the_levels_are_named(
    view: Operated, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(view, "/log-level", "PUT", content=body)

    assert (answer.status_code, reason(answer)) == (400, "bad_body")
    assert all(level in answer.json()["error"]["detail"] for level in LEVELS)
    assert view.asked == []
    assert caplog.records == []


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
async def test_there_is_no_other_way_to_change_it(view: Operated, method: str) -> None:
    answer = await ask(view, "/log-level", method, json={"level": "debug"})

    assert answer.status_code == 405
    assert view.asked == []


# --- the command ---------------------------------------------------------------------------------------


async def test_the_command_shows_and_changes_it(view: Operated, address: str) -> None:
    shown = await run(address, "log-level")
    changed = await run(None, "log-level", "debug", "--admin", address)

    assert [(each.exit_code, each.stdout) for each in (shown, changed)] == [(0, "info\n"), (0, "debug\n")]
    assert view.level == "debug"


async def test_the_command_knows_the_levels(view: Operated, address: str) -> None:
    result = await run(address, "log-level", "loud")

    assert result.exit_code == 2
    assert all(level in result.stderr for level in LEVELS)
    assert view.asked == []


async def test_the_command_says_when_nobody_answers() -> None:
    result = await run("127.0.0.1:1", "log-level", "debug")

    assert result.exit_code == 1
    assert "is the proxy running" in result.stderr
