"""Every store, under any history: the invariants of the session registry, on a real Redis.

HYPOTHESIS_PROFILE=nightly searches longer, and elsewhere every night. What fails is printed as a program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.state.machine import AnyHistory
from tests.state.registry import AgeingRedis
from tests.state.replica import SHAPES
from tests.tools.redis_server import RedisServer

PROFILES: Final = {
    # The same histories in every run: a change that breaks nothing must not fail by bad luck.
    "brief": settings(max_examples=25, stateful_step_count=40, derandomize=True, database=None),
    "nightly": settings(max_examples=200, stateful_step_count=60, print_blob=True),
}
PROFILE: Final = settings(
    PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "brief")],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def redis() -> Iterator[AgeingRedis]:
    with RedisServer() as server:
        yield AgeingRedis(server)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", SHAPES)
def test_no_history_breaks_the_invariants(store: str, redis: AgeingRedis) -> None:
    history = type(f"AnyHistoryOf_{store}", (AnyHistory,), {"shape": store, "server": redis})

    run_state_machine_as_test(history, settings=PROFILE)
