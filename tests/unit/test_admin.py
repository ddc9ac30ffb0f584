"""The admin listener, asked the way kubelets, Prometheus, people and hostile pages ask."""

from __future__ import annotations

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from mcp_proxy.admin import AdminView, BackendStatus, Check, PoolStatus, Status
from mcp_proxy.admin.app import create_admin
from mcp_proxy.telemetry.metrics import Metrics
from mcp_proxy.telemetry.snapshot import GaugeSnapshot
from tests.unit.registered import Registered

TOKEN = "correct horse battery staple"
BEARER = (b"Authorization", b"Bearer " + TOKEN.encode())
LOCAL = (b"Host", b"localhost:9901")
HEALTH = ["/livez", "/readyz", "/readyz?verbose"]
SECRET = ["/metrics", "/status.json", "/nothing", "//"]
GUARDED = [*SECRET, "/"]

Lines = list[tuple[bytes, bytes]]


class Proxy(Registered):
    """An AdminView with real metrics."""

    def __init__(self) -> None:
        super().__init__()
        gauges = GaugeSnapshot(inflight=3, open_streams={}, sessions={}, backends=[])
        self.is_alive = True
        self.checks = [Check("drain", True), Check("pool weather", True, "1 of 2 backends up")]
        self.meters: Metrics | None = Metrics(lambda: gauges)

    def alive(self) -> bool:
        return self.is_alive

    def ready(self) -> list[Check]:
        return self.checks

    def status(self) -> Status:
        backend = BackendStatus("http://10.0.0.11:8000/mcp", up=True, sessions=2, inflight=1, streams=1)
        return Status(
            version="1.2.3",
            uptime_s=12.5,
            pid=42,
            listen="127.0.0.1:8080",
            pools={"weather": PoolStatus([backend])},
            limits={"body": 4194304, "idle": None},
            counters={"requests": 7},
        )

    def metrics(self, accept: str | None) -> tuple[bytes, str] | None:
        return self.meters.render(accept) if self.meters else None


class BrokenProxy(Proxy):
    def status(self) -> Status:
        raise RuntimeError("secret detail")


async def ask(
    path: str,
    *lines: tuple[bytes, bytes],
    method: str = "GET",
    view: AdminView | None = None,
    token: str | None = None,
    metrics_token: str | None = None,
) -> httpx2.Response:
    """The answer to a request with exactly these header lines."""
    app = create_admin(view or Proxy(), token, metrics_token)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    request = httpx2.Request(method, "http://admin.test" + path)
    request.headers = httpx2.Headers(lines)
    response = await transport.handle_async_request(request)
    await response.aread()
    return response


async def test_livez_answers_ok_while_the_process_works() -> None:
    view = Proxy()
    answer = await ask("/livez", LOCAL, view=view)
    assert (answer.status_code, answer.text) == (200, "ok\n")
    view.is_alive = False
    assert (await ask("/livez", LOCAL, view=view)).status_code == 503


async def test_readyz_is_200_only_when_every_check_is_ok() -> None:
    view = Proxy()
    answer = await ask("/readyz", LOCAL, view=view)
    assert (answer.status_code, answer.text) == (200, "ok\n")
    view.checks = [Check("drain", True), Check("pool weather", False, "0 of 2 backends up")]
    answer = await ask("/readyz", LOCAL, view=view)
    assert (answer.status_code, answer.text) == (503, "not ready\n")


@pytest.mark.parametrize("query", ["verbose", "verbose=", "verbose=1"])
async def test_readyz_verbose_lists_the_checks(query: str) -> None:
    view = Proxy()
    view.checks.append(Check("sessions", False, "registry unreachable"))
    answer = await ask("/readyz?" + query, LOCAL, view=view)
    assert answer.status_code == 503
    assert answer.text == (
        "[+] drain\n[+] pool weather: 1 of 2 backends up\n[-] sessions: registry unreachable\nnot ready\n"
    )


async def test_metrics_are_negotiated_with_the_scraper() -> None:
    plain = await ask("/metrics", LOCAL)
    families = {family.name for family in text_string_to_metric_families(plain.text)}
    assert "mcp_proxy_inflight" in families
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    strict = await ask("/metrics", LOCAL, (b"Accept", b"application/openmetrics-text; version=1.0.0"))
    assert strict.headers["content-type"].startswith("application/openmetrics-text")
    assert strict.text.endswith("# EOF\n")


async def test_metrics_that_are_switched_off_are_not_found() -> None:
    view = Proxy()
    view.meters = None
    assert (await ask("/metrics", LOCAL, view=view)).status_code == 404


