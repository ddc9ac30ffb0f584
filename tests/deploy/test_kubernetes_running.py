"""What is rendered runs: the proxy, the example server and Redis as processes, asked as kubelets, Prometheus
and clients ask.

Rules of this file: nobody waits for a time; a test goes on when the other side has said something.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.kubernetes_running import Redis, example_server, probed, proxy
from tests.deploy.rendered import DEVELOPMENT, EVERYTHING, PRODUCTION, SECRETS, deployment, objects
from tests.tools import PATIENCE_S
from tests.tools.client import Client, call, get, post
from tests.tools.kube_api import KubeApi, member, slice_of
from tests.tools.kube_objects import containers, only
from tests.tools.mcp_backend import INITIALIZE
from tests.tools.proxy import ProxyProcess


def container(name: str) -> dict[str, Any]:
    (found,) = containers(deployment(name))
    return found


@contextlib.asynccontextmanager
async def installation(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_hasty: bool = True
) -> AsyncIterator[ProxyProcess]:
    """A server, Redis if the set has one, and a proxy."""
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(example_server(folder / "server"))
        redis = stack.enter_context(Redis(folder / "redis", name)) if name == PRODUCTION else None
        at = None if redis is None else redis.port
        async with proxy(name, folder, monkeypatch, server=port, redis=at, is_hasty=is_hasty) as running:
            yield running


async def begin(port: int) -> str:
    async with await Client.connect(port) as client:
        answer = await client.ask(post(INITIALIZE))
    assert answer.status == 200, answer
    return f"Mcp-Session-Id: {(answer.head.one('mcp-session-id') or b'').decode()}"


async def whoami(port: int, session: str) -> str:
    async with await Client.connect(port) as client:
        answer = await client.ask(post(call(7, name="whoami"), session))
    assert answer.status == 200, answer
    said: str = answer.json["result"]["content"][0]["text"]
    return said


async def found_its_server(running: ProxyProcess) -> None:
    async def is_found() -> bool:
        return bool((await running.status())["pools"]["mcp-server"]["backends"])

    await running.until(is_found, "the server was found")


@pytest.mark.parametrize("name", [DEVELOPMENT, PRODUCTION])
async def test_a_client_has_a_session_and_every_probe_is_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with installation(name, tmp_path, monkeypatch) as running:
        await found_its_server(running)
        session = await begin(running.port)

        assert (await whoami(running.port, session)).endswith("call 1 of this session")
        assert (await whoami(running.port, session)).endswith("call 2 of this session")
        for kind in ("startup", "liveness", "readiness"):
            assert (await probed(running, container(name), kind)).status == 200


@pytest.mark.parametrize("name", [DEVELOPMENT, PRODUCTION])
async def test_a_pod_that_is_told_to_end_is_not_ready_alive_and_still_serves(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with installation(name, tmp_path, monkeypatch, is_hasty=False) as running:
        await found_its_server(running)
        session = await begin(running.port)
        running.process.send_signal(signal.SIGTERM)

        async def is_unready() -> bool:
            return (await probed(running, container(name), "readiness")).status == 503

        await running.until(is_unready, "the readiness probe fails")
        assert (await probed(running, container(name), "liveness")).status == 200
        async with await Client.connect(running.port) as client:
            answer = await client.ask(post(call(1, name="whoami"), session))
        assert (answer.status, answer.says_close) == (200, True)
        assert not await is_alone(running), (
            "it goes on serving for drain_delay, which is longer than this test"
        )
        running.process.send_signal(signal.SIGTERM)  # hurry

        assert await running.wait() == 0


async def is_alone(running: ProxyProcess) -> bool:
    try:
        (await Client.connect(running.port)).close()
    except OSError:
        return True
    return False


async def test_prometheus_needs_the_token_and_finds_what_the_autoscaler_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = only(objects(PRODUCTION), "HorizontalPodAutoscaler")["spec"]
    metric = next(each["pods"]["metric"]["name"] for each in scaler["metrics"] if "pods" in each)
    (endpoint,) = only(objects(PRODUCTION), "ServiceMonitor")["spec"]["endpoints"]

    async with installation(PRODUCTION, tmp_path, monkeypatch) as running:
        await found_its_server(running)
        session = await begin(running.port)
        assert f"\n{metric}{{" in (await running.admin(endpoint["path"])).body.decode(), "without any stream"
        async with await Client.connect(running.port) as client:
            await client.send(get(session))
            await client.head("GET")
            assert await running.metric(metric) == 1
        running.admin_fields = ()
        assert (await running.admin(endpoint["path"])).status == 401
        token = SECRETS["MCP_PROXY_METRICS_TOKEN"]
        running.admin_fields = (f"Authorization: {endpoint['authorization']['type']} {token}",)
        assert (await running.admin(endpoint["path"])).status == 200
        assert (await running.admin("/status.json")).status == 401, "more than metrics"


async def test_the_role_allows_what_a_proxy_asks_of_the_api_and_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rule,) = only(objects(EVERYTHING), "Role")["rules"]
    service = only(objects(DEVELOPMENT), "Service", "mcp-server")
    (port_name,) = [each["name"] for each in service["spec"]["ports"]]
    discover = {"kubernetes": {"service": "mcp-server"}, "port": port_name}
    with example_server(tmp_path / "server") as (port, _):
        async with KubeApi() as api:
            api.write_kubeconfig(tmp_path / "kubeconfig", namespace="mcp")
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            await api.put(slice_of("mcp-server-abc", member("127.0.0.1", "pod"), ports=[(port_name, port)]))
            async with proxy(DEVELOPMENT, tmp_path, monkeypatch, server=port, discover=discover) as running:
                await found_its_server(running)
                assert await begin(running.port)
                await api.until(watches=1)
            asked = [*api.lists, *api.watches]

    assert {"watch" if each.is_watch else "list" for each in asked} <= set(rule["verbs"])
    group, resource = rule["apiGroups"][0], rule["resources"][0]
    assert {each.path for each in asked} == {f"/apis/{group}/v1/namespaces/mcp/{resource}"}


# --- Redis ----------------------------------------------------------------------------------


async def test_sessions_outlive_redis_and_every_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, not stopped: what it had acknowledged is in its file."""
    with contextlib.ExitStack() as stack:
        server, _ = stack.enter_context(example_server(tmp_path / "server"))
        redis = stack.enter_context(Redis(tmp_path / "redis", PRODUCTION))
        async with proxy(PRODUCTION, tmp_path, monkeypatch, server=server, redis=redis.port) as first:
            await found_its_server(first)
            session = await begin(first.port)
            assert (await whoami(first.port, session)).endswith("call 1 of this session")
            redis.kill()
        redis.start()
        async with proxy(PRODUCTION, tmp_path, monkeypatch, server=server, redis=redis.port) as second:
            await found_its_server(second)

            assert (await whoami(second.port, session)).endswith("call 2 of this session")


