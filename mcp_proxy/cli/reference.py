"""``mcp-proxy schema --markdown``: every key of the configuration, as a page for people.

Rules of this file: whatever can be known from the models is read from them, so that page, schema and
program say the same. Prose and examples stand in ``reference.md``, where ``<!-- keys of X -->`` is the
place for the keys of the section X and ``<!-- settings -->`` that for flags and variables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from mcp_proxy.config import Config
from mcp_proxy.config.base import key_of
from mcp_proxy.config.changes import PARTS, Part
from mcp_proxy.config.layers import SETTINGS

_MARK: Final = re.compile(r"^<!-- (keys of (?P<section>\S+)|settings) -->$", re.M)
_SHORT: Final = {
    "a duration such as 500ms, 5s, 10m, 2h": "duration",
    "bytes, or a size such as 64KiB, 4MiB": "size",
    "bytes, or a size such as 64KiB; off: none": "size, or `off`",
    "; 0s is possible": ", or `0s`",
    ", or none for no limit": ", or `none`",
    "a whole number, or none": "a whole number, from 1, or `none`",
    "env:NAME, file:PATH, or the secret itself (check warns)": "secret",
    "env:NAME or file:PATH; at least 32 characters": "secret of at least 32 characters",
}
"""What the page explains once."""

_HEAD: Final = "| key | value | default | reload | meaning |\n|---|---|---|---|---|\n"


class Key(NamedTuple):
    """One key of a file."""

    path: str
    """From the top; ``*`` for the name of a pool, ``[]`` behind a list."""
    value: str
    default: str
    """As a user writes it; empty: there is none."""
    is_required: bool
    reload: str
    meaning: str
    has_section: bool
    """It has keys of its own."""


def page() -> str:
    """The whole page. Ends with a line break."""
    template = resources.files(__package__).joinpath("reference.md").read_text("utf-8")
    sections: dict[str, list[Key]] = {}
    for key in keys():
        sections.setdefault(key.path.rpartition(".")[0], []).append(key)

    def fill(mark: re.Match[str]) -> str:
        if mark["section"] is None:
            return _settings()
        section = "" if mark["section"] == "top" else mark["section"]
        return _HEAD + "\n".join(map(_row, sections.pop(section)))

    text = _MARK.sub(fill, template)
    if sections:
        raise LookupError(f"reference.md has no place for the keys of {', '.join(sections)}")
    return text


def keys() -> Iterator[Key]:
    """Every key, in the order of the models."""
    yield from _keys_of(Config, "")


def _keys_of(model: type[BaseModel], above: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        path = f"{above}{key_of(name, field)}"
        inner, places = _inner(field.annotation)
        yield Key(
            path,
            _value(field, inner),
            _default(field),
            field.is_required(),
            "restart" if _part(path) is Part.RESTART else "yes",
            field.description or "",
            inner is not None,
        )
        if inner is not None:
            yield from _keys_of(inner, f"{path}{places}.")


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The section within ``annotation``, and how a path goes on: into a list, by names, or at once."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin = get_origin(annotation)
    if origin in (Annotated, Union, UnionType, dict, tuple):
        for part in get_args(annotation):
            inner, places = _inner(part)
            if inner is not None:
                return inner, {dict: ".*", tuple: "[]"}.get(origin, "") + places
    return None, ""


def _part(path: str) -> Part | None:
    """What changes with a key; None for a section whose keys differ."""
    names = path.replace("[]", "").split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((PARTS[prefix] for prefix in prefixes if prefix in PARTS), None)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if field.is_required() or value is None or isinstance(value, BaseModel) or value in ((), {}):
        return ""  # "none" is said where it has a meaning of its own
    return value if isinstance(value, str) else json.dumps(value)


# --- words -------------------------------------------------------------------------------------------


def _value(field: FieldInfo, inner: type[BaseModel] | None) -> str:
    """What may stand behind the key, its limits included."""
    if inner is not None:
        return {"dict": "names with keys", "tuple": "list of keys"}.get(_kind(field.annotation), "keys")
    is_list, annotation = False, field.annotation
    if _kind(annotation) == "tuple":
        is_list, annotation = True, get_args(annotation)[0]
    metadata = [] if is_list else field.metadata
    # Annotated needs one argument more than the type, and a field may have no metadata.
    kind: Any = Annotated[annotation, "", *metadata]
    schema = TypeAdapter(kind).json_schema()
    text = _in_words(schema)
    return f"list: {text}" if is_list else text


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    return "" if origin is None else origin.__name__


def _in_words(schema: dict[str, Any]) -> str:
    text: str | None = schema.get("description")
    if text is not None:
        for long, short in _SHORT.items():
            text = text.replace(long, short)
        return text
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if "anyOf" in schema:
        found = (_in_words(each) for each in schema["anyOf"] if each.get("type") != "null")
        return " or ".join(dict.fromkeys(found))
    if schema.get("type") == "integer":
        upper = f" to {schema['maximum']}" if "maximum" in schema else ""
        return f"a whole number, from {schema['minimum']}{upper}"
    if schema.get("type") == "object":
        return f"names, each with {_in_words(schema['additionalProperties'])}"
    return {"boolean": "`true`, `false`", "string": "text"}[schema["type"]]


def _row(key: Key) -> str:
    default = "required" if key.is_required else key.default and f"`{key.default}`"
    name = key.path.rpartition(".")[2]
    shown = f"[`{name}`](#{_anchor(key.path)})" if key.has_section else f"`{name}`"
    meaning = " ".join([key.meaning, *_outside(key.path)])
    cells = (shown, key.value, default, "" if key.has_section else key.reload, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _anchor(path: str) -> str:
    return re.sub(r"[^\w-]", "", path.replace("pools.*", "pools"))


def _outside(path: str) -> Iterator[str]:
    """How the key is said on the command line and in the environment."""
    for setting in SETTINGS:
        if ".".join(map(str, setting.loc)) == path:
            names = (f"`{name}`" for name in (setting.flag, setting.variable) if name)
            yield f"Also {', '.join(names)}."


def _settings() -> str:
    lines = ["| flag | variable | key | value |", "|---|---|---|---|"]
    for setting in SETTINGS:
        flag = f"`{setting.flag}`" if setting.flag else ""
        loc = ".".join(map(str, setting.loc))
        lines.append(f"| {flag} | `{setting.variable}` | `{loc}` | {setting.about} |")
    return "\n".join(lines)
