"""What every test shares, and nothing else: the event loop that the proxy runs on, and that examples are
judged by what comes out, not by how long a busy machine takes for them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """uvloop, as in production. A module whose subject depends on the loop parametrises it itself."""
    return "asyncio", {"use_uvloop": True}
