"""What every test shares, and nothing else: the event loop that the proxy runs on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """uvloop, as in production. A module whose subject depends on the loop parametrises it itself."""
    return "asyncio", {"use_uvloop": True}