async def test_status_is_a_document_with_every_backend() -> None:
    answer = await ask("/status.json", LOCAL)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "version": "1.2.3",
        "uptime_s": 12.5,
        "pid": 42,
        "listen": "127.0.0.1:8080",
        "pools": {
            "weather": {
                "backends": [
                    {
                        "id": "http://10.0.0.11:8000/mcp",
                        "up": True,
                        "sessions": 2,
                        "inflight": 1,
                        "streams": 1,
                        "pool": "",
                        "weight": 1,
                        "state": "up",
                        "era": "unknown",
                        "drain": None,
                        "ejections": 0,
                    }
                ]
            }
        },
        "limits": {"body": 4194304, "idle": None},
        "counters": {"requests": 7},
    }


@pytest.mark.parametrize("path", [*HEALTH, "/metrics", "/status.json"])
async def test_head_is_answered_like_get(path: str) -> None:
    get, head = await ask(path, LOCAL), await ask(path, LOCAL, method="HEAD")
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/livez/", "/metrics/", "//metrics", "/livez/%2e%2e/metrics", "/LIVEZ"]
)
async def test_any_other_path_is_404_and_never_a_redirect(path: str) -> None:
    answer = await ask(path, LOCAL)
    assert answer.status_code == 404
    assert answer.json()["error"]["reason"] == "not_found"
    assert "location" not in answer.headers


async def test_a_method_that_a_path_does_not_have_is_405_with_allow() -> None:
    answer = await ask("/livez", LOCAL, method="POST")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert answer.json()["error"]["reason"] == "method_not_allowed"


async def test_a_defect_answers_500_without_its_detail() -> None:
    answer = await ask("/status.json", LOCAL, view=BrokenProxy())
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/livez", [LOCAL], 200),
        ("/status.json", [LOCAL], 200),
        ("/nothing", [LOCAL], 404),
        ("/metrics", [], 421),
        ("/metrics", [LOCAL, (b"Origin", b"null")], 403),
        ("/metrics", [BEARER], 200),
        ("/metrics", [LOCAL], 401),
    ],
)
async def test_every_answer_forbids_caching_and_sniffing_and_sets_no_cookie(
    path: str, lines: Lines, status: int
) -> None:
    needs_token = status == 401 or BEARER in lines
    answer = await ask(path, *lines, token=TOKEN if needs_token else None)
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"LocalHost:9901", b"127.0.0.1", b"127.0.0.1:1", b"127.9.9.9:65535", b"[::1]", b"[::1]:1"],
)
@pytest.mark.parametrize("path", ["/metrics", "/status.json", "/livez"])
async def test_without_a_token_loopback_names_are_served(host: bytes, path: str) -> None:
    assert (await ask(path, (b"Host", host))).status_code == 200


NOT_LOOPBACK: list[Lines] = [
    [],
    [(b"Host", b"")],
    [(b"Host", b"evil.example")],
    [(b"Host", b"evil.example:9901")],
    [(b"Host", b"localhost:evil")],
    [(b"Host", b"localhost:")],
    [(b"Host", b"localhost:999999")],
    [(b"Host", b"localhost.")],
    [(b"Host", b"localhost.evil.example")],
    [(b"Host", b"evil.localhost")],
    [(b"Host", b"127.0.0.1.evil.example")],
    [(b"Host", b"127.1")],
    [(b"Host", b"0177.0.0.1")],
    [(b"Host", b"2130706433")],
    [(b"Host", b"0.0.0.0 127.0.0.1")],
    [(b"Host", b"user@localhost")],
    [(b"Host", b"localhost@evil.example")],
    [(b"Host", b"http://localhost")],
    [(b"Host", b"localhost/path")],
    [(b"Host", b"localhost, evil.example")],
    [(b"Host", b"::1")],
    [(b"Host", b"[::1")],
    [(b"Host", b"[::1]evil")],
    [(b"Host", b"[::1%25lo]")],
    [(b"Host", b"\xef\xbd\x8cocalhost")],
    [LOCAL, (b"Host", b"evil.example")],
    [LOCAL, LOCAL],
    [(b"Host", b"evil.example"), (b"X-Forwarded-Host", b"localhost")],
    [(b"Host", b"evil.example"), (b"X-Forwarded-For", b"127.0.0.1"), (b"Forwarded", b"host=localhost")],
]


@pytest.mark.parametrize("lines", NOT_LOOPBACK)
@pytest.mark.parametrize("path", [*HEALTH, *GUARDED])
async def test_without_a_token_any_other_host_is_421(lines: Lines, path: str) -> None:
    answer = await ask(path, *lines)
    assert answer.status_code == 421
    assert answer.json()["error"]["reason"] == "host_not_allowed"


@pytest.mark.parametrize("host", [b"10.0.0.7:9901", b"[fd00::7]:9901"])
async def test_a_kubelet_may_use_the_address_of_the_pod_for_health_only(host: bytes) -> None:
    for path in HEALTH:
        assert (await ask(path, (b"Host", host))).status_code == 200
    for path in GUARDED:
        assert (await ask(path, (b"Host", host))).status_code == 421


