"""What counts as worse through the proxy: the judgement of ``make conformance``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.conformance.results import Scenario, added, read, table, total


def scenario(passed: str = "", bad: str = "") -> Scenario:
    """Checks are letters."""
    return Scenario(Counter(passed), Counter(bad), tuple(f"{check}: said why" for check in bad))


def test_the_same_result_adds_nothing_even_if_it_is_bad() -> None:
    run = {"one": scenario("aab", "c")}
    assert added(run, dict(run)) == []


def test_a_check_that_fails_only_through_the_proxy_is_added_with_what_the_suite_said() -> None:
    assert added({"one": scenario("ab")}, {"one": scenario("a", "b")}) == ["one: b (b: said why)"]


def test_one_occurrence_of_many_is_enough() -> None:
    assert added({"one": scenario("aaa")}, {"one": scenario("aa", "a")}) == ["one: a (a: said why)"]


def test_a_check_or_a_scenario_that_is_missing_counts_like_a_failure() -> None:
    direct = {"one": scenario("ab"), "two": scenario("c")}
    lines = added(direct, {"one": scenario("a")})
    assert lines == ["one: b (no such check was made)", "two: c (no such check was made)"]


def test_what_is_better_through_the_proxy_is_no_failure() -> None:
    assert added({"one": scenario("a", "b")}, {"one": scenario("ab"), "two": scenario("c")}) == []


def test_a_new_failure_beside_an_old_one_of_the_same_check_is_added() -> None:
    assert added({"one": scenario("a", "b")}, {"one": scenario("a", "bb")}) == [
        "one: b (b: said why; b: said why)"
    ]


def test_checks_are_read_from_the_file_that_the_suite_writes(tmp_path: Path) -> None:
    checks = [
        {"id": "a", "status": "SUCCESS", "description": "d"},
        {"id": "b", "status": "FAILURE", "description": "d", "errorMessage": "broke"},
        {"id": "c", "status": "WARNING", "description": "hm"},
        {"id": "d", "status": "SKIPPED", "description": "d"},
    ]
    (tmp_path / "checks.json").write_text(json.dumps(checks))
    assert read(tmp_path) == Scenario(Counter("a"), Counter("bc"), ("b: broke", "c: hm"))


def test_the_table_marks_what_differs_from_the_reference() -> None:
    runs = {"direct": {"one": scenario("a", "b")}, "proxy": {"one": scenario("ab")}}
    heading, row = table(runs, "direct").splitlines()
    assert heading.split() == ["direct", "proxy"]
    assert " ".join(row.split()) == "one 1 ok, 1 bad 2 ok *"


def test_the_sum_counts_scenarios_and_checks() -> None:
    assert total({"one": scenario("aa", "b"), "two": scenario("c")}) == "2 scenarios, 3 checks ok, 1 bad"
