"""The GitHub workflows, by our own rules: nothing has more rights, more time or more trust than it needs, and
what they call is there.

Rules of this file: workflows are read as data. Exceptions are named, with their reason, where they are
allowed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from tests.tools import actions
from tests.tools.actions import ROOT, USES, Step

WORKFLOWS = actions.workflows()
JOBS = [(name, job, body) for name, each in WORKFLOWS.items() for job, body in each["jobs"].items()]
STEPS = list(actions.steps())

WRITES = {
    ("publish.yaml", "attest"): {"attestations", "id-token"},
    ("publish.yaml", "image"): {"attestations", "id-token", "packages"},
    ("publish.yaml", "index"): {"id-token"},
    ("publish.yaml", "release"): {"contents"},
    ("codeql.yaml", "analyze"): {"security-events"},
}
"""Every right to change something that any job has."""

SECRETS = {("deploy.yaml", "production"): {"KUBE_CONFIG", "SMOKE_HEADER"}}
"""Every secret that is kept at all. The index and the registry need none."""


def of(workflow: str) -> dict[str, Any]:
    return {job: body for name, job, body in JOBS if name == workflow}


# --- pins -----------------------------------------------------------------------------------------------


def test_every_action_is_pinned_to_the_commit_of_the_version_behind_it() -> None:
    known = actions.known()
    used = set()
    for name in WORKFLOWS:
        for reference, version in USES.findall((actions.FOLDER / "workflows" / name).read_text()):
            if reference.startswith("$/"):
                assert (ROOT / reference.removeprefix("$/")).is_file(), reference
                continue
            action, _, commit = reference.partition("@")
            assert re.fullmatch(r"[0-9a-f]{40}", commit), reference
            assert (commit, version) == (known[action]["commit"], known[action]["version"]), reference
            used.add(action)

    assert used == known.keys()


def test_no_reference_escapes_the_pattern_that_looks_for_them() -> None:
    for name, workflow in WORKFLOWS.items():
        text = (actions.FOLDER / "workflows" / name).read_text()
        jobs = workflow["jobs"].values()
        there = [each["uses"] for body in jobs for each in (body, *body.get("steps", ())) if "uses" in each]
        assert sorted(there) == sorted(reference for reference, _ in USES.findall(text)), name


def test_one_commit_has_one_version() -> None:
    by_repository: dict[str, set[str]] = {}
    for action, each in actions.known().items():
        by_repository.setdefault("/".join(action.split("/")[:2]), set()).add(each["commit"])

    assert all(len(commits) == 1 for commits in by_repository.values())


def test_every_container_image_has_a_digest() -> None:
    digest = re.compile(r"@sha256:[0-9a-f]{64}$")
    for _, job, body in JOBS:
        assert "container" not in body or digest.search(body["container"]["image"]), job
        assert "services" not in body
    for step in STEPS:
        given = step.step.get("with", {})
        for key, prefix in (("driver-opts", "image="), ("sbom", "generator=")):
            if key in given:
                assert given[key].startswith(prefix), step
                assert digest.search(given[key]), step
        if "setup-qemu" in step.step.get("uses", ""):
            assert digest.search(given["image"])
        if "setup-buildx" in step.step.get("uses", ""):
            assert "driver-opts" in given


# --- rights ---------------------------------------------------------------------------------------------


def test_a_workflow_has_no_rights_and_a_job_those_that_are_written_beside_it() -> None:
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {}, name
    for name, job, body in JOBS:
        writes = {right for right, level in body["permissions"].items() if level != "read"}
        assert writes == WRITES.get((name, job), set()), (name, job)


def test_code_of_strangers_is_run_without_secrets_and_without_rights() -> None:
    triggers = {trigger for each in WORKFLOWS.values() for trigger in each["on"]}

    assert triggers == {"push", "pull_request", "workflow_call", "workflow_dispatch", "schedule"}
    for name, job, body in JOBS:
        if "pull_request" in WORKFLOWS[name]["on"]:
            # Analysing reports what it has found, and builds nothing.
            assert set(body["permissions"].values()) <= {"read"} or name == "codeql.yaml", (name, job)
            assert "environment" not in body


def test_secrets_are_those_that_are_known_and_reach_one_step() -> None:
    for name, job, body in JOBS:
        texts = [(str({key: each for key, each in body.items() if key != "steps"}), 0)]
        texts += [(str(step), 1) for step in body.get("steps", ())]
        found = [(secret, inside) for text, inside in texts for secret in re.findall(r"secrets\.(\w+)", text)]
        assert {secret for secret, _ in found} == SECRETS.get((name, job), set()), (name, job)
        assert len(found) == len(SECRETS.get((name, job), ()))
        assert all(inside for _, inside in found)
        assert body.get("secrets") is None


def test_what_leaves_the_repository_waits_for_its_environment_and_for_everything_that_could_say_no() -> None:
    publish = of("publish.yaml")
    assert publish["index"]["environment"] == "pypi"
    assert of("deploy.yaml")["production"]["environment"]["name"] == "production"
    for job in ("attest", "image", "index", "release"):
        assert _before(publish, job) >= {"version", "test", "build"}, job
    assert _before(publish, "index") >= {"image", "attest"}
    assert _before(publish, "release") >= {"index"}
    assert _before(of("deploy.yaml"), "production") == {"image"}


def _before(jobs: dict[str, Any], job: str) -> set[str]:
    needs = jobs[job].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct | {each for before in direct for each in _before(jobs, before)}


def test_publishing_starts_with_a_tag_and_with_nothing_else() -> None:
    assert WORKFLOWS["publish.yaml"]["on"] == {"push": {"tags": ["v*"]}}
    assert not any("if" in body for body in of("publish.yaml").values())


def test_an_image_gets_its_tags_behind_everything_that_could_refuse_it() -> None:
    names = [step["name"] for step in of("publish.yaml")["image"]["steps"]]
    push, tags = names.index("Build and push without a tag"), names.index("Give it its tags")
    pushed = of("publish.yaml")["image"]["steps"][push]["with"]

    assert "tags" not in pushed
    assert "push-by-digest=true" in pushed["outputs"]
    assert {"Run it as it is meant to be run", "Scan", "Attest where it comes from"} <= set(names[push:tags])


def test_a_deployment_is_verified_before_it_is_rolled_out() -> None:
    *_, find, verify = (step.get("run", "") for step in of("deploy.yaml")["image"]["steps"])

    # A branch that is called like a release: a job that is skipped would look like one that went well.
    assert find.startswith('[ "$GITHUB_REF_TYPE" = tag ] ||')
    assert not any("if" in body for body in of("deploy.yaml").values())

    for claim in (
        "--repo",
        "--signer-workflow",
        "--source-ref",
        "--source-digest",
        "--deny-self-hosted-runners",
    ):
        assert claim in verify
    assert "publish.yaml" in verify


# --- bounds ---------------------------------------------------------------------------------------------


def test_every_job_ends_and_none_is_run_twice_at_once() -> None:
    for name, workflow in WORKFLOWS.items():
        assert workflow["concurrency"]["group"], name
    for name, job, body in JOBS:
        if "uses" not in body:
            assert 0 < body["timeout-minutes"] <= 90, (name, job)
            assert re.fullmatch(r"ubuntu-\d\d\.\d\d(-arm)?|\$\{\{ matrix\.system \}\}", body["runs-on"]), (
                name,
                job,
            )


def test_what_changes_the_world_is_never_cut_in_the_middle() -> None:
    for name in ("publish.yaml", "deploy.yaml"):
        assert WORKFLOWS[name]["concurrency"]["cancel-in-progress"] is False


# --- what is called -------------------------------------------------------------------------------------

TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def test_every_make_target_is_there() -> None:
    named = {
        (step.workflow, target)
        for step in STEPS
        for target in re.findall(r"^\s*make ([a-z-]+)", step.shell, re.M)
    }
    in_a_matrix = set(of("nightly.yaml")["long"]["strategy"]["matrix"]["target"])

    assert {target for _, target in named} == {"check", "test", "dist"}
    assert {target for _, target in named} | in_a_matrix <= TARGETS


def test_every_script_is_there_and_can_be_run() -> None:
    named = {
        path for step in STEPS for path in re.findall(r"(?<![\w/.-])((?:scripts|\.ci)/[\w.-]+)", step.shell)
    }

    assert named >= {"scripts/release.py", "scripts/release-deploy.sh", "scripts/release-image.sh", ".ci/run"}
    for path in named:
        assert os.access(ROOT / path, os.X_OK), path


def test_every_python_that_is_supported_is_tested_and_no_other() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    matrix = of("test.yaml")["test"]["strategy"]["matrix"]

    assert set(matrix["python"]) == set(re.findall(r"Python :: (3\.\d+)", project))
    assert {each["python"] for each in matrix["include"]} <= set(matrix["python"])


def test_every_output_that_is_used_is_made() -> None:
    known = actions.known()
    for name, job, body in JOBS:
        made = {each["id"]: _outputs(each, known) for each in body.get("steps", ()) if "id" in each}
        for used, output in re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", str(body)):
            assert output in made[used], (name, job, used, output)


def _outputs(step: dict[str, Any], known: dict[str, dict[str, Any]]) -> set[str]:
    if "uses" in step:
        return set(known[step["uses"].partition("@")[0]]["outputs"])
    return set(re.findall(r'echo "([\w-]+)=.*>>"\$GITHUB_OUTPUT"', step["run"]))


def test_every_input_that_an_action_needs_is_given() -> None:
    known = actions.known()
    for step in STEPS:
        if "uses" in step.step:
            needed = set(known[step.step["uses"].partition("@")[0]]["required"])
            assert needed <= step.step.get("with", {}).keys(), step


def test_what_one_job_keeps_another_one_finds() -> None:
    def named(action: str, workflow: str) -> set[str]:
        return {
            _with(step)["name"]
            for step in STEPS
            if action in step.step.get("uses", "") and step.workflow == workflow
        }

    assert named("download-artifact", "publish.yaml") <= named("upload-artifact", "build.yaml")


def _with(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = step.step["with"]
    return found


# --- updates --------------------------------------------------------------------------------------------

MANIFESTS = {
    "github-actions": ".github/workflows",
    "pip": "pyproject.toml",
    "docker": "Dockerfile",
    "docker-compose": "compose.yaml",
    "terraform": "versions.tf",
}


def test_everything_that_is_pinned_is_proposed_anew_after_a_week() -> None:
    document = yaml.safe_load((actions.FOLDER / "dependabot.yaml").read_text())

    assert document.keys() == {"version", "updates"}
    assert {each["package-ecosystem"] for each in document["updates"]} == MANIFESTS.keys()
    for each in document["updates"]:
        assert each.keys() <= {"package-ecosystem", "directory", "schedule", "cooldown", "groups"}
        assert each["cooldown"] == {"default-days": 7}
        assert each["schedule"] == {"interval": "weekly"}
        folder = Path(str(ROOT) + each["directory"])
        assert (folder / MANIFESTS[each["package-ecosystem"]]).exists(), each
