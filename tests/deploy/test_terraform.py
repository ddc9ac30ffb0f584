"""The Terraform module: what the provider takes, and the same objects as ``k8s``.

Rules of this file: no Terraform and no provider is at hand, so a file is read by HashiCorp's parser, held
against the names and kinds of the provider's own schema, and rendered for given variables; what comes out is
compared with what kustomize makes of ``k8s``, as Kubernetes objects. Where the two differ, DIFFERENCES says
why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mcp_proxy import __version__
from tests.deploy.rendered import K8S, OF_THE_OPERATOR, objects
from tests.deploy.terraformed import DIFFERENCES, EXAMPLES, FOLDER, module, read
from tests.tools import hcl, provider_schema
from tests.tools.terraform_objects import differences, objects_of

# --- syntax, and the provider's schema ------------------------------------------------------------------


def test_the_provider_takes_every_resource() -> None:
    for (of_type, name), body in module().resources.items():
        assert list(provider_schema.problems(of_type, body)) == [], name


SPOILT: dict[str, tuple[Callable[[str], str], str]] = {
    "a typo in an attribute": (
        lambda text: text.replace("enable_service_links", "enable_service_link"),
        "nobody knows",
    ),
    "a typo in a block": (
        lambda text: text.replace("startup_probe {", "startup_prob {"),
        "nobody knows startup_prob",
    ),
    "a typo in a generated block": (
        lambda text: text.replace('dynamic "env"', 'dynamic "envs"'),
        "nobody knows envs",
    ),
    "an attribute that has to be there": (
        lambda text: text.replace("mount_path =", "sub_path ="),
        "mount_path is missing",
    ),
    "a block written as an attribute": (
        lambda text: text.replace("capabilities {", "capabilities = {"),
        "is a block",
    ),
    "a word for a number": (
        lambda text: text.replace("max_skew           = 1", 'max_skew = "one"'),
        "number",
    ),
    "a resource of no provider": (
        lambda text: text.replace("deployment_v1", "deployment_v9"),
        "no such resource",
    ),
    "two where one may be": (
        lambda text: text.replace("  timeouts {\n", "  timeouts {}\n  timeouts {\n"),
        "once",
    ),
}


def test_what_the_provider_would_not_take_is_found(tmp_path: Path) -> None:
    text = (FOLDER / "deployment.tf").read_text()
    folders = {}
    for number, (what, (spoil, _)) in enumerate(SPOILT.items()):
        assert spoil(text) != text, what
        folders[what] = tmp_path / str(number)
        folders[what].mkdir()
        (folders[what] / "deployment.tf").write_text(spoil(text))

    for what, spoilt in zip(SPOILT, hcl.read(*folders.values()), strict=True):
        found = [
            each
            for (of_type, _), body in spoilt.resources.items()
            for each in provider_schema.problems(of_type, body)
        ]
        assert any(SPOILT[what][1] in each for each in found), (what, found)


def test_what_is_not_in_the_language_is_refused_in_the_parser_s_words(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text('resource "kubernetes_service_v1" {\n')

    with pytest.raises(hcl.Unreadable, match=r"main\.tf:1,.*Unclosed configuration block"):
        hcl.read(tmp_path)


def test_the_oldest_provider_that_is_allowed_is_the_one_whose_schema_is_known() -> None:
    for each in read().values():
        (providers,) = each.settings["required_providers"]
        lowest = providers["kubernetes"]["version"].partition(",")[0]

        assert lowest == f">= {provider_schema.VERSION.rpartition('.')[0]}", each.folder
        assert each.settings["required_version"] == ">= 1.5"


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [FOLDER, *EXAMPLES], ids=lambda folder: folder.name)
def test_what_is_used_is_declared_and_what_is_declared_is_used(folder: Path) -> None:
    parsed = read()[folder]
    in_providers = set(re.findall(r"\bvar\.(\w+)", (folder / "main.tf").read_text()))
    addresses = {f"{of_type}.{name}" for of_type, name in parsed.resources}

    assert parsed.mentioned("var") | in_providers == parsed.variables.keys()
    assert parsed.mentioned("local") == parsed.locals.keys()
    assert parsed.mentioned("module") <= parsed.modules.keys()
    for of_type, _ in parsed.resources:
        assert {f"{of_type}.{name}" for name in parsed.mentioned(of_type)} <= addresses


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_gives_what_the_module_takes_and_uses_what_it_puts_out(folder: Path) -> None:
    (call,) = read()[folder].modules.values()

    assert (folder / call["source"]).resolve() == FOLDER
    assert call.keys() - {"source"} <= module().variables.keys()
    assert {name for name, each in module().variables.items() if "default" not in each} <= call.keys()
    texts = [text for each in read()[folder].outputs.values() for text in hcl.strings(each)]
    assert set(re.findall(r"module\.mcp_proxy\.(\w+)", " ".join(texts))) <= module().outputs.keys()


@pytest.mark.parametrize("folder", [FOLDER, *EXAMPLES], ids=lambda folder: folder.name)
def test_every_variable_says_its_type_and_everything_says_what_it_is(folder: Path) -> None:
    parsed = read()[folder]

    for name, each in (*parsed.variables.items(), *parsed.outputs.items()):
        assert each["description"].strip(), name
    for name, variable in parsed.variables.items():
        assert "type" in variable, name


def test_a_variable_is_null_only_where_that_means_something() -> None:
    nullable = {name for name, variable in module().variables.items() if variable.get("nullable", True)}

    assert nullable == {"priority_class_name", "streams_per_replica"}


# --- the same as k8s ------------------------------------------------------------------------------------


SAME_IN_PRODUCTION = ("ConfigMap", "Deployment", "HorizontalPodAutoscaler")
"""Of the Redis example and the production overlay; what is around the proxy comes from elsewhere."""


def test_with_its_defaults_it_makes_the_objects_of_the_base() -> None:
    assert differences(objects("base"), objects_of(module(), {})) == {each.place for each in DIFFERENCES}


OTHER_FIELDS = {
    "readinessProbe.httpGet.path": ('path = "/readyz"', 'path = "/livez"'),
    "readOnlyRootFilesystem": ("read_only_root_filesystem  = true", "read_only_root_filesystem = false"),
    "capabilities.drop": ('drop = ["ALL"]', "drop = []"),
    "terminationGracePeriodSeconds": ("termination_grace_period_seconds = var", "# var"),
    "args": ('"--config", ', ""),
}


def test_a_field_that_differs_is_found(tmp_path: Path) -> None:
    folders = {}
    for place, spoil in OTHER_FIELDS.items():
        folders[place] = tmp_path / place
        folders[place].mkdir()
        for file in FOLDER.glob("*.tf"):
            (folders[place] / file.name).write_text(file.read_text().replace(*spoil))

    for place, spoilt in zip(OTHER_FIELDS, hcl.read(*folders.values()), strict=True):
        found = differences(objects("base"), objects_of(spoilt, {}))
        ((kind, _, path),) = found - {each.place for each in DIFFERENCES}
        assert (kind, path.endswith(place)) == ("Deployment", True), path


def test_the_example_with_redis_makes_the_proxy_of_the_production_overlay() -> None:
    (call,) = read()[FOLDER / "examples/redis"].modules.values()
    values = {key: value for key, value in call.items() if key not in ("source", "image", "configuration")}
    configuration = (FOLDER / "examples/redis/proxy.yaml").read_text()

    made = objects_of(module(), {**values, "configuration": configuration})

    theirs = [each for each in objects("overlays/production") if each["metadata"]["name"] == "mcp-proxy"]
    ours = [each for each in made if each["kind"] in SAME_IN_PRODUCTION]
    theirs = [each for each in theirs if each["kind"] in SAME_IN_PRODUCTION]
    assert differences(theirs, ours) == {
        each.place for each in DIFFERENCES if each.kind in SAME_IN_PRODUCTION
    }


def test_whom_to_let_in_is_named_and_nobody_else_gets_in() -> None:
    clients = [{"namespace": "agents", "pods": {"app": "agent"}}, {"namespace": "gateway-system", "pods": {}}]

    (policy,) = [
        each
        for each in objects_of(module(), {"clients": clients})
        if each["metadata"]["name"] == "mcp-proxy-from-clients"
    ]

    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert rule["from"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agents"}},
            "podSelector": {"matchLabels": {"app": "agent"}},
        },
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway-system"}},
            "podSelector": {},
        },
    ]


def test_without_a_name_to_let_in_there_is_no_rule_that_lets_in_everybody() -> None:
    for each in objects_of(module(), {}):
        for rule in each.get("spec", {}).get("ingress", ()) if each["kind"] == "NetworkPolicy" else ():
            assert rule.get("from")


def test_the_store_comes_behind_the_secrets_that_it_names() -> None:
    text = (FOLDER / "deployment.tf").read_text()

    assert text.index('dynamic "env"') < text.index("env {\n")


def test_secrets_are_named_and_never_held() -> None:
    keys: dict[str, set[str]] = {}
    for each in module().defaults()["secret_env"].values():
        keys.setdefault(each["name"], set()).add(each["key"])

    assert keys == {"mcp-proxy": OF_THE_OPERATOR["Secret", "mcp-proxy"] - {"metrics-token"}}, "nobody scrapes"
    assert not [of_type for of_type, _ in module().resources if "secret" in of_type]


def test_the_image_is_that_of_this_version() -> None:
    assert module().defaults()["image"] == f"ghcr.io/mcp-proxy/mcp-proxy:{__version__}"


def test_configurations_are_those_of_k8s() -> None:
    default = module().defaults()["configuration"]

    assert yaml.safe_load(default) == yaml.safe_load((K8S / "base/proxy.yaml").read_text())
    for theirs, ours in (("overlays/production", "redis"),):
        assert (FOLDER / "examples" / ours / "proxy.yaml").read_text() == (
            K8S / theirs / "proxy.yaml"
        ).read_text()


# --- what is refused ------------------------------------------------------------------------------------

GOOD_AND_BAD = {
    "image": (
        ["ghcr.io/mcp-proxy/mcp-proxy:0.1.0", f"localhost:5000/x@sha256:{'0a' * 32}"],
        ["ghcr.io/mcp-proxy/mcp-proxy", "localhost:5000/x", "x@sha256:12", f"x@sha256:{'0A' * 32}", "x:"],
    ),
    "sessions": (
        [
            "signed",
            "redis://:$(P)@redis:6379/0",
            "rediss://redis",
            "redis+sentinel://a,b/s/0",
            "redis+cluster://a",
        ],
        ["memory", "", "redis://", "http://redis", "signedredis://x"],
    ),
    "name": (["mcp-proxy", "a", "a" + "b" * 41], ["", "-a", "a-", "A", "a.b", "a" + "b" * 42, "1a"]),
}


@pytest.mark.parametrize("name", GOOD_AND_BAD)
def test_a_value_that_cannot_be_right_is_refused(name: str) -> None:
    (validation,) = module().variables[name]["validation"]
    quoted = re.search(r'regex\("(.*?[^\\])", var\.', validation["condition"])
    assert quoted is not None
    pattern = re.compile(quoted[1].replace("\\\\", "\\"))
    good, bad = GOOD_AND_BAD[name]

    assert [value for value in good if not pattern.search(value)] == []
    assert [value for value in bad if pattern.search(value)] == []
