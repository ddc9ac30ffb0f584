"""compose.yaml is valid, everything that it names exists, and every container in it is confined.

Rules of this file: nothing is started here; ``test_compose_up.py`` does that (``make image``). Each rule is
shown to fail on a file that breaks it.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from mcp_proxy.config import Loaded, read
from tests.tools.composed import SCHEMA, load
from tests.tools.dockerfile import parse
from tests.tools.npm import install
from tests.tools.proxy import ROOT

DOCUMENT = load()
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
DIGEST = re.compile(r"docker\.io/[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


@cache
def validator() -> Any:
    schema = json.loads((install(*SCHEMA) / "lib/compose-spec/schema/compose-spec.json").read_text())
    return jsonschema.Draft201909Validator(schema)


def complaints(document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(document)]


def changed(service: str, **keys: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document["services"][service] |= keys
    return document


def loaded() -> Loaded:
    return read(ROOT / "compose/proxy.yaml", {}, {})


def test_it_is_a_compose_file() -> None:
    assert complaints(DOCUMENT) == []


@pytest.mark.parametrize("key", ["readonly", "healthchecks", "depend_on"])
def test_a_typing_error_is_found(key: str) -> None:
    assert complaints(changed("proxy-1", **{key: True})) != []


def test_a_wrong_condition_is_found() -> None:
    assert complaints(changed("nginx", depends_on={"proxy-1": {"condition": "healthy"}})) != []


def test_no_key_is_written_twice() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice at {node.start_mark}: {keys}"
        return loader.construct_mapping(node)

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    yaml.load((ROOT / "compose.yaml").read_text(), Strict)  # a SafeLoader


# --- what it names exists ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        what, to, *mode = volume.split(":")
        assert to.startswith("/")
        if what.startswith("."):
            assert (ROOT / what).exists(), volume
            assert mode == ["ro"], volume
        else:
            assert what in DOCUMENT["volumes"], volume


@pytest.mark.parametrize("name", SERVICES)
def test_networks_and_dependencies_exist_and_whoever_is_waited_for_can_become_healthy(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("networks", ())) <= set(DOCUMENT["networks"])
    for other, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other], other
        else:
            assert (how["condition"], SERVICES[other]["restart"]) == ("service_completed_successfully", "no")


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_or_built_here_with_arguments_that_the_dockerfile_knows(name: str) -> None:
    service = SERVICES[name]
    assert DIGEST.fullmatch(service["image"]) or service["image"].startswith("mcp-proxy:")
    if "build" in service:
        stages = parse((ROOT / "Dockerfile").read_text()).stages
        known = {key for stage in stages for each in stage.all("ARG") for key in each.pairs({})}
        assert service["build"]["context"] == "."
        assert set(service["build"].get("args", {})) <= known


def test_an_image_of_our_own_is_built_by_exactly_one_service() -> None:
    """Two builds of one name at the same time fail with "already exists"."""
    images = [service["image"] for service in SERVICES.values()]
    built = [service["image"] for service in SERVICES.values() if "build" in service]
    assert sorted(built) == sorted({image for image in images if "@" not in image})


def test_the_configuration_of_the_proxies_has_no_error_and_no_warning() -> None:
    assert [str(warning) for warning in loaded().warnings] == []


def test_the_proxies_know_the_servers_and_redis_by_their_names_in_a_network_that_they_share() -> None:
    config = loaded().config
    urls = [str(backend.url) for backend in config.pools["example"].backends]
    hosts = {re.sub(r"^http://([\w-]+):8000/mcp$", r"\1", url) for url in urls}
    assert hosts == {name for name in SERVICES if name.startswith("server-")}
    assert all(SERVICES[host]["hostname"] == host for host in hosts), "they answer to this name only"
    assert "redis://redis:6379/" in (ROOT / "compose/proxy.yaml").read_text()
    for proxy in ("proxy-1", "proxy-2"):
        for other in (*hosts, "redis"):
            assert set(SERVICES[proxy]["networks"]) & set(SERVICES[other]["networks"])


def test_nginx_knows_the_proxies_by_their_names_and_by_the_address_that_is_published() -> None:
    text = (ROOT / "compose/nginx/replicas.conf").read_text()
    assert re.findall(r"^server ([\w-]+):8080 ", text, re.MULTILINE) == ["proxy-1", "proxy-2"]
    (port,) = SERVICES["nginx"]["ports"]
    assert port == "127.0.0.1:8443:443"
    assert str(loaded().config.external_url) == "https://localhost:8443"
    assert "server_name localhost;" in (ROOT / "compose/nginx/server_name.conf").read_text()


def test_the_files_of_this_site_take_the_place_of_files_that_nginx_includes() -> None:
    for volume in SERVICES["nginx"]["volumes"]:
        what, to, _ = volume.split(":")
        if what.startswith("./compose/"):
            shipped = ROOT / "nginx" / Path(to).relative_to("/etc/nginx")
            assert shipped.exists(), to
            settings = [
                {line.split()[0] for line in file.read_text().splitlines() if line and line[0] != "#"}
                for file in (shipped, ROOT / what)
            ]
            assert settings[0] == settings[1]


# --- confinement -------------------------------------------------------------------------------------


def loose(document: dict[str, Any]) -> list[str]:
    """Services that may more than they need, with what."""
    wanted = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    found = []
    for name, service in document["services"].items():
        found += [f"{name}: {key}" for key, value in wanted.items() if service.get(key) != value]
        found += [f"{name}: {key}" for key in ("pids_limit", "mem_limit", "restart") if key not in service]
        found += [
            f"{name}: {key}" for key in ("privileged", "cap_add", "devices", "pid", "ipc") if key in service
        ]
        found += [f"{name}: docker.sock" for each in service.get("volumes", ()) if "docker.sock" in each]
    return found


def test_every_container_is_confined() -> None:
    assert loose(DOCUMENT) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"read_only": False},
        {"cap_drop": []},
        {"cap_add": ["NET_ADMIN"]},
        {"privileged": True},
        {"security_opt": []},
    ],
)
def test_a_container_that_is_not_confined_is_found(keys: dict[str, Any]) -> None:
    assert len(loose(changed("redis", **keys))) == 1


def test_only_nginx_is_published_and_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["nginx"]
    assert all(port.startswith("127.0.0.1:") for port in published["nginx"])
    assert not [name for name, service in SERVICES.items() if service.get("network_mode") == "host"]


def test_nginx_reaches_neither_servers_nor_redis_and_these_have_no_way_out() -> None:
    networks = {name: set(service.get("networks", ())) for name, service in SERVICES.items()}
    assert networks["nginx"] == {"edge"}
    for name in ("server-1", "server-2", "redis"):
        assert "edge" not in networks[name]
        assert all(DOCUMENT["networks"][network]["internal"] for network in networks[name])
    assert not networks["redis"] & networks["server-1"]


def test_nobody_runs_as_root_but_what_makes_the_certificate_and_that_has_no_network() -> None:
    roots = [
        name for name, service in SERVICES.items() if service.get("user", "10001:10001").startswith("0:")
    ]
    assert roots == ["certificate"]
    assert SERVICES["certificate"]["network_mode"] == "none"


def test_the_admin_listener_is_reached_from_inside_of_the_container_only() -> None:
    admin = loaded().config.admin.listen
    assert admin is not None
    assert str(admin).startswith("127.0.0.1:")


def test_a_proxy_has_longer_to_drain_than_its_configuration_allows() -> None:
    limits = loaded().config.limits
    for name in ("proxy-1", "proxy-2"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > limits.drain_delay + limits.drain
    text = (ROOT / "nginx/conf.d/mcp-proxy.conf").read_text()
    keepalive = re.search(r"^ *keepalive_timeout (\d+)(ms|s);", text, re.MULTILINE)
    assert keepalive is not None
    idle_s = int(keepalive[1]) / (1000 if keepalive[2] == "ms" else 1)
    assert limits.drain_delay > idle_s, "or nginx sends into a connection that closes"


def test_a_proxy_refuses_work_before_its_container_is_killed_for_memory() -> None:
    memory = loaded().config.limits.memory
    assert memory is not None
    assert memory * 1.1 < int(SERVICES["proxy-1"]["mem_limit"].removesuffix("m")) * 2**20
