"""Builds our Dockerfile without an engine: the same steps, on an overlay, in a jail (``container`` runs the
image).

Rules of this file: every instruction does what it does in a build
(https://docs.docker.com/reference/dockerfile/), or is refused; a layer is the upper directory of an overlay,
so that it can be looked at file by file. The base image is a Debian root (``debian_root``); what an engine
adds (name resolution, mount points) is in a layer of its own and never in the image. Needs root. The network
is that of this machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.tools.container import PATH, Image, engine_layer, jailed
from tests.tools.dockerfile import Dockerfile, Ignored, Instruction, Stage, expand
from tests.tools.proxy import ROOT

STEP_S = 600.0
_CLIENTS = (
    "PIP_",
    "SSL_CERT_",
    "REQUESTS_CA_BUNDLE",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
)
_PIP_FILES = tuple(Path(each) for each in ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf"))
_CONTEXT = "/.engine/context"


class Builder:
    """``build`` once. ``folder`` is empty, on a file system that can carry overlays (not another overlay)."""

    def __init__(
        self, dockerfile: Dockerfile, base: Path, context: Path, folder: Path, **arguments: str
    ) -> None:
        self._dockerfile, self._base, self._folder = dockerfile, base, folder
        self._context = context
        self._given = arguments
        self._made: dict[str, Image] = {}
        self._engine = engine_layer(folder / "engine", f"{_CONTEXT}/", "/etc/pip.conf", network=True)

    def build(self) -> Image:
        image = Image(self._base, self._folder)
        for number, stage in enumerate(self._dockerfile.stages):
            image = self._stage(stage, self._folder / f"stage{number}")
            self._made[stage.name or str(number)] = image
        return image

    def _stage(self, stage: Stage, folder: Path) -> Image:
        folder.mkdir()
        image = Image(self._base, folder / "layer")
        image.layer.mkdir()
        (folder / "work").mkdir()
        arguments: dict[str, str] = {}
        for instruction in stage.instructions:
            if instruction.name == "ARG":
                default = instruction.pairs(arguments | image.env)
                arguments |= {name: self._given.get(name, value) for name, value in default.items()}
            else:
                self._do(instruction, image, arguments | image.env)
        return image

    def _do(self, instruction: Instruction, image: Image, variables: dict[str, str]) -> None:
        value = expand(instruction.value, variables)
        match instruction.name:
            case "WORKDIR":
                self._run(image, ["mkdir", "-p", value], {})
                image.cwd = value
            case "RUN":
                self._run(image, ["/bin/sh", "-c", instruction.value], variables, instruction.flags)
            case "COPY":
                self._copy(image, instruction, value)
            case _:
                _note(instruction, image, value, variables)

    def _copy(self, image: Image, instruction: Instruction, value: str) -> None:
        *sources, target = value.split()
        assert set(instruction.flags) <= {"from"}, instruction
        stage = instruction.flags.get("from")
        into = os.path.join(image.cwd, target)
        # From another stage owners stay, from the context everything belongs to root.
        script = 'mkdir -p "$2" && cp -a ' + ("" if stage else "--no-preserve=ownership ") + '"$1" "$2"'
        for source in sources:
            path = f"{_CONTEXT}/{source.lstrip('/')}"
            is_folder = self._lies_in_context(stage, source)
            at = into if is_folder or into.endswith("/") or into.endswith(".") else os.path.dirname(into)
            assert is_folder or at != os.path.dirname(into) or Path(into).name == Path(source).name
            words = ["/bin/sh", "-c", script, "sh", f"{path}/." if is_folder else path, at]
            self._run(image, words, {}, source=self._made[stage] if stage else None)

    def _lies_in_context(self, stage: str | None, source: str) -> bool:
        """Whether it is a folder there, whose content is copied."""
        found = self._made[stage].find(source) if stage else self._context / source
        assert found.exists(), f"COPY {source}: no such file in {stage or 'the context'}"
        return found.is_dir()

    def _run(
        self,
        image: Image,
        argv: list[str],
        variables: Mapping[str, str],
        flags: Mapping[str, str] | None = None,
        source: Image | None = None,
    ) -> None:
        """One step, as root, with the context (or another stage) at its place."""
        binds, overlays = [], []
        at = self._folder / "root"
        at.mkdir(exist_ok=True)
        lower = [str(self._engine), str(image.base)]
        layer = {"upper": str(image.layer), "work": str(image.layer.parent / "work")}
        overlays.append({"at": str(at), "lower": lower, **layer})
        if source is not None:
            other = self._folder / "source"
            other.mkdir(exist_ok=True)
            overlays.append({"at": str(other), "lower": [str(source.layer), str(source.base)]})
            binds.append({"from": str(other), "to": _CONTEXT})
        else:
            binds.append({"from": str(self._context), "to": _CONTEXT})
        if flags:
            assert flags == {"mount": "type=secret,id=pip.conf,target=/etc/pip.conf"}, flags
            found = (path for path in _PIP_FILES if path.expanduser().exists())
            binds += [{"from": str(path.expanduser()), "to": "/etc/pip.conf"} for path in list(found)[:1]]
        clients = {name: value for name, value in os.environ.items() if name.startswith(_CLIENTS)}
        env = {"PATH": PATH, "HOME": "/root", **clients, **variables}
        words = jailed(root=at, overlays=overlays, binds=binds, argv=argv, env=env, cwd=image.cwd)
        step = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STEP_S)
        assert step.returncode == 0, f"{argv}:\n{step.stdout[-2000:]}{step.stderr[-4000:]}"


def _note(instruction: Instruction, image: Image, value: str, variables: dict[str, str]) -> None:
    """What is written into the image's metadata."""
    match instruction.name:
        case "ENV":
            image.env |= instruction.pairs(variables)
        case "LABEL":
            image.labels |= instruction.pairs(variables)
        case "USER":
            image.user = value
        case "EXPOSE":
            image.ports += value.split()
        case "STOPSIGNAL":
            image.stop_signal = value
        case "ENTRYPOINT":
            image.entrypoint = instruction.form()
        case "CMD":
            image.command = instruction.form()
        case name:
            raise ValueError(f"line {instruction.line}: {name} is not known here")


def context_files() -> set[str]:
    """The files that a build sends, relative to the repository."""
    is_ignored = Ignored((ROOT / ".dockerignore").read_text())
    found = set()
    for top, folders, names in os.walk(ROOT):
        place = Path(top).relative_to(ROOT)
        if place == Path():  # large, and ignored as a whole
            folders[:] = [each for each in folders if each not in (".git", ".venv", "build")]
        paths = (str(place / name) for name in names)
        found |= {path for path in paths if not is_ignored(path)}
    return found


def send(folder: Path) -> Path:
    """Copies what a build sends to ``folder``, with the modes that git knows; returns that."""
    for path in context_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
        target.chmod(0o755 if (ROOT / path).stat().st_mode & 0o100 else 0o644)
    return folder


def listing(folder: Path) -> dict[str, str]:
    """Everything below, with kind, mode, owner and content; not with times, which the exporter of an image
    sets."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        kind = stat.filemode(status.st_mode)
        text = f"{kind} {status.st_uid}:{status.st_gid} "
        if path.is_symlink():
            text += os.readlink(path)
        elif path.is_file():
            text += hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = text
    return found
