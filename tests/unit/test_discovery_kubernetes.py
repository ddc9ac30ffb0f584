"""Backends of a Service, listed and watched at an API server that speaks real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcp_proxy.discovery.kubernetes import KubernetesSource
from tests.tools.kube_api import KubeApi, member, slice_of
from tests.tools.tls import Authority
from tests.unit.fakes import until
from tests.unit.slicewatch import TURN_S, backend, source, watching
from tests.unit.sources import running

LIST = "/apis/discovery.k8s.io/v1/namespaces/mcp/endpointslices"


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeApi]:
    async with KubeApi() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield api


# --- what it asks ---------------------------------------------------------------------


async def test_it_lists_the_slices_of_the_service_and_watches_from_there(api: KubeApi) -> None:
    await api.put(slice_of("a", member("10.0.0.1")))
    async with watching(api, source()) as published:
        assert await published.count(1) == (backend("10.0.0.1"),)
    listing, watch = api.requests
    assert (listing.path, watch.path) == (LIST, LIST)
    selector = {"labelSelector": "kubernetes.io/service-name=weather"}
    assert listing.query == {**selector, "limit": "500"}
    assert watch.query == {**selector, "watch": "true", "resourceVersion": "11"}
    assert listing.headers["authorization"] == "Bearer kubeconfig-token"


async def test_a_namespace_that_is_given_counts_more_than_its_own(api: KubeApi) -> None:
    async with watching(api, source("elsewhere")):
        pass
    assert {request.path for request in api.requests} == {LIST.replace("/mcp/", "/elsewhere/")}


async def test_in_a_pod_it_is_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.ca.read_bytes())
    (tmp_path / "token").write_text("pod-token")
    (tmp_path / "namespace").write_text("of-the-pod")
    async with KubeApi(authority.listening()) as api:
        await api.put(slice_of("a", member("10.0.0.1")))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        one = KubernetesSource("weather", service_account=str(tmp_path))
        async with watching(api, one) as published:
            await published.count(1)
            (tmp_path / "token").write_text("renewed-token")
            one.refresh()
            await api.until(watches=2)
    assert [request.headers["authorization"] for request in api.lists] == [
        "Bearer pod-token",
        "Bearer renewed-token",
    ]
    assert api.lists[0].path == LIST.replace("/mcp/", "/of-the-pod/")


async def test_without_access_to_a_cluster_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    one = source()
    async with running(one) as published, KubeApi() as api:
        await until(lambda: "no access to a Kubernetes API is configured" in one.health()[1], TURN_S)
        await api.put(slice_of("a", member("10.0.0.1")))
        api.write_kubeconfig(tmp_path / "missing")
        assert await published.count(1) == (backend("10.0.0.1"),)


@pytest.mark.parametrize("user", [{}, {"user": "nobody-is-called-so"}], ids=["no user", "unknown user"])
async def test_a_context_that_does_not_say_who_asks_is_no_access(
    tmp_path: Path, api: KubeApi, user: dict[str, str]
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    config = json.loads(kubeconfig.read_text())
    config["contexts"][0]["context"] = {"cluster": "test", **user}
    kubeconfig.write_text(json.dumps(config))
    one = source()
    async with running(one):
        await until(lambda: "no access to a Kubernetes API is configured" in one.health()[1], TURN_S)
    assert api.requests == []


async def test_what_is_no_api_at_all_is_said(tmp_path: Path, api: KubeApi) -> None:
    (tmp_path / "kubeconfig").write_text("[")
    one = source()
    async with running(one):
        await until(lambda: "the Kubernetes API cannot be asked" in one.health()[1], TURN_S)


# --- what it hears --------------------------------------------------------------------


async def test_pods_come_drain_and_go_while_it_watches(api: KubeApi) -> None:
    await api.put(slice_of("a", member("10.0.0.1"), member("10.0.0.2")))
    async with watching(api, source()) as published:
        await published.count(1)
        leaving = member("10.0.0.1", ready=False, serving=True, terminating=True)
        await api.put(slice_of("a", leaving, member("10.0.0.2"), member("10.0.0.3")))
        assert await published.count(2) == (
            backend("10.0.0.1", is_open=False),
            backend("10.0.0.2"),
            backend("10.0.0.3"),
        )
        gone = member("10.0.0.1", ready=False, serving=False, terminating=True)
        await api.put(slice_of("a", gone, member("10.0.0.2"), member("10.0.0.3")))
        assert await published.count(3) == (backend("10.0.0.2"), backend("10.0.0.3"))
    assert len(api.lists) == 1


async def test_all_slices_count_and_one_that_is_deleted_no_longer(api: KubeApi) -> None:
    await api.put(slice_of("a", member("10.0.0.1"), member("10.0.0.2")))
    await api.put(slice_of("b", member("10.0.0.2"), member("10.0.0.3")))
    async with watching(api, source()) as published:
        await published.count(1)
        assert published.hosts == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        await api.put(slice_of("c", member("10.0.0.4", ready=True, serving=True, terminating=False)))
        await published.count(2)
        assert published.hosts == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        await api.delete("a")
        await published.count(3)
        assert published.hosts == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]


async def test_a_bookmark_and_a_change_that_is_none_publish_nothing(api: KubeApi) -> None:
    await api.put(slice_of("a", member("10.0.0.1")))
    async with watching(api, source()) as published:
        await published.count(1)
        await api.bookmark()
        await api.put(slice_of("a", member("10.0.0.1", ready=True)))
        await api.bookmark()
        await api.put(slice_of("a", member("10.0.0.2")))
        assert await published.count(2) == (backend("10.0.0.2"),)
    assert len(api.lists) == 1


async def test_a_named_port_is_that_of_the_pods(api: KubeApi) -> None:
    ports = [("metrics", 9090), ("mcp", 8080)]
    await api.put(slice_of("a", member("10.0.0.1"), ports=ports))
    await api.put(slice_of("b", member("fd00::1"), ports=ports, family="IPv6"))
    async with watching(api, source(port="mcp")) as published:
        assert await published.count(1) == (backend("10.0.0.1", 8080), backend("fd00::1", 8080))


async def test_a_port_that_is_not_named_but_has_to_be_is_said(api: KubeApi) -> None:
    await api.put(slice_of("a", member("10.0.0.1"), ports=[("metrics", 9090), ("mcp", 8080)]))
    one = source()
    async with running(one) as published:
        await until(lambda: "say which with discover.port" in one.health()[1], TURN_S)
    assert not one.health()[0]
    assert published.all == []
