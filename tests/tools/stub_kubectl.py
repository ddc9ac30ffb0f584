"""A kubectl without a cluster: renders for real, and for the rest keeps a Deployment, a ConfigMap and a log.

    STATE=FOLDER python stub_kubectl.py ARGUMENTS...

STATE/log gets a line for each call. STATE/fail names calls that fail, one beginning to a line.
STATE/cluster.json is what there is: the Deployment's revision and image, and the ConfigMap's data. With
STATE/rendered.yaml nothing is rendered: that is taken, with the image of the kustomization.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

STATE = Path(os.environ["STATE"])
FOREVER_S = 3600.0


def main(arguments: list[str]) -> int:
    words = [
        each for each in arguments if not each.startswith("--") and each != os.environ.get("NAMESPACE", "mcp")
    ]
    call = " ".join(words)
    with (STATE / "log").open("a") as log:
        log.write(f"{call}\n")
    fails = [line for line in (STATE / "fail").read_text().splitlines() if call.startswith(line)]
    cluster = json.loads((STATE / "cluster.json").read_text())
    match words:
        case ["kustomize", folder]:
            print(rendered(Path(folder)))
        case ["get", "deployment", *_]:
            print(cluster["revision"] or "", end="")
        case ["get", "configmap", *_]:
            print(json.dumps(cluster["data"]) if cluster["data"] else "", end="")
        case ["apply", _, file]:
            cluster = applied(cluster, Path(file))
        case ["patch", "configmap", _, _, patch]:
            (change,) = json.loads(patch)
            cluster["data"] = change["value"]
        case ["rollout", "undo", *_, revision]:
            # As in a cluster: what was comes back under a new number.
            cluster |= {"image": cluster["history"][revision], "revision": str(int(cluster["revision"]) + 1)}
        case ["port-forward", *_] if not fails:
            (STATE / "forward.pid").write_text(str(os.getpid()))
            print("Forwarding from 127.0.0.1:34567 -> 8080", flush=True)
            time.sleep(FOREVER_S)
    (STATE / "cluster.json").write_text(json.dumps(cluster))
    if fails:
        print(f"error: {call}", file=sys.stderr)
    return 1 if fails else 0


def rendered(folder: Path) -> str:
    before = STATE / "rendered.yaml"
    if before.exists():
        found = re.search(r"newName: (\S+), digest: \"(\S+)\"", (folder / "kustomization.yaml").read_text())
        assert found is not None
        return re.sub(
            r"(image: ghcr\.io/mcp-proxy/mcp-proxy):\S+", f"image: {found[1]}@{found[2]}", before.read_text()
        )
    from tests.tools import kustomize

    # The real one may be the real kubectl, which is behind this one on the path.
    os.environ["PATH"] = os.environ["PATH"].partition(":")[2]
    return kustomize.text(folder)


def applied(cluster: dict[str, object], file: Path) -> dict[str, object]:
    from tests.tools import kustomize

    objects = {(each["kind"], each["metadata"]["name"]): each for each in kustomize.objects(file.read_text())}
    image = objects["Deployment", "mcp-proxy"]["spec"]["template"]["spec"]["containers"][0]["image"]
    history = dict(cluster["history"])  # type: ignore[call-overload]
    revision = cluster["revision"]
    if image != cluster["image"]:
        revision = str(int(str(revision or 0)) + 1)
        history[revision] = image
    return {
        "revision": revision,
        "image": image,
        "history": history,
        "data": objects["ConfigMap", "mcp-proxy"]["data"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
