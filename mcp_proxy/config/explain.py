"""What pydantic found, in words: cause, cure and the keys that lead there.

Rules of this file: pure; every sentence about a wrong type or key is made here; input is repeated
only where no secret can stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mcp_proxy.config.checks import Inconsistent, Issue
from mcp_proxy.config.models import Config
from mcp_proxy.config.problems import Loc
from mcp_proxy.config.values import Invalid, did_you_mean

LATER = "not available in this version"

_LATER_KEYS: dict[str, frozenset[str]] = {
    "Config": frozenset({"auth"}),
    "PoolConfig": frozenset({"discover", "health"}),
    "RouteConfig": frozenset({"auth", "allow", "limits"}),
    "TelemetryConfig": frozenset({"traces", "audit"}),
}
_LATER_VALUES = frozenset({"least_inflight", "hash"})

_WORDS: dict[str, tuple[str, str]] = {
    "string_type": ("must be text", "put it in quotes"),
    "int_type": ("must be a whole number", "write digits without quotes or unit"),
    "bool_type": ("must be true or false", "write true or false without quotes"),
    "tuple_type": ("must be a list", "write [a, b], or one - item per line"),
    "model_type": ("must be keys with values", "write key: value lines under it, indented"),
    "dict_type": ("must be names with values", "write name: lines under it, indented"),
    "greater_than_equal": ("must be at least 1", "write 1 or more"),
    "too_short": ("the list is empty", "a pool needs at least one backend: [http://host:port/mcp]"),
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
        elif detail["type"] != "too_short" or not detail["input"]:
            # Items that cannot be read do not make a list empty; they have problems of their own.
            yield _explain(detail["type"], loc, detail["input"], detail["msg"])


def _explain(kind: str, loc: Loc, value: Any, message: str) -> Issue:
    if kind == "extra_forbidden":
        return _unknown_key(loc)
    if kind == "missing":
        return Issue(loc[:-1], f"{loc[-1]!r} is missing", f"add {loc[-1]}: ...")
    if kind == "literal_error":
        return _unknown_word(loc, value)
    if value is None:
        return Issue(loc, *_EMPTY)
    return Issue(loc, *_WORDS.get(kind, (message, "")))


def _unknown_key(loc: Loc) -> Issue:
    key = str(loc[-1])
    model = _model_at(loc[:-1])
    if key in _LATER_KEYS.get(model.__name__, ()):
        return Issue(loc, f"{key!r} is {LATER}", "remove it")
    return Issue(loc, f"unknown key {key!r}", did_you_mean(key, model.model_fields))


def _unknown_word(loc: Loc, value: Any) -> Issue:
    field = _model_at(loc[:-1]).model_fields[str(loc[-1])]
    words = [str(word) for word in get_args(field.annotation)]
    if value in _LATER_VALUES:
        return Issue(loc, f"{value!r} is {LATER}", f"write {' or '.join(words)}")
    if not isinstance(value, str):
        return Issue(loc, "must be a word", f"write {' or '.join(words)}")
    return Issue(loc, f"{value!r} is not possible", did_you_mean(value, words))


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
