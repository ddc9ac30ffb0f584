"""Every alert fires on what a broken proxy would show, and not on what is just short of that.

Rules of this file: series as an imagined Prometheus has stored them, judged by the real promtool. What can be
provoked is proven again with a running proxy, in tests/wire/test_alerts.py.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mcp_proxy.telemetry.families import IDLE_BOUNDS_S
from tests.tools.promtool import RULES, alerts, check, firing, groups, rules
from tests.tools.proxy import ROOT
from tests.unit.alert_cases import CASES, CLIENT_CLOSES, SERVES, SITE, Case, stored

DOCUMENT = ROOT / "docs/telemetry.md"


def expected(case: Case) -> dict[str, str]:
    severity = alerts()[case.alert]["labels"]["severity"]
    return {
        "alertname": case.alert,
        "namespace": "mcp",
        "job": "mcp-proxy",
        "severity": severity,
        **case.labels,
    }


each_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{number}-{case.alert}") for number, case in enumerate(CASES)]
)


@each_case
def test_an_alert_fires_alone_when_its_trouble_is_there(case: Case, tmp_path: Path) -> None:
    assert firing(stored(case.broken), case.minutes, tmp_path) == [expected(case)]


@each_case
def test_an_alert_is_quiet_just_short_of_its_trouble(case: Case, tmp_path: Path) -> None:
    assert firing(stored(case.healthy), case.minutes, tmp_path) == []


def test_one_alert_says_that_no_proxy_is_scraped_at_all(tmp_path: Path) -> None:
    assert firing({}, 15, tmp_path) == [{"alertname": "McpProxyAbsent", "severity": "critical"}]
    assert firing({}, 9, tmp_path) == []


def test_targets_that_are_no_proxies_are_none_of_our_business(tmp_path: Path) -> None:
    """They are down, out of descriptors and start all the time."""
    other = 'job="other", instance="10.0.0.9:80"'
    strange = {
        f"up{{{other}}}": "0x90",
        f"process_open_fds{{{other}}}": "99x90",
        f"process_max_fds{{{other}}}": "100x90",
        f"process_start_time_seconds{{{other}}}": "0+1x90",
    }
    assert firing({**stored({}), **strange}, 60, tmp_path) == []


def test_a_proxy_without_traffic_is_quiet(tmp_path: Path) -> None:
    """Every series of every case is there, and nothing happens."""
    still = {name: "7x90" for case in CASES for name in case.healthy if "{" in name}
    still |= {name: "1x90" for name in still if name.startswith(("store_up", "backend_up"))}
    still |= {name: "0x90" for name in still if name.startswith("backend_draining")}
    assert firing(stored(still), 60, tmp_path) == []


def test_a_backend_that_one_replica_cannot_reach_is_down_and_its_pool_is_not(tmp_path: Path) -> None:
    here, there = (f'{SITE}, instance="10.0.0.{number}:9901"' for number in (5, 6))
    series = {
        **stored({'backend_up{pool="tools", backend="a:80"}': "0x90"}, here),
        **stored({'backend_up{pool="tools", backend="a:80"}': "1x90"}, there),
    }
    (fired,) = firing(series, 60, tmp_path)
    assert (fired["alertname"], fired["backend"]) == ("McpProxyBackendDown", "a:80")


def test_two_installations_do_not_hide_each_other(tmp_path: Path) -> None:
    good, bad = (f'namespace="{name}", job="mcp-proxy", instance="{name}:9901"' for name in ("good", "bad"))
    up, errors = 'backend_up{pool="tools", backend="a:80"}', 'requests_total{route="/mcp", status="502"}'
    series = {
        **stored({**SERVES, up: "1x90", errors: "0x90"}, good),
        **stored({**SERVES, up: "1x57 0x40", errors: "0+300x90"}, bad),
    }
    fired = firing(series, 60, tmp_path)
    assert {(each["alertname"], each["namespace"]) for each in fired} == {
        ("McpProxyPoolDown", "bad"),
        ("McpProxyErrorRatioHigh", "bad"),
    }


def idle_ages(shares: list[int]) -> dict[str, str]:
    """So many streams a minute ended by clients, per bucket of idle ages."""
    series, total = {}, 0
    for bound, share in zip([*map(str, IDLE_BOUNDS_S), "+Inf"], shares, strict=True):
        total += share
        series[f'stream_idle_seconds_bucket{{{CLIENT_CLOSES}le="{bound}"}}'] = f"0+{total}x90"
    series['stream_idle_seconds_count{pool="tools", reason="client"}'] = f"0+{total}x90"
    return stored(series)


@pytest.mark.parametrize("timeout_s", [30.0, 60.0, 120.0, 300.0, 600.0, 1800.0])
def test_the_idle_timeouts_of_what_stands_in_front_are_found(timeout_s: float, tmp_path: Path) -> None:
    """Some clients leave by themselves."""
    begins = IDLE_BOUNDS_S.index(timeout_s) + 1
    shares = [54 if number == begins else 1 for number in range(len(IDLE_BOUNDS_S) + 1)]
    shares[-1] = 0
    (fired,) = firing(idle_ages(shares), 60, tmp_path)
    assert fired["alertname"] == "McpProxyStreamsCutWhenIdle"


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param([1, 2, 3, 0, 0, 0, 0, 0, 0, 0], id="pings every half minute"),
        pytest.param([1, 2, 3, 6, 0, 0, 0, 0, 0, 0], id="pings every minute"),
        pytest.param([0, 0, 1, 2, 4, 4, 3, 2, 1, 0], id="clients that stay for some minutes"),
        pytest.param([0, 0, 0, 0, 0, 0, 0, 0, 1, 9], id="clients that stay for hours"),
    ],
)
def test_clients_that_leave_when_they_please_are_no_idle_timeout(shares: list[int], tmp_path: Path) -> None:
    assert firing(idle_ages(shares), 60, tmp_path) == []


# --- the file -------------------------------------------------------------------------------------------


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} | {"McpProxyAbsent"} == set(alerts())


def test_the_command_of_the_documentation_makes_a_file_for_plain_prometheus(tmp_path: Path) -> None:
    (script,) = re.findall(rf"^\$ sed '(.*)' {RULES.relative_to(ROOT)} >", DOCUMENT.read_text(), re.M)
    plain = subprocess.run(["sed", script, RULES], capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(plain) == {"groups": groups()}
    assert check(plain, tmp_path) == ""


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")

    known = {"namespace", "job", *(label for case in CASES if case.alert == name for label in case.labels)}
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(notes.values())))
    assert used <= known

    assert notes["runbook_url"] == f"docs/telemetry.md#{name.lower()}"
    assert f"\n#### {name}\n" in DOCUMENT.read_text()


def test_records_are_named_for_the_proxy() -> None:
    records = [rule["record"] for rule in rules() if "record" in rule]
    assert len(records) == len(set(records))
    assert all(re.fullmatch(r"mcp_proxy:[a-z_]+:[a-z0-9_]+", name) for name in records)
