"""scripts/release-deploy.sh: what it does to a cluster, and that it goes back when that does not work.

Rules of this file: the script is run as it is, in a copy of the tree; the real kustomize renders, where it
matters what it makes. The cluster is tests/tools/stub_kubectl.py, which fails where it is told to; what
counts is what is in the cluster afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendered import text
from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports

ROOT = Path(__file__).parents[2]
REPOSITORY = "ghcr.io/mcp-proxy/mcp-proxy"
OLD, NEW = (f"{REPOSITORY}@sha256:{digit * 64}" for digit in "ab")


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.tree, self.state, self._bin = folder / "tree", folder / "state", folder / "bin"
        for name in ("scripts", "k8s"):
            shutil.copytree(ROOT / name, self.tree / name)
        self.state.mkdir()
        (self.state / "rendered.yaml").write_text(text("base"))
        self._bin.mkdir()
        self.fails()
        self.holds(revision="4", image=OLD, history={"3": OLD, "4": OLD}, data={"proxy.yaml": "old: 'yes'\n"})
        self.command("kubectl", f'exec {sys.executable} -m tests.tools.stub_kubectl "$@"')
        self.smokes("exit 0")

    def command(self, name: str, body: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self._bin / name).chmod(0o755)

    def smokes(self, body: str) -> None:
        self.command("smoke", f'echo "smoke $*" >>"$STATE/log"\n{body}')

    def renders(self) -> None:
        (self.state / "rendered.yaml").unlink()

    def fails(self, *calls: str) -> None:
        (self.state / "fail").write_text("\n".join(calls))

    def holds(self, **cluster: Any) -> None:
        (self.state / "cluster.json").write_text(json.dumps(cluster))

    @property
    def image(self) -> Any:
        return json.loads((self.state / "cluster.json").read_text())["image"]

    @property
    def configuration(self) -> Any:
        return json.loads((self.state / "cluster.json").read_text())["data"]

    @property
    def calls(self) -> list[str]:
        log = self.state / "log"
        return log.read_text().splitlines() if log.exists() else []

    def deploy(self, image: str, overlay: str = "k8s/base", **environ: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.tree / "scripts/release-deploy.sh", image, overlay],
            env={
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "STATE": str(self.state),
                "SMOKE": "smoke --shape smoke",
                "SMOKE_PATH": "",
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_what_works_stays_and_is_tried_before_anybody_is_told(cluster: Cluster) -> None:
    cluster.renders()

    code, said = cluster.deploy(NEW, "k8s/overlays/production")

    assert (code, cluster.image) == (0, NEW), said
    assert cluster.configuration.keys() == {"proxy.yaml"}
    assert "old" not in cluster.configuration["proxy.yaml"]
    words = [call.split()[0] for call in cluster.calls]
    assert words == ["kustomize", "get", "get", "apply", "rollout", "port-forward", "smoke"]
    assert cluster.calls[-1] == "smoke --shape smoke http://127.0.0.1:34567/mcp"
    assert f"{NEW} runs" in said


def test_a_port_that_was_forwarded_is_given_back(cluster: Cluster) -> None:
    code, said = cluster.deploy(NEW)
    assert code == 0, said

    pid = int((cluster.state / "forward.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("failing", ["rollout status", "port-forward"])
def test_what_does_not_come_up_is_taken_back_with_its_configuration(failing: str, cluster: Cluster) -> None:
    cluster.fails(failing)

    code, said = cluster.deploy(NEW)

    assert (code, cluster.image, cluster.configuration) == (1, OLD, {"proxy.yaml": "old: 'yes'\n"}), said


def test_what_comes_up_and_does_not_work_is_taken_back(cluster: Cluster) -> None:
    cluster.smokes("exit 1")

    code, said = cluster.deploy(NEW)

    assert (code, cluster.image, cluster.configuration) == (1, OLD, {"proxy.yaml": "old: 'yes'\n"}), said
    assert "rollout undo deployment/mcp-proxy 4" in cluster.calls
    assert "back at what was revision 4" in said


LOSES_THE_FORWARD = """
pid=$(cat "$STATE/forward.pid")
touch "$STATE/lost"
kill "$pid"
# Gone when the script has noticed, whose child it is.
while kill -0 "$pid" 2>/dev/null; do :; done
exit 1
"""
ONCE = 'if [ -e "$STATE/lost" ]; then exit %d; fi'


@pytest.mark.parametrize(("then", "code", "image"), [(0, 0, NEW), (1, 1, OLD)])
def test_a_forward_that_died_is_made_once_more_before_anything_is_undone(
    then: int, code: int, image: str, cluster: Cluster
) -> None:
    cluster.smokes(f"{ONCE % then}\n{LOSES_THE_FORWARD}")

    became, said = cluster.deploy(NEW)

    assert (became, cluster.image) == (code, image), said
    words = [call.split()[0] for call in cluster.calls]
    assert (words.count("port-forward"), words.count("smoke")) == (2, 2)


def test_a_forward_that_dies_every_time_is_not_made_for_ever(cluster: Cluster) -> None:
    cluster.smokes(LOSES_THE_FORWARD)

    code, said = cluster.deploy(NEW)

    assert (code, cluster.image) == (1, OLD), said
    assert [call.split()[0] for call in cluster.calls].count("smoke") == 2


def test_what_does_not_work_through_a_living_forward_is_tried_once(cluster: Cluster) -> None:
    cluster.smokes("exit 1")
    cluster.deploy(NEW)

    assert [call.split()[0] for call in cluster.calls].count("smoke") == 1


def test_credentials_of_the_smoke_test_are_one_argument_and_are_told_to_nobody_else(cluster: Cluster) -> None:
    cluster.smokes('printf "[%s]" "$@" >"$STATE/arguments"')
    cluster.command(
        "kubectl",
        f'[ -z "${{SMOKE_HEADER-}}" ] || exit 9\nexec {sys.executable} -m tests.tools.stub_kubectl "$@"',
    )

    code, said = cluster.deploy(NEW, SMOKE_HEADER="Authorization: Bearer a  b*")

    assert code == 0, said
    assert (cluster.state / "arguments").read_text() == (
        "[--shape][smoke][--header][Authorization: Bearer a  b*][http://127.0.0.1:34567/mcp]"
    )
    assert "Bearer" not in said


def test_whatever_else_goes_wrong_behind_a_rollout_is_a_reason_to_go_back(cluster: Cluster) -> None:
    cluster.command("sed", "exit 2")

    code, said = cluster.deploy(NEW)

    assert (code, cluster.image, cluster.configuration) == (1, OLD, {"proxy.yaml": "old: 'yes'\n"}), said


def test_a_configuration_that_does_not_work_is_taken_back_without_a_rollout(cluster: Cluster) -> None:
    cluster.holds(revision="4", image=NEW, history={"4": NEW}, data={"proxy.yaml": "old: true\n"})
    cluster.smokes("exit 1")

    code, said = cluster.deploy(NEW)

    assert (code, cluster.configuration) == (1, {"proxy.yaml": "old: true\n"})
    assert not [call for call in cluster.calls if call.startswith("rollout undo")]
    assert "the pods have not changed" in said


def test_the_first_release_has_nothing_to_go_back_to(cluster: Cluster) -> None:
    cluster.holds(revision=None, image=None, history={}, data=None)
    cluster.fails("rollout status")

    code, said = cluster.deploy(NEW)

    assert (code, cluster.image) == (1, NEW)
    assert "nothing to go back to" in said


def test_going_back_that_fails_is_not_called_a_success(cluster: Cluster) -> None:
    cluster.fails("rollout status", "rollout undo")

    code, said = cluster.deploy(NEW)

    assert code == 1
    assert "going back did not work either" in said
    assert "back at" not in said


@pytest.mark.parametrize(
    "image",
    [
        "",
        f"{REPOSITORY}:0.1.0",
        REPOSITORY,
        f"{REPOSITORY}@sha256:abc",
        f"{REPOSITORY}@sha256:{'A' * 64}",
        f"{REPOSITORY}:1, x: y@sha256:{'a' * 64}",
        f"{REPOSITORY}\n@sha256:{'a' * 64}",
    ],
)
def test_an_image_without_a_digest_is_refused_before_anything_is_touched(
    image: str, cluster: Cluster
) -> None:
    code, said = cluster.deploy(image)

    assert (code, cluster.calls) == (2, []), said


def test_an_overlay_that_is_not_there_is_refused(cluster: Cluster) -> None:
    code, _ = cluster.deploy(NEW, "k8s/overlays/producton")

    assert (code, cluster.calls) == (2, [])


def test_manifests_that_would_run_another_image_are_refused(cluster: Cluster) -> None:
    cluster.renders()
    deployment = cluster.tree / "k8s/base/deployment.yaml"
    deployment.write_text(
        deployment.read_text().replace(f"image: {REPOSITORY}:", "image: docker.io/elsewhere/mcp-proxy:")
    )

    code, said = cluster.deploy(NEW)

    assert (code, cluster.calls) == (2, ["kustomize build/deploy"])
    assert f"do not run {NEW}" in said


@pytest.mark.parametrize("failing", ["get deployment", "get configmap"])
def test_a_cluster_that_does_not_answer_is_left_alone(failing: str, cluster: Cluster) -> None:
    cluster.fails(failing)

    code, _ = cluster.deploy(NEW)

    assert (code, cluster.image) == (2, OLD)


def test_a_mirror_of_the_image_is_deployed_by_the_same_digest(cluster: Cluster) -> None:
    cluster.renders()
    mirrored = f"registry.example.com:5000/mirror/mcp-proxy@sha256:{'c' * 64}"

    code, said = cluster.deploy(mirrored)

    assert (code, cluster.image) == (0, mirrored), said


def test_the_smoke_test_that_is_run_by_default_is_one_that_the_command_takes(tmp_path: Path) -> None:
    text = (ROOT / "scripts/release-deploy.sh").read_text()
    default = re.search(r"^readonly SMOKE=\$\{SMOKE:-\.venv/bin/mcp-proxy (.*)\}$", text, re.M)
    mix = re.search(r"^readonly MIX=(\S+)$", text, re.M)
    assert default is not None
    assert mix is not None
    (port,) = free_ports(1)
    arguments = default[1].replace("$MIX", mix[1]).replace("$WORK", str(tmp_path)).split()

    done = subprocess.run(
        [Path(sys.executable).with_name("mcp-proxy"), *arguments, f"http://127.0.0.1:{port}/mcp"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    # Nobody listens there: that it says so means that it has understood.
    assert done.returncode == 3, done.stderr


def test_what_an_environment_sets_for_the_smoke_test_is_read_by_the_script_and_named_on_the_page() -> None:
    workflow = (ROOT / ".github/workflows/deploy.yaml").read_text()
    named = set(re.findall(r"(\w+): \$\{\{ (?:secrets|vars)\.\1 \}\}", workflow)) - {"KUBE_CONFIG"}

    assert named == {"SMOKE_HEADER", "SMOKE_PATH"}
    for name in named:
        assert f"${{{name}:-" in (ROOT / "scripts/release-deploy.sh").read_text()
        assert f"`{name}`" in (ROOT / "docs/ci-cd.md").read_text()
