"""What dashboard and rules ask for is what a running proxy shows.

Rules of this file: names and labels come from scrapes, of a proxy alone and of one with workers, and nothing
of the proxy is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.tools import promql
from tests.tools.client import post
from tests.tools.grafana import expressions
from tests.tools.mcp_backend import INITIALIZE
from tests.tools.promtool import rules
from tests.tools.redis_server import RedisServer
from tests.wire.reloading import flows, pools, servers, site

UNUSUAL = {
    "mcp_proxy_ejections_total": "no backend has failed five times in a row",
    "mcp_proxy_reinitializations_total": "no backend with sessions was lost",
    "mcp_proxy_sink_failures_total": "no sink has failed",
    "mcp_proxy_store_errors_total": "the registry is well",
    "mcp_proxy_trace_spans_total": "nobody wants traces",
    "mcp_proxy_upstream_failures_total": "no backend has failed",
}
"""What is announced and may have no samples, and why; tests/unit/test_dashboard.py knows their labels."""


async def scrape(folder: Path, **over: Any) -> str:
    """After a bit of everything."""
    with RedisServer() as redis:
        async with servers("a", "b") as (names, backends):
            sessions = {"store": "redis", "url": redis.url}
            async with site({**pools(backends), "sessions": sessions, **over}, folder) as proxy:
                session = await proxy.session()
                assert (await session.call()).status == 200
                (server,) = (each for each in names if session.id in each.sessions)
                client, stream = await proxy.listening(session, server)
                await flows(client, stream, "news")
                await stream.end()
                assert (await client.rest()).framing == "clean"
                refused = await session.client.ask(post(INITIALIZE, "Origin: https://elsewhere.example"))
                assert refused.status == 403
                return await proxy.proxy.metrics()


def shown(exposition: str) -> dict[str, set[str] | None]:
    """Every series by its name: its labels, None while there are no samples."""
    found: dict[str, set[str] | None] = {}
    for family in text_string_to_metric_families(exposition):
        if not family.samples:
            found[family.name + ("_total" if family.type == "counter" else "")] = None
        for sample in family.samples:
            found[sample.name] = (found.get(sample.name) or set()) | set(sample.labels)
    return found


async def test_every_metric_and_every_label_is_in_a_scrape(tmp_path: Path) -> None:
    (alone := tmp_path / "alone").mkdir()
    (crew := tmp_path / "crew").mkdir()
    series = {**shown(await scrape(crew, workers=2)), **shown(await scrape(alone))}
    records = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    asked = expressions() + [promql.expanded(rule["expr"], records) for rule in rules()]

    named = {name for each in asked for name in promql.metrics(each)}
    assert named - series.keys() == set()
    assert {name for name in named if series[name] is None} <= UNUSUAL.keys()

    seen = {name: labels for name, labels in series.items() if labels is not None}
    whole = [each for each in asked if promql.metrics(each) <= seen.keys()]
    assert {each: found for each in whole if (found := promql.strange_labels(each, seen))} == {}
