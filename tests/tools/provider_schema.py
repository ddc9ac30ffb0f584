"""What the Kubernetes provider of Terraform takes: blocks and attributes of its resources, by their names.

From the bindings that HashiCorp generated from the provider's own schema (npm, @cdktf/provider-kubernetes):
every property of an interface names its attribute in the link of its comment, says by ``?`` whether it may be
left out, and is a block when its type is another interface. Bindings are of 2.38; later versions add and do
not take away.

Rules of this file: the files of the package are read, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from tests.tools import npm
from tests.tools.hcl import META_ARGUMENTS

PACKAGE: Final = ("@cdktf/provider-kubernetes", "12.1.1")
VERSION: Final = "2.38.0"
"""Of the provider that the bindings are made of; their links name it."""

_INTERFACE: Final = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.M | re.S)
_PROPERTY: Final = re.compile(r"#(\w+) \w+#\1\}.*?\*/\s+readonly \w+(\??): (.*?);\n(?=\s*(?:/\*\*|\Z))", re.S)


@dataclass(frozen=True)
class Attribute:
    required: bool
    type: str
    """As TypeScript, without what stands for a reference."""


Interface = Mapping[str, Attribute]


@cache
def interfaces(resource: str) -> Mapping[str, Interface]:
    """Every block of ``kubernetes_...``, by the name that the bindings give it."""
    short = resource.removeprefix("kubernetes_").replace("_", "-")
    folder = npm.install(*PACKAGE) / "lib" / short
    found = {}
    for file in sorted(folder.rglob("*.d.ts")):
        text = file.read_text()
        assert f"/kubernetes/{VERSION}/" in text or file.name == "index.d.ts"
        for name, body in _INTERFACE.findall(text):
            found[name] = {
                attribute: Attribute(required=not optional, type=_plain(kind))
                for attribute, optional, kind in _PROPERTY.findall(body)
            }
    return found


def _plain(kind: str) -> str:
    return re.sub(r"\s+", " ", kind.replace(" | cdktf.IResolvable", "")).strip()


def problems(resource: str, body: Mapping[str, Any]) -> Iterator[str]:
    """What the provider would not take of this resource, as the parser gives it."""
    known = interfaces(resource)
    config = _pascal(resource.removeprefix("kubernetes_")) + "Config"
    if config not in known:
        yield f"{resource}: the provider has no such resource"
        return
    plain = {key: value for key, value in body.items() if key not in META_ARGUMENTS}
    yield from _block(resource, known, known[config], plain)


def _block(
    where: str, known: Mapping[str, Interface], takes: Interface, body: Mapping[str, Any]
) -> Iterator[str]:
    dynamic: Mapping[str, Any] = body.get("dynamic", {})
    given = {key: value for key, value in body.items() if key != "dynamic"}
    for name, attribute in takes.items():
        if attribute.required and name not in given and name not in dynamic:
            yield f"{where}: {name} is missing"
    for name, value in given.items():
        if name not in takes:
            yield f"{where}: nobody knows {name}"
        else:
            yield from _value(f"{where}.{name}", known, takes[name].type, value)
    for name, generators in dynamic.items():
        if name not in takes:
            yield f"{where}: nobody knows {name}"
            continue
        contents = [content for generator in generators for content in generator["content"]]
        yield from _value(f"{where}.{name}", known, takes[name].type, contents)


def _value(where: str, known: Mapping[str, Interface], kind: str, value: Any) -> Iterator[str]:
    element = kind.removesuffix("[]")
    if element in known:
        if not (isinstance(value, list) and all(isinstance(each, Mapping) for each in value)):
            yield f"{where} is a block"
            return
        if element == kind and len(value) != 1:
            yield f"{where} may be there once"
        for each in value:
            yield from _block(where, known, known[element], each)
    elif not (_is_expression(value) or _fits(kind, value)):
        yield f"{where} is {kind}, and not {value!r}"


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${") and value.endswith("}")


def _fits(kind: str, value: Any) -> bool:
    match kind:
        case "boolean":
            return isinstance(value, bool)
        case "number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "string[]":
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return kind.startswith("{ [key: string]") and isinstance(value, Mapping)


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
