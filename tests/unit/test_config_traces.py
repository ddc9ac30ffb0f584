"""Traces in the configuration: where they are sent, what that needs, and what is worth a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.config import TelemetryConfig, TracesConfig, read
from mcp_proxy.config.checks import traces

COLLECTOR = "http://collector.example:4318"


def config(**keys: Any) -> TelemetryConfig:
    return TelemetryConfig.model_validate({"traces": {"endpoint": COLLECTOR} | keys})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (COLLECTOR, f"{COLLECTOR}/v1/traces"),
        (f"{COLLECTOR}/", f"{COLLECTOR}/v1/traces"),
        (f"{COLLECTOR}/v1/traces", f"{COLLECTOR}/v1/traces"),
        ("https://Collector.example/otlp/spans", "https://collector.example/otlp/spans"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_gets_that_of_the_protocol(written: str, meant: str) -> None:
    assert TracesConfig(endpoint=written).endpoint == meant


@pytest.mark.parametrize("word", ["off", "none", False, None])
def test_a_word_turns_traces_off(word: object) -> None:
    assert TelemetryConfig.model_validate({"traces": word}).traces is None


def test_the_package_that_sends_spans_is_named_when_it_is_not_installed() -> None:
    (issue,) = traces(config(), lambda module: False)

    assert issue.loc == ("telemetry", "traces")
    assert "opentelemetry-exporter-otlp-proto-http" in issue.message
    assert issue.hint == "pip install 'mcp-reverse-proxy[otlp]'"


def test_nothing_is_missing_when_it_is_installed_or_not_needed() -> None:
    assert [*traces(config(), lambda module: True)] == []
    assert [*traces(TelemetryConfig(), lambda module: False)] == []
    assert [*traces(None, lambda module: False)] == []


def test_a_literal_secret_for_the_collector_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "pools: {a: {backends: [http://a/mcp]}}\n"
        f"telemetry: {{traces: {{endpoint: '{COLLECTOR}', headers: {{X-Key: hunter2, x-other: env:K}}}}}}\n"
    )
    loaded = read(file, {"K": "secret"}, {})

    (warning,) = map(str, loaded.warnings)
    assert f"{file}:2: telemetry.traces.headers.x-key: a secret stands in the configuration" in warning
    assert "hunter2" not in warning
    assert "hunter2" not in repr(loaded.config)
