"""The command beside the load: how it is ended, and what is said of it.

Rules of this file: commands are real. What a command waits for does not come; nothing here waits for a clock.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from mcp_proxy.load import conduct
from mcp_proxy.load.campaign import _judged
from mcp_proxy.load.conduct import During, _Command
from tests.tools import PATIENCE_S
from tests.unit.loadrig import until


@pytest.mark.parametrize(
    "text",
    ["{stays}", 'sh -c "{stays}"; true'],
    ids=["the shell", "its child"],
)
def test_a_command_that_does_not_want_to_end_is_ended(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, held = tmp_path / "never", tmp_path / "held"
    os.mkfifo(never)
    os.mkfifo(held)
    end = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    stays = f"trap '' TERM; exec 3>{held}; echo here; cat {never}"
    monkeypatch.setattr(conduct, "GRACE_S", 0.1)
    command = _Command(text.format(stays=stays))
    command.start()
    process = command._process
    assert process is not None
    try:
        until(lambda: command.finish().output == "here")
        command.kill()
        assert process.returncode is not None
        assert select.select([end], [], [], PATIENCE_S)[0], "somebody of the group still holds it"
    finally:
        os.close(os.open(never, os.O_RDWR))  # whoever is left, ends
        os.close(end)


@pytest.mark.parametrize(
    ("during", "actual"),
    [
        (During("x"), "it never ran"),
        (During("x", None, 2.0, has_begun=True), "it had not ended after 2.0 s"),
        (During("x", 3, 2.0, has_begun=True), "ended with 3 after 2.0 s"),
    ],
)
def test_what_became_of_the_command_is_said(during: During, actual: str) -> None:
    (verdict,) = _judged(during)
    assert (verdict.actual, verdict.is_kept) == (actual, False)


def test_a_command_that_still_runs_has_begun(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "door")
    command = _Command(f"cat {tmp_path / 'door'}")
    assert not command.finish().has_begun
    command.start()
    during = command.finish()
    command.kill()
    assert (during.has_begun, during.exit_code) == (True, None)
    assert during.seconds > 0
