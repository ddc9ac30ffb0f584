"""What may go wrong between a source and the API server of its cluster, and what it says then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools.kube_api import KubeApi, member, slice_of
from tests.unit.fakes import until
from tests.unit.slicewatch import TURN_S, backend, source, watching
from tests.unit.sources import running


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeApi]:
    async with KubeApi() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield api


async def test_when_its_version_is_gone_it_lists_again(
    api: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put(slice_of("a", member("10.0.0.1")))
    one = source()
    async with watching(api, one) as published:
        await published.count(1)
        await until(lambda: api.open_watches)
        api.expire()
        await api.put(slice_of("a", member("10.0.0.2")))
        assert await published.count(2) == (backend("10.0.0.2"),)
        await api.until(watches=2)
    assert one.health()[0]
    assert caplog.records == [], "this is nothing special"


async def test_a_watch_from_a_version_that_is_gone_already_is_no_failure(
    api: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put(slice_of("a", member("10.0.0.1")))
    api.refuse(410, watch=True)
    one = source()
    async with running(one):
        await api.until(watches=2)
        assert one.health() == (True, "kubernetes weather: 1 backend")
    assert caplog.records == []


async def test_a_watch_that_is_cut_off_in_the_middle_of_an_event_is_begun_anew(
    api: KubeApi, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put(slice_of("a", member("10.0.0.1"), member("10.0.0.2")))
    one = source()
    async with watching(api, one) as published:
        await published.count(1)
        await until(lambda: api.open_watches)
        api.cut()
        await api.put(slice_of("a", member("10.0.0.1"), member("10.0.0.3")))
        await published.count(2)
        assert published.hosts == ["10.0.0.1", "10.0.0.3"]
        await api.put(slice_of("b", member("10.0.0.4")))
        await published.count(3)
    assert one.health()[0]
    assert caplog.records == []


async def test_watches_that_all_end_at_once_are_not_begun_without_a_pause(api: KubeApi) -> None:
    """The library alone would ask thousands of times a second."""
    await api.put(slice_of("a", member("10.0.0.1")))
    api.end_watches(True)
    async with running(source()) as published:
        await published.count(1)
        await api.until(watches=3)
        assert len(api.watches) == len(api.lists) == 3, "a list before every watch, and nothing else"
        assert len(published.all) == 1


async def test_a_list_that_breaks_off_publishes_nothing_of_it(tmp_path: Path, api: KubeApi) -> None:
    async with KubeApi(page=2) as paged:
        paged.write_kubeconfig(tmp_path / "kubeconfig")
        for number in range(1, 6):
            await paged.put(slice_of(f"s{number}", member(f"10.0.0.{number}")))
        paged.stop_after_page(True)
        one = source()
        async with running(one) as published:
            await until(lambda: "cannot be reached" in one.health()[1], TURN_S)
            assert published.all == []
            paged.stop_after_page(False)
            await published.count(1)
        assert published.hosts == [f"10.0.0.{number}" for number in range(1, 6)]
        assert len(published.all) == 1


async def test_an_api_that_is_away_changes_nothing(api: KubeApi, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mcp_proxy")
    await api.put(slice_of("a", member("10.0.0.1")))
    one = source()
    async with running(one) as published:
        await published.count(1)
        await until(lambda: api.open_watches)
        await api.stop()
        await until(lambda: not one.health()[0], TURN_S)
        assert one.health()[1] == (
            "kubernetes weather: the Kubernetes API cannot be reached; 1 backend from before"
        )
        async with api:
            await until(lambda: one.health()[0], TURN_S)
            await api.put(slice_of("b", member("10.0.0.2")))
            await published.count(2)
        assert published.hosts == ["10.0.0.1", "10.0.0.2"]
    assert [record.levelname for record in caplog.records][:2] == ["WARNING", "INFO"]


@pytest.mark.parametrize("is_watch", [False, True], ids=["list", "watch"])
async def test_what_is_forbidden_is_said_once_with_its_cure(
    api: KubeApi, caplog: pytest.LogCaptureFixture, is_watch: bool
) -> None:
    caplog.set_level(logging.INFO, "mcp_proxy")
    api.refuse(403, watch=is_watch)
    await api.put(slice_of("a", member("10.0.0.1")))
    one = source()
    async with running(one) as published:
        await api.until(lists=3)
        assert api.connections <= 1, "every look closes its own"
        (record,) = caplog.records
        cure = "apiGroups [discovery.k8s.io], resources [endpointslices], verbs [get, list, watch]"
        assert cure in record.getMessage()
        assert cure in one.health()[1]
        assert not one.health()[0]
        api.refuse(None, watch=is_watch)
        await published.count(1)
        await until(lambda: one.health() == (True, "kubernetes weather: 1 backend"), TURN_S)
    await api.until(connections=0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "does not know the proxy (401)"), (500, "answers 500"), (429, "answers 429")],
)
async def test_other_refusals_keep_what_was_found(api: KubeApi, status: int, sentence: str) -> None:
    await api.put(slice_of("a", member("10.0.0.1")))
    one = source()
    async with watching(api, one) as published:
        await published.count(1)
        api.refuse(status)
        one.refresh()
        await until(lambda: sentence in one.health()[1], TURN_S)
    assert len(published.all) == 1


async def test_a_service_that_loses_all_its_pods_is_listed_again_before_that_is_believed(
    api: KubeApi,
) -> None:
    await api.put(slice_of("a", member("10.0.0.1")))
    one = source()
    async with watching(api, one) as published:
        await published.count(1)
        await api.put(slice_of("a", member("10.0.0.1", ready=False, serving=False)))
        await until(lambda: "suddenly none; 1 backend from before" in one.health()[1], TURN_S)
        one.refresh()
        await api.until(watches=2)
        await api.put(slice_of("a", member("10.0.0.2")))
        assert await published.count(2) == (backend("10.0.0.2"),)


async def test_a_service_that_loses_most_of_its_pods_without_a_word_is_listed_again(api: KubeApi) -> None:
    await api.put(slice_of("a", member("10.0.0.1"), member("10.0.0.2"), member("10.0.0.3")))
    async with watching(api, source()) as published:
        await published.count(1)
        await api.put(slice_of("a", member("10.0.0.3")))
        assert await published.count(2) == (backend("10.0.0.3"),)
    assert len(api.lists) == 2


async def test_somebody_who_asks_gets_a_list(api: KubeApi) -> None:
    one = source()
    async with watching(api, one):
        for _ in range(100):
            one.refresh()
        await api.until(watches=2)
    assert len(api.lists) == 2


async def test_it_can_be_cancelled_before_the_api_answers(tmp_path: Path, api: KubeApi) -> None:
    heard = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        heard.set()
        await reader.read()
        writer.close()

    api.port, port = 0, api.port
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        api.port = server.sockets[0].getsockname()[1]
        api.write_kubeconfig(tmp_path / "kubeconfig")
        api.port = port
        async with running(source()) as published:
            await heard.wait()
        assert published.all == []
