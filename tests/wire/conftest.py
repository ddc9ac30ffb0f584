"""One proxy per module, one check per case.

A module may lay ``CONFIG`` over the configuration and set ``BACKENDS``; a case that needs another
configuration starts a ``bench`` of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.wire.rig import Rig, bench, case


@pytest.fixture(scope="module")
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Rig]:
    """The module's proxy; cases use ``rig``."""
    folder = tmp_path_factory.mktemp("proxy")
    over = getattr(request.module, "CONFIG", {})
    backends = getattr(request.module, "BACKENDS", 1)
    async with bench(folder, over, backends=backends) as rig:
        yield rig


@pytest.fixture
async def rig(shared: Rig) -> AsyncIterator[Rig]:
    """The module's proxy in its clean state, checked afterwards."""
    fresh = Rig(shared.proxy, shared.backends)
    async with case(fresh):
        yield fresh
