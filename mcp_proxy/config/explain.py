"""What pydantic found, in words: cause, cure and the keys that lead there.

Rules of this file: pure; every sentence about a wrong type or key is made here; input is repeated
only where no secret can stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mcp_proxy.config.base import key_of
from mcp_proxy.config.checks import Inconsistent
from mcp_proxy.config.models import Config
from mcp_proxy.config.problems import Issue, Loc
from mcp_proxy.config.values import Invalid, did_you_mean

LATER = "not available in this version"

_LATER_KEYS: dict[str, frozenset[str]] = {
    "Config": frozenset({"auth"}),
    "RouteConfig": frozenset({"auth", "allow", "limits"}),
    "TelemetryConfig": frozenset({"audit"}),
}

_WORDS: dict[str, tuple[str, str]] = {
    "string_type": ("must be text", "put it in quotes"),
    "int_type": ("must be a whole number", "write digits without quotes or unit"),
    "bool_type": ("must be true or false", "write true or false without quotes"),
    "tuple_type": ("must be a list", "write [a, b], or one - item per line"),
    "model_type": ("must be keys with values", "write key: value lines under it, indented"),
    "dict_type": ("must be names with values", "write name: lines under it, indented"),
    "greater_than_equal": ("must be at least {ge}", "write {ge} or more"),
    "less_than_equal": ("must be at most {le}", "write {le} or less"),
}
_EMPTY = ("is empty", "write a value, or remove the key")


def issues(error: ValidationError) -> Iterator[Issue]:
    """One issue per cause, in the order in which pydantic found them."""
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        loc: Loc = detail["loc"]
        if isinstance(cause, Inconsistent):
            yield from cause.issues
        elif isinstance(cause, Invalid):
            yield Issue(loc, cause.message, cause.hint)
        else:
            yield _explain(detail, loc)


def _explain(detail: ErrorDetails, loc: Loc) -> Issue:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(loc)
    if kind == "missing":
        return Issue(loc[:-1], f"{loc[-1]!r} is missing", f"add {loc[-1]}: ...")
    if kind == "literal_error":
        return _unknown_word(loc, value)
    if value is None:
        return Issue(loc, *_EMPTY)
    message, hint = _WORDS.get(kind, ("{msg}", ""))
    facts = {"msg": detail["msg"]} | detail.get("ctx", {})
    return Issue(loc, message.format_map(facts), hint.format_map(facts))


def _unknown_key(loc: Loc) -> Issue:
    key = str(loc[-1])
    model = _model_at(loc[:-1])
    if key in _LATER_KEYS.get(model.__name__, ()):
        return Issue(loc, f"{key!r} is {LATER}", "remove it")
    return Issue(loc, f"unknown key {key!r}", did_you_mean(key, _keys(model)))


def _unknown_word(loc: Loc, value: Any) -> Issue:
    field = _model_at(loc[:-1]).model_fields[str(loc[-1])]
    words = [str(word) for word in get_args(field.annotation)]
    if not isinstance(value, str):
        return Issue(loc, "must be a word", f"write {' or '.join(words)}")
    return Issue(loc, f"{value!r} is not possible", did_you_mean(value, words))


def _keys(model: type[BaseModel]) -> list[str]:
    """As they are written in a file."""
    return [key_of(name, field) for name, field in model.model_fields.items()]


def _model_at(loc: Loc) -> type[BaseModel]:
    """The model whose keys stand at ``loc``."""
    model: type[BaseModel] = Config
    for part in loc:
        if part in model.model_fields and (inner := _inner(model.model_fields[str(part)].annotation)):
            model = inner
    return model


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model within ``M | None``, ``dict[str, M]``, ``tuple[M, ...]`` and ``Annotated[M, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, UnionType, dict, tuple):
        return next((inner for part in get_args(annotation) if (inner := _inner(part))), None)
    return None
