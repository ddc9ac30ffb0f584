"""A pool under any order of events, as its model says, and in the long run."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings

from mcp_proxy.backends import Endpoint
from mcp_proxy.backends.balance import BALANCES
from mcp_proxy.backends.ejection import Rule
from mcp_proxy.pools import Pool, PoolPolicy
from tests.unit.pool_model import (
    CONNECTS,
    DRAIN_TIMES,
    EJECT_RULES,
    FAILURES,
    HOSTS,
    LOST_AFTER,
    PAUSES,
    ROUTES,
    STATUSES,
    UNDRAIN,
    HeldTransport,
    PoolAgainstModel,
    Stepper,
)
from tests.unit.poolside import endpoint

PoolAgainstModel.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestPoolAgainstModel = PoolAgainstModel.TestCase


def a_policy(random: Random) -> PoolPolicy:
    return PoolPolicy(
        balance=random.choice(sorted(BALANCES)),
        lost_after_s=random.choice(LOST_AFTER),
        drain_s=random.choice(DRAIN_TIMES),
        slow_start_s=random.choice((None, 5.0)),
        eject=random.choice(EJECT_RULES),
        is_modern=random.choice((None, None, True)),
    )


def some_endpoints(random: Random) -> list[Endpoint]:
    hosts = random.sample(HOSTS, random.choice((1, 2, 2, 3, 3)))
    return [endpoint(host, weight=random.randint(1, 4), is_open=random.random() < 0.8) for host in hosts]


def one_step(pool: PoolAgainstModel, random: Random) -> None:
    pick, number = random.choice, random.randrange(3)
    steps: list[tuple[int, Callable[[], None]]] = [
        (6, lambda: pool.hear(number, pick((*STATUSES, *FAILURES, *CONNECTS)))),
        (5, lambda: pool.pass_time(pick(PAUSES))),
        (10, lambda: pool.end(number)),
        (4, lambda: pool.look(number, pick((True, False, None)))),
        (2, lambda: pool.update(some_endpoints(random), pick(("discovery", "reload")))),
        (2, lambda: pool.operate(number, pick((None, 0.0, 60.0, UNDRAIN, UNDRAIN)))),
        (1, lambda: pool.reload(pick((None, a_policy(random))))),
        (2, lambda: pool.check(number, pick((True, True, False)), pick((True, False)))),
        (2, lambda: pool.pinned_request(number)),
        (2, lambda: pool.session(pick(ROUTES), random.randrange(4), pick(("", *HOSTS)))),
        (1, lambda: pool.lead(pick(ROUTES))),
        (1, lambda: pool.ask_for_stranger(pick(HOSTS))),
        (
            6,
            lambda: pool.requests_come(
                set(random.sample(HOSTS, pick((0, 0, 0, 1, 2)))),
                pick((None, b"ann", b"bob")),
                pick((True, False)),
                pick((True, False)),
                pick((1, 2)),
            ),
        ),
    ]
    random.choices([step for _, step in steps], [share for share, _ in steps])[0]()


@pytest.mark.parametrize("seed", range(4))
def test_a_long_life_of_a_pool_is_as_the_model_says(seed: int) -> None:
    """What needs more steps than a counterexample that can be read."""
    random = Random(seed)
    pool = PoolAgainstModel()
    pool.begin(a_policy(random), some_endpoints(random))
    for _ in range(10_000):
        one_step(pool, random)
        pool.everybody_is_as_the_model_says()
        pool.sessions_are_counted_where_they_live()
        pool.every_transport_is_closed_once_and_not_before_its_time()
    pool.teardown()


# --- in the long run ---------------------------------------------------------------------------------


def weight(thing: object, seen: set[int]) -> int:
    """How many objects of ours, and entries of containers, hang on it."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, Callable)):  # type: ignore[arg-type]
        return 0
    seen.add(id(thing))
    if isinstance(thing, dict):
        return len(thing) + sum(weight(part, seen) for pair in thing.items() for part in pair)
    if isinstance(thing, (list, tuple, set, frozenset)):
        return len(thing) + sum(weight(part, seen) for part in thing)
    if not type(thing).__module__.startswith("mcp_proxy"):
        return 0
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    parts = [getattr(thing, name, None) for name in slots] + list(getattr(thing, "__dict__", {}).values())
    return 1 + sum(weight(part, seen) for part in parts)


def test_nothing_grows_without_bound() -> None:
    """Of a pool whose backends never come back, as pods do not."""
    random = Random(7)
    time = [1000.0]
    tasks = Stepper()
    policy = PoolPolicy(drain_s=1.0, slow_start_s=5.0, eject=Rule(1, 5.0, 1.0), lost_after_s=1.0)
    pool = Pool("pool", policy, lambda backend: HeldTransport(backend, []), tasks, lambda: time[0])
    weights = []
    for step in range(10_000):
        time[0] += 1.0
        pool.update([endpoint(f"h{number}") for number in range(step, step + 4)], "discovery")
        for backend in pool.backends:
            act = random.randrange(7)
            if act == 0:
                pool.refused(backend)
            elif act == 1:
                pool.answered(backend, random.choice((200, 500)))
            elif act == 2:
                pool.checked(backend, random.random() < 0.5)
            elif act == 3:
                pool.learn_era(backend, random.random() < 0.5)
            elif act == 4:
                pool.drain(backend, "operator")
            pool.next((), random.choice((None, b"ann")), is_modern=random.random() < 0.5)
        assert pool.has_left(f"stranger{step}") is False
        pool.sweep(time[0])
        tasks.turn()
        while tasks.waiting:
            tasks.resume(0, random.choice((True, False, None)))
        if step % 1000 == 999:
            weights.append(weight(pool, set()))
    assert len(pool.backends) < 12
    assert max(weights[5:]) < 1.2 * max(weights[:5]), weights  # what dictionaries keep goes up and down
