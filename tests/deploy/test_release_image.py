"""scripts/release-image.sh: an image that does not say who it is, or does not live, is not released.

Rules of this file: the script is run as it is. Without an engine, `docker` is a few lines that note how the
container is confined and run the same command of this environment: what the script asks of the proxy, the
proxy is asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_proxy import __version__
from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports

ROOT = Path(__file__).parents[2]
IMAGE = "mcp-proxy:built"
PROXY = str(Path(sys.executable).with_name("mcp-proxy"))

DOCKER = r"""#!/bin/bash
printf '%s\n' "$*" >>"$STATE/log"
case $1 in
rm)
    kill "$(cat "$STATE/pid")" || exit 0
    tail --pid "$(cat "$STATE/pid")" -f /dev/null
    ;;
logs) cat "$STATE/output" ;;
run)
    while [ "$1" != "$IMAGE" ]; do
        case $1 in --detach) detach=1 ;; --env) export "$2" ;; esac
        shift
    done
    shift
    if [ -z "${detach-}" ]; then exec "$COMMAND" "$@"; fi
    # The ports inside of a container are its own; here they are a test's.
    set -- "${@/#0.0.0.0:8080/0.0.0.0:$PUBLIC_PORT}"
    set -- "${@/#0.0.0.0:9901/0.0.0.0:$ADMIN_PORT}"
    "$COMMAND" "$@" >"$STATE/output" 2>&1 &
    echo $! >"$STATE/pid"
    echo a-container
    ;;
esac
"""


class Engine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public, self.admin = free_ports(2)
        self.program("docker", DOCKER)

    def program(self, name: str, text: str) -> str:
        file = self.folder / name
        file.write_text(text)
        file.chmod(0o755)
        return str(file)

    def check(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            [ROOT / "scripts/release-image.sh", IMAGE],
            env={
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "STATE": str(self.folder),
                "IMAGE": IMAGE,
                "COMMAND": command,
                "ADMIN_PORT": str(self.admin),
                "PUBLIC_PORT": str(self.public),
            },
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stderr

    @property
    def calls(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def test_an_image_of_this_version_that_lives_is_fine_and_is_stopped(engine: Engine) -> None:
    code, said = engine.check(PROXY)

    assert (code, said) == (0, "")
    assert [call.split()[0] for call in engine.calls] == ["run", "run", "rm"]
    assert not Path("/proc", (engine.folder / "pid").read_text().strip()).exists()


def test_it_runs_without_privileges_without_a_disk_and_at_first_without_a_network(engine: Engine) -> None:
    engine.check(PROXY)

    version, serve, _ = engine.calls
    for call in (version, serve):
        assert "--read-only --cap-drop ALL --security-opt no-new-privileges" in call
        assert "--privileged" not in call
    assert "--network none" in version
    assert f"--publish 127.0.0.1:{engine.admin}:9901" in serve


def test_an_image_of_another_version_is_not_released(engine: Engine) -> None:
    code, said = engine.check(engine.program("other", "#!/bin/sh\necho mcp-proxy 0.0.9\n"))

    assert code == 1
    assert f"says 'mcp-proxy 0.0.9' and not 'mcp-proxy {__version__}'" in said


def test_an_image_that_does_not_live_is_not_released_and_says_why(engine: Engine) -> None:
    script = f"#!/bin/sh\n[ $1 = version ] && exec {PROXY} version\necho 'no such file' >&2\nexit 3\n"
    engine.program("curl", "#!/bin/sh\nexit 7\n")  # as after 30 tries

    code, said = engine.check(engine.program("dies", script))

    assert code == 1
    assert "no such file" in said
    assert f"{IMAGE} on linux/amd64: does not live" in said
