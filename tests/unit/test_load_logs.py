"""What ``make load`` looks for in the logs of its replicas when all have ended.

Rules of this file: logs are files that the test has written.
"""

from __future__ import annotations

from pathlib import Path

from tests.load.stage import tracebacks


def test_the_log_of_every_start_of_every_replica_is_looked_at(tmp_path: Path) -> None:
    for replica, start in ((0, 1), (0, 2), (1, 1)):
        folder = tmp_path / f"replica-{replica}" / f"start-{start}"
        folder.mkdir(parents=True)
        (folder / "stdout").write_text("{}\n")
        (folder / "stderr").write_text("INFO it listens\n")
    assert tracebacks(tmp_path) == []
    (tmp_path / "replica-0" / "start-1" / "stderr").write_text(
        "INFO it drains\nTraceback (most recent call last):\nZeroDivisionError\n"
    )
    (found,) = tracebacks(tmp_path)
    assert found.startswith("replica-0/start-1")
    assert "it drains" in found
    assert "ZeroDivisionError" in found
