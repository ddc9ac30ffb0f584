"""The arithmetic of ``make bench``. That it runs is shown by running it; its figures are never asserted."""

from __future__ import annotations

from tests.bench.backend import EVENT_BYTES, FLOOD_CHUNK_BYTES, MARK, sse_event
from tests.bench.report import Results, goals, percentile, ratio, summary, text, value

OPTIONS = {
    "connections": 32,
    "rounds": 3,
    "seconds": 2.0,
    "event_streams": 64,
    "event_interval_ms": 10,
    "streams": 5000,
    "flood_mib": 64,
}
CALL = {"per_s": 1000.0, "p50_ms": 1.0, "p99_ms": 2.0, "busy": 0.5, "backend_cpu_us": 9.0, "load_cpu_us": 8.0}


def calls(**cpu_us: list[float]) -> Results:
    return {"calls": {name: [{"cpu_us": each, **CALL} for each in rounds] for name, rounds in cpu_us.items()}}


def test_a_percentile_is_one_of_the_values_by_nearest_rank() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0


def test_a_value_is_the_median_of_its_rounds() -> None:
    assert value(calls(nginx=[10.0, 90.0, 12.0]), "calls", "nginx", "cpu_us") == 12.0


def test_a_ratio_is_taken_within_rounds_so_that_drift_hits_both_sides() -> None:
    # The machine became ten times slower from round to round; the candidate is always twice as slow.
    results = calls(nginx=[10.0, 100.0, 1000.0], http11=[20.0, 200.0, 2000.0])
    assert ratio(results, "calls", "http11", "cpu_us", "nginx") == 2.0


def test_a_candidate_that_failed_midway_is_compared_over_the_rounds_it_has() -> None:
    results = calls(nginx=[10.0, 10.0, 40.0], http11=[20.0, 40.0])
    assert ratio(results, "calls", "http11", "cpu_us", "nginx") == 3.0


def test_what_was_not_measured_has_no_value_no_ratio_and_no_goal() -> None:
    results = calls(http11=[20.0])
    assert value(results, "stall", "http11", "growth_mib") is None
    assert value(results, "calls", "nginx", "cpu_us") is None
    assert ratio(results, "calls", "http11", "cpu_us", "nginx") is None
    assert goals(results, "nginx") == []


def test_a_reference_of_zero_gives_no_ratio() -> None:
    assert ratio(calls(nginx=[0.0], http11=[20.0]), "calls", "http11", "cpu_us", "nginx") is None


def test_a_goal_is_met_up_to_and_including_its_bound() -> None:
    met = goals(calls(nginx=[10.0], http11=[18.0]), "nginx")
    missed = goals(calls(nginx=[10.0], http11=[18.1]), "nginx")
    assert [(goal["measured"], goal["is_met"]) for goal in met] == [(1.8, True)]
    assert [goal["is_met"] for goal in missed] == [False]


def test_a_goal_without_a_reference_is_judged_by_its_own_value() -> None:
    results: Results = {"stall": {"http11": [{"growth_mib": 9.0, "taken_mib": 8.0}]}}
    assert [(goal["measured"], goal["at_most"], goal["is_met"]) for goal in goals(results, "nginx")] == [
        (9.0, 8.0, False)
    ]


def test_the_text_shows_medians_ratios_and_verdicts() -> None:
    results = calls(nginx=[10.0, 11.0, 12.0], http11=[15.0, 16.5, 18.0], haproxy=[])
    assert text(results, "nginx", OPTIONS, goals(results, "nginx")) == (
        "tools/call in a session, 32 keep-alive connections, rounds: 3 x 2 s\n"
        "           CPU us/call  x nginx  calls/s  p50 ms  p99 ms  cores  backend us  load us\n"
        "  nginx           11.0     1.00    1,000    1.00    2.00   0.50         9.0      8.0\n"
        "  http11          16.5     1.50    1,000    1.00    2.00   0.50         9.0      8.0\n"
        "  haproxy            -        -        -       -       -      -           -        -\n"
        "\n"
        "goals\n"
        "  met      1.50 <= 1.8   http11: CPU per call, x nginx\n"
    )


def test_a_missed_goal_stands_out_in_the_text() -> None:
    results = calls(nginx=[10.0], asgi=[36.0])
    assert text(results, "nginx", OPTIONS, goals(results, "nginx")).endswith(
        "  MISSED   3.60 <= 3.5   asgi: CPU per call, x nginx\n"
    )


def test_the_titles_say_how_much_was_measured() -> None:
    beside = {"empty_cpu_us": 20.0, "full_cpu_us": 21.0, "ratio": 1.05}
    results: Results = {"beside": {"http11": [beside]}}
    assert text(results, "nginx", OPTIONS, goals(results, "nginx")) == (
        "CPU us per call beside 5000 idle streams\n"
        "          0 streams  5000 streams  ratio\n"
        "  http11       20.0          21.0   1.05\n"
        "\n"
        "goals\n"
        "  met      1.05 <= 1.1   http11: CPU per call beside streams, x none\n"
    )


def test_without_verdicts_there_is_no_word_about_goals() -> None:
    assert "goals" not in text(calls(nginx=[10.0], http11=[36.0]), "nginx", OPTIONS, [])


def test_the_summary_keeps_every_round_beside_its_median() -> None:
    results: Results = {"stall": {"nginx": [{"growth_mib": 0.5}], "haproxy": []}}
    assert summary(results, "nginx") == {
        "stall": {"nginx": {"growth_mib": {"median": 0.5, "ratio": 1.0, "rounds": [0.5]}}}
    }


def test_an_event_has_the_size_it_says_and_exactly_one_mark() -> None:
    for size in (EVENT_BYTES, FLOOD_CHUNK_BYTES):
        event = sse_event(size)
        assert len(event) == size
        assert event.count(MARK) == 1
        assert event.endswith(b"\r\n\r\n")
