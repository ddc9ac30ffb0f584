"""Reports of a load test: one page for people, JSON and CSV for programs, lines for the terminal.

Rules of this package: everything is made from a ``Summary``; nothing is measured or decided here.
"""

from __future__ import annotations

from pathlib import Path

from mcp_proxy.load.summary import Summary

PAGE = "report.html"
DOCUMENT = "report.json"
LOCUST = "locust.html"
"""Written by the generator, of a run of one process on one endpoint."""


def prepare(folder: Path) -> None:
    """Make sure that it can be written to, and that it holds no page of an earlier run that ``write`` would
    not replace. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCUST).unlink(missing_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()


def write(summary: Summary, folder: Path) -> None:
    """All files of the report. ``folder`` exists; what is there of these names is replaced."""
    from mcp_proxy.load.report.files import document, failures_csv, history_csv, operations_csv
    from mcp_proxy.load.report.page import page

    (folder / PAGE).write_text(page(summary))
    (folder / DOCUMENT).write_bytes(document(summary))
    (folder / "operations.csv").write_text(operations_csv(summary))
    (folder / "history.csv").write_text(history_csv(summary))
    (folder / "failures.csv").write_text(failures_csv(summary))