@pytest.mark.parametrize("origin", [b"http://localhost:9901", b"HTTP://LOCALHOST:9901"])
@pytest.mark.parametrize("path", ["/livez", "/status.json"])
async def test_a_page_of_the_listener_itself_may_ask(origin: bytes, path: str) -> None:
    assert (await ask(path, LOCAL, (b"Origin", origin))).status_code == 200


async def test_a_page_on_the_default_port_needs_no_port_in_its_origin() -> None:
    lines = [(b"Host", b"[::1]:80"), (b"Origin", b"http://[::1]")]
    assert (await ask("/status.json", *lines)).status_code == 200


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("path", [*HEALTH, *GUARDED])
@pytest.mark.parametrize(
    "origins",
    [
        [b"null"],
        [b""],
        [b"http://evil.example"],
        [b"http://localhost:3000"],
        [b"http://localhost"],
        [b"http://127.0.0.1:9901"],
        [b"http://localhost.:9901"],
        [b"http://localhost:9901.evil.example"],
        [b"http://user@localhost:9901"],
        [b"http://localhost:9901/"],
        [b"localhost:9901"],
        [b"\xff://localhost"],
        [b"http://localhost:9901", b"http://localhost:9901"],
    ],
)
async def test_any_other_origin_is_403_with_or_without_a_token(
    origins: list[bytes], path: str, token: str | None
) -> None:
    answer = await ask(path, LOCAL, BEARER, *((b"Origin", origin) for origin in origins), token=token)
    assert answer.status_code == 403
    assert answer.json()["error"]["reason"] == "origin_not_allowed"


async def test_a_remote_origin_is_403_even_where_it_equals_the_host() -> None:
    lines = [(b"Host", b"evil.example"), (b"Origin", b"http://evil.example"), BEARER]
    assert (await ask("/metrics", *lines, token=TOKEN)).status_code == 403


async def test_with_a_token_any_host_is_served_to_who_knows_it() -> None:
    for host in (b"proxy.mcp.svc:9901", b"10.0.0.7:9901", b"localhost"):
        assert (await ask("/metrics", (b"Host", host), BEARER, token=TOKEN)).status_code == 200
        lower = (b"authorization", b"bearer   " + TOKEN.encode())
        assert (await ask("/status.json", (b"Host", host), lower, token=TOKEN)).status_code == 200


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Bearer correct horse battery stapl")],
        [(b"Authorization", b"Bearer correct horse battery staple2")],
        [(b"Authorization", b"Bearer CORRECT HORSE BATTERY STAPLE")],
        [(b"Authorization", b"Bearer \xff")],
        [(b"Authorization", b"Basic correct horse battery staple")],
        [(b"Authorization", TOKEN.encode())],
        [(b"X-Authorization", b"Bearer " + TOKEN.encode())],
        [BEARER, BEARER],
        [BEARER, (b"Authorization", b"Bearer other")],
    ],
)
@pytest.mark.parametrize("path", SECRET)
async def test_without_the_token_everything_but_health_and_the_page_is_401(lines: Lines, path: str) -> None:
    answer = await ask(path, LOCAL, *lines, token=TOKEN)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="mcp-proxy admin"'
    assert TOKEN not in answer.text


@pytest.mark.parametrize("path", HEALTH)
async def test_health_stays_open_for_kubelets_when_there_is_a_token(path: str) -> None:
    assert (await ask(path, (b"Host", b"10.0.0.7:9901"), token=TOKEN)).status_code == 200


@pytest.mark.parametrize("path", SECRET)
async def test_the_token_for_metrics_opens_nothing_else(path: str) -> None:
    def asking(token: str) -> tuple[bytes, bytes]:
        return (b"Authorization", b"Bearer " + token.encode())

    known = (await ask(path, LOCAL, BEARER, token=TOKEN)).status_code
    for token, status in (("scraper", known if path == "/metrics" else 401), ("scrape", 401), ("", 401)):
        answer = await ask(path, LOCAL, asking(token), token=TOKEN, metrics_token="scraper")
        assert answer.status_code == status
    assert known != 401
    assert (await ask(path, LOCAL, BEARER, token=TOKEN, metrics_token="scraper")).status_code == known


@pytest.mark.parametrize("tokens", [("",), (TOKEN, "")])
def test_an_empty_token_stops_the_start(tokens: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="empty"):
        create_admin(Proxy(), *tokens)


def test_a_websocket_is_refused() -> None:
    app = create_admin(Proxy(), None)
    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(app, base_url="http://localhost").websocket_connect("/metrics"),
    ):
        pass