def test_probes_of_redis_tell_a_server_that_answers_from_one_that_does_not(tmp_path: Path) -> None:
    with Redis(tmp_path, PRODUCTION) as redis:
        assert redis.probed("readiness") == 0
        assert redis.probed("readiness", password="not-this-one") != 0, "the password is asked for"
        redis.kill()
        assert redis.probed("readiness") != 0


def test_the_password_of_redis_is_in_no_list_of_processes(tmp_path: Path) -> None:
    with Redis(tmp_path, PRODUCTION) as redis:
        shown = Path(f"/proc/{redis.process.pid}/cmdline").read_bytes().decode()

    assert shown.startswith("redis-server ")
    assert SECRETS["REDISCLI_AUTH"] not in shown


# --- the example server ---------------------------------------------------------------------


async def test_the_example_server_ends_its_streams_and_itself(tmp_path: Path) -> None:
    with example_server(tmp_path) as (port, process):
        session = await begin(port)
        async with await Client.connect(port) as client:
            await client.send(get(session))
            assert (await client.head("GET")).status == 200
            process.terminate()

            assert await client.closed() == "eof"
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("body", "fields", "status", "code"),
    [
        (b"{", (), 400, -32700),
        (b"[]", (), 400, -32700),
        (call(1, name="whoami"), ("Mcp-Session-Id: nobody",), 404, -32600),
        (call(1, "server/discover"), (), 200, -32601),
    ],
)
async def test_the_example_server_refuses_what_it_does_not_know(
    body: bytes, fields: tuple[str, ...], status: int, code: int, tmp_path: Path
) -> None:
    with example_server(tmp_path) as (port, _):
        async with await Client.connect(port) as client:
            answer = await client.ask(post(body, *fields))

    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)


async def test_the_example_server_forgets_a_session_that_is_ended(tmp_path: Path) -> None:
    with example_server(tmp_path) as (port, _):
        session = await begin(port)
        async with await Client.connect(port) as client:
            assert (await client.ask(get(session, method="DELETE"))).status == 200
            assert (await client.ask(get(session, method="DELETE"))).status == 404
