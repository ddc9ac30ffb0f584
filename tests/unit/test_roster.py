"""Who is next of a pool: grades, eras, affinity, warming up; and that nothing is left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from math import ceil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends import Backend, Standing
from mcp_proxy.backends.balance import BALANCES
from mcp_proxy.backends.rendezvous import Rendezvous
from mcp_proxy.backends.roster import COLD, Roster
from mcp_proxy.backends.tally import CROWDED
from tests.unit.lineup import make, stand

GOOD, TRIAL, POOR, CLOSED = Standing.GOOD, Standing.TRIAL, Standing.POOR, Standing.CLOSED
STANDINGS = {"g": GOOD, "t": TRIAL, "p": POOR, "c": CLOSED}
ERAS = {"m": True, "l": False, "?": None}


def roster(
    backends: Iterable[Backend], balance: str = "round_robin", slow_start_s: float | None = None
) -> Roster:
    made = Roster("weather", balance, slow_start_s=slow_start_s, random=Random(1).random)
    for backend in backends:
        made.put(backend)
    return made


def chosen(
    roster: Roster,
    count: int = 1,
    *tried: str,
    affinity: bytes | None = None,
    opens_session: bool = False,
    is_modern: bool = False,
) -> str:
    ids = tuple(make(name).id for name in tried)
    picks = [
        roster.next(ids, affinity, opens_session=opens_session, is_modern=is_modern) for _ in range(count)
    ]
    return "".join("-" if pick is None else pick.host for pick in picks)


def of(text: str) -> list[Backend]:
    """Such as ``gm p?``: a good modern one, ``a``, and a poor one of which the era is not known, ``b``."""
    return [
        make(name, standing=STANDINGS[letters[0]], is_modern=ERAS[letters[1]])
        for name, letters in zip("abcdef", text.split(), strict=False)
    ]


@pytest.fixture(params=list(BALANCES))
def balance(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# --- grades ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("affinity", [None, b"caller"])
@pytest.mark.parametrize(
    ("backends", "tried", "expected"),
    [
        ("", "", "-"),
        ("c?", "", "-"),
        ("g? p? c?", "", "a"),
        ("g? p? c?", "a", "b"),
        ("g? p? c?", "ab", "-"),
        ("p? p? g?", "", "c"),
        ("p? c? p?", "", "ac"),
        ("p? c? p?", "c", "a"),
        ("g? t? g?", "", "b"),
        ("g? t? p?", "b", "a"),
        ("t? t? p?", "", "a"),
        ("t? t? p?", "a", "b"),
        ("t? t? p?", "ab", "c"),
        ("t? t? p?", "abc", "-"),
        ("t?", "a", "-"),
    ],
)
def test_good_backends_come_before_poor_ones_and_one_on_trial_before_all(
    balance: str, affinity: bytes | None, backends: str, tried: str, expected: str
) -> None:
    assert set(chosen(roster(of(backends), balance), 4, *tried, affinity=affinity)) <= set(expected)


def test_a_trial_is_one_request(balance: str) -> None:
    backends = of("g? t?")
    made = roster(backends, balance)
    assert chosen(made) == "b"
    stand(backends[1], POOR)  # the pool has noted that the probe is on its way
    made.put(backends[1])

    assert chosen(made, 4) == "aaaa"
    stand(backends[1], GOOD)
    made.put(backends[1])
    assert set(chosen(made, 20)) == {"a", "b"}


def test_a_backend_that_is_drained_or_dropped_gets_nothing_until_it_is_put_again(balance: str) -> None:
    backends = of("g? g?")
    made = roster(backends, balance)
    stand(backends[0], CLOSED)
    made.put(backends[0])
    made.drop(backends[1])

    assert chosen(made) == "-"
    assert len(made) == 0
    made.drop(backends[0])  # what it does not have, it drops all the same
    stand(backends[0], GOOD)
    made.put(backends[0])
    assert chosen(made, 2) == "aa"


@pytest.mark.parametrize(
    ("backends", "tried", "expected"),
    [
        ("", "", False),
        ("c?", "", False),
        ("p?", "", True),
        ("t?", "", True),
        ("g? c?", "a", False),
        ("g? c?", "b", True),
        ("g? p?", "aa", True),
        ("g? p?", "ab", False),
        ("gl gm", "b", True),
    ],
)
def test_there_is_another_backend_if_one_that_is_not_closed_was_not_tried(
    backends: str, tried: str, expected: bool
) -> None:
    ids = tuple(make(name).id for name in tried)

    assert roster(of(backends)).has_other(ids) is expected


# --- eras -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("affinity", [None, b"caller"])
@pytest.mark.parametrize(
    ("backends", "tried", "expected"),
    [
        ("gm gm", "", "ab"),
        ("gl g? gm", "", "c"),
        ("gl g? pm", "", "c"),
        ("gl g? tm", "", "c"),
        ("gl g? cm", "", "b"),
        ("gl p?", "", "b"),
        ("gl tl", "", "b"),
        ("gl gl", "", "ab"),
        ("tl gm", "", "b"),
        ("gl gm gm", "b", "c"),
        ("gl g? gm", "c", "-"),
    ],
)
def test_modern_requests_go_to_those_that_speak_it_or_else_to_those_that_may(
    balance: str, affinity: bytes | None, backends: str, tried: str, expected: str
) -> None:
    made = roster(of(backends), balance)

    assert set(chosen(made, 4, *tried, affinity=affinity, is_modern=True)) <= set(expected)


def test_other_requests_go_to_anyone(balance: str) -> None:
    assert set(chosen(roster(of("gm gl g?"), balance), 30)) == {"a", "b", "c"}


def test_modern_requests_follow_an_upgrade_of_one_backend_after_another(balance: str) -> None:
    backends = of("gl gl gl")
    made = roster(backends, balance)
    upgraded: set[str] = set()
    for backend in backends:
        made.drop(backend)
        backend.is_modern = True
        made.put(backend)
        upgraded.add(backend.host)
        assert set(chosen(made, 40, is_modern=True)) == upgraded
        assert set(chosen(made, 40)) == {"a", "b", "c"}


def test_what_happens_to_a_backend_is_seen_by_both_kinds_of_requests() -> None:
    backends = of("gm gm gl")
    made = roster(backends, "least_sessions")
    for backend, sessions in zip(backends, (5, 2, 4), strict=True):
        backend.sessions = sessions
        made.recount(backend)
    assert chosen(made, opens_session=True, is_modern=True) == "b"
    assert chosen(made, opens_session=True) == "b"
    stand(backends[1], POOR)
    made.put(backends[1])

    assert chosen(made, opens_session=True, is_modern=True) == "a"
    assert chosen(made, opens_session=True) == "c"


# --- affinity -------------------------------------------------------------------------------------

CALLERS = [f"caller-{number}".encode() for number in range(200)]


def homes(made: Roster, *tried: str, is_modern: bool = False) -> dict[bytes, str]:
    return {value: chosen(made, 1, *tried, affinity=value, is_modern=is_modern) for value in CALLERS}


def test_the_same_caller_gets_the_same_backend_whatever_the_balance(balance: str) -> None:
    backends = of("g? g? g?")
    made, other_replica = roster(backends, balance), roster(reversed(backends), balance)
    first = homes(made)
    chosen(made, 7)

    assert homes(made) == first == homes(other_replica)
    assert set(first.values()) == {"a", "b", "c"}


def test_callers_of_a_poor_backend_move_for_that_time_and_nobody_else_does(balance: str) -> None:
    backends = of("g? g? g?")
    made = roster(backends, balance)
    before = homes(made)
    stand(backends[0], POOR)
    made.put(backends[0])
    during = homes(made)

    assert {value for value in CALLERS if during[value] != before[value]} == {
        value for value in CALLERS if before[value] == "a"
    }
    assert during == homes(made)
    stand(backends[0], GOOD)
    made.put(backends[0])
    assert homes(made) == before


def test_a_caller_whose_backend_was_tried_goes_to_its_next_choice(balance: str) -> None:
    made = roster(of("g? g? g?"), balance)

    assert set(homes(made, "a").values()) == {"b", "c"}
    assert homes(made, "a") == homes(made, "a")
    assert set(homes(made, "a", "b").values()) == {"c"}


def test_modern_callers_have_a_home_among_the_modern() -> None:
    made = roster(of("gl gm gl gm gl gl"), "hash")
    first = homes(made, is_modern=True)

    assert set(first.values()) == {"b", "d"}
    assert homes(made, is_modern=True) == first == homes(roster(of("cl gm cl gm")))


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    values=st.lists(st.integers(0, 9), max_size=120),
)
def test_affinity_fills_no_backend_above_its_bound_and_is_kept_below_it(
    weights: list[int], values: list[int]
) -> None:
    backends = [make(f"b{number}", weight=weight) for number, weight in enumerate(weights)]
    made = roster(backends, "hash")
    owners = Rendezvous("weather")
    for backend in backends:
        owners.put(backend)
    for count, value in enumerate(values, 1):
        bounds = {each: Fraction(CROWDED) * count * each.weight / sum(weights) for each in backends}
        pick = made.next((), CALLERS[value], opens_session=False, is_modern=False)
        assert pick is not None
        choices = owners.choices(CALLERS[value])
        able = [each for each in choices if each.inflight + 1 <= ceil(bounds[each])]
        assert not able or pick is able[0]
        pick.inflight += 1


def test_a_caller_that_is_a_crowd_gets_as_many_backends_as_the_bound_asks_for() -> None:
    backends = [make(f"b{number}") for number in range(10)]
    made = roster(backends, "hash")
    for _ in range(1000):
        backend = made.next((), b"crowd", opens_session=False, is_modern=False)
        assert backend is not None
        backend.inflight += 1

    assert max(backend.inflight for backend in backends) == 125
    assert sum(backend.inflight > 100 for backend in backends) == 8


def test_a_request_without_affinity_is_balanced_by_what_is_in_flight() -> None:
    made = roster([make("a", inflight=3, sessions=1), make("b", inflight=2, sessions=9)], "hash")

    assert chosen(made, 4) == "bbbb"


# --- warming up -----------------------------------------------------------------------------------


def test_a_new_backend_gets_its_share_little_by_little() -> None:
    old, new = make("a"), make("b", warm_from_s=100.0)
    made = roster([old, new], slow_start_s=10.0)
    shares = []
    for at_s in (100.0, 105.0, 110.0, 115.0):
        made.sweep(at_s)
        shares.append(chosen(made, 1000).count("b"))

    fair = [1000 * share / (1 + share) for share in (COLD, (1 + COLD) / 2, 1.0, 1.0)]
    assert all(abs(share - expected) <= 10 for share, expected in zip(shares, fair, strict=True)), shares
    assert new.warm_from_s is None


def test_a_backend_is_cold_before_the_first_sweep_and_again_when_it_comes_back() -> None:
    new = make("b", sessions=0, warm_from_s=100.0)
    made = roster([make("a", sessions=8), new], "least_sessions", slow_start_s=10.0)
    assert chosen(made, opens_session=True) == "a"  # 9 / 1 and 1 / 0.1
    made.sweep(105.0)
    made.put(new)  # for some other reason
    assert chosen(made, opens_session=True) == "b"

    new.warm_from_s = 105.0
    made.put(new)

    assert chosen(made, opens_session=True) == "a"


def test_without_slow_start_a_new_backend_is_like_any_other() -> None:
    made = roster([make("a"), make("b", warm_from_s=100.0)])
    made.sweep(100.0)

    assert chosen(made, 4) in ("abab", "baba")


def test_a_clock_that_is_behind_the_start_of_warming_up_means_its_start() -> None:
    new = make("b", warm_from_s=100.0)
    made = roster([make("a"), new], slow_start_s=10.0)
    made.sweep(90.0)

    assert 80 <= chosen(made, 1000).count("b") <= 100
    assert new.warm_from_s == 100.0


def test_warming_up_is_over_for_one_that_has_left() -> None:
    new = make("b", warm_from_s=100.0)
    made = roster([make("a"), new], slow_start_s=10.0)
    made.drop(new)
    made.sweep(200.0)

    assert chosen(made, 4) == "aaaa"
    assert new.warm_from_s == 100.0


def test_a_poor_backend_warms_up_too() -> None:
    new = make("b", warm_from_s=100.0, standing=POOR)
    made = roster([make("a"), new], slow_start_s=10.0)
    made.sweep(110.0)

    assert new.warm_from_s is None
    assert chosen(made, 4) == "aaaa"


def test_a_cold_backend_keeps_its_callers() -> None:
    backends = of("g? g? g?")
    before = homes(roster(backends))
    backends[0].warm_from_s = 100.0

    assert homes(roster(backends, slow_start_s=10.0)) == before


# --- all of it ------------------------------------------------------------------------------------


def eligible(backends: Iterable[Backend], tried: tuple[str, ...], is_modern: bool) -> list[Backend]:
    """The plain rule."""
    open = [backend for backend in backends if backend.standing is not CLOSED]
    if is_modern:
        for era in (True, None, False):
            if any(backend.is_modern is era for backend in open):
                open = [backend for backend in open if backend.is_modern is era]
                break
    for standing in (TRIAL, GOOD, POOR):
        found = [backend for backend in open if backend.standing is standing and backend.id not in tried]
        if found:
            return found
    return []


def change(random: Random, backend: Backend) -> None:
    stand(backend, random.choice((GOOD, GOOD, GOOD, POOR, TRIAL, CLOSED)))
    backend.weight = random.choice((1, 1, 2, 5))
    backend.is_modern = random.choice((True, None, False))
    backend.warm_from_s = random.choice((None, None, random.uniform(0, 100)))


def test_whatever_happens_the_plain_rule_holds(balance: str) -> None:
    random = Random(7)
    made = roster([], balance, slow_start_s=5.0)
    backends = [make(f"b{number}") for number in range(12)]
    there: set[Backend] = set()
    for step in range(10_000):
        backend = random.choice(backends)
        move = random.randrange(12)
        if move == 0:
            change(random, backend)
            made.put(backend)
            there.add(backend)
        elif move == 1 and random.random() < 0.3:
            made.drop(backend)
            there.discard(backend)
        elif move < 6 and backend in there:
            backend.sessions = random.randrange(1000)
            made.recount(backend)
        elif move == 6:
            made.sweep(step / 100)
        else:
            backend.inflight = random.randrange(5)
        tried = tuple(each.id for each in random.sample(backends, random.choice((0, 0, 0, 1, 3, 12))))
        is_modern, affinity = random.random() < 0.5, random.choice((None, random.randbytes(2)))
        pick = made.next(tried, affinity, opens_session=random.random() < 0.5, is_modern=is_modern)
        able = eligible(there, tried, is_modern)
        assert pick in able if able else pick is None
        assert made.has_other(tried) is bool(eligible(there, tried, is_modern=False))
        assert made.has_other(tried, is_modern=is_modern) is bool(able)


def test_a_pool_whose_members_agree_again_is_one(balance: str) -> None:
    backends = of("gm gl g?")
    made = roster(backends, balance)
    for backend in backends:
        backend.is_modern = True
        made.put(backend)

    assert set(chosen(made, 40, is_modern=True)) == {"a", "b", "c"}
    assert Counter(homes(made, is_modern=True)) == Counter(homes(made))
