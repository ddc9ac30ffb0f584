"""A YAML file as plain values, with the line of every key.

Rules of this file: it knows YAML and nothing of the configuration. Only the safe core of YAML is
read (text, numbers, true/false, null, lists, mappings, anchors and merge keys). Mistakes that YAML
itself would hide, such as a key that stands twice, become problems; reading goes on behind them. No
problem repeats a value: it may be a secret.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mcp_proxy.config.problems import ConfigErrors, Loc, Problem

LARGEST_BYTES = 1 << 20
"""1 MiB, a thousand times what a configuration needs: whoever is above it named the wrong file."""

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_TEXT = f"{_TAG}str"
_SCALARS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float")}
_DATE = f"{_TAG}timestamp"
_QUOTE = "put it in quotes"
_NAMED = re.compile(r"\b(alias|anchor|tag handle) (['\"]).*?\2", re.DOTALL)
"""Where the library repeats a name: it may be a password without quotes that begins with ``*`` or ``!``."""


class Document:
    """The content of one file. ``data`` is what is usable of it, ``problems`` the rest."""

    def __init__(
        self, name: str, data: dict[str, Any], root: yaml.Node | None, problems: list[Problem]
    ) -> None:
        self.name = name
        self.data = data
        self.problems = problems
        self._root = root

    def line(self, loc: Loc) -> int:
        """The line of the key or list item at ``loc``, or of the nearest one around it."""
        node = self._root
        line = 1
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                # Merged keys come first, and the last of equal keys wins: search from the end.
                pair = next((pair for pair in reversed(node.value) if pair[0].value == part), None)
                if pair is None:
                    return line
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return line
        return line


def read(path: Path) -> Document:
    """The document in ``path``. Raises ConfigErrors when it cannot be read or is not YAML."""
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "not a file name").lower()
        raise _fatal(name, None, f"cannot read it: {reason}", "check the path and its permissions") from None
    if len(content) > LARGEST_BYTES:
        raise _fatal(name, None, "the file is larger than 1 MiB", "is it the right file?")
    try:
        return parse(content.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _fatal(name, line, "the file is not UTF-8 text", "save it as UTF-8") from None


def parse(text: str, name: str) -> Document:
    """The document in ``text``. Raises ConfigErrors when it is not YAML with a mapping at the top."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        reader = _Reader(loader, name)
        data = None if root is None else reader.value(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise _fatal(name, line, f"not YAML: {_problem(error)}", _cure(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _fatal(name, line, "a character that YAML forbids", "remove the control character") from None
    except RecursionError:
        raise _fatal(name, None, "the file is nested too deeply", "a configuration has 6 levels") from None

    if root is not None and not isinstance(data, dict):
        reader.refuse(root, "not keys with values", "begin with a key, for example pools:")
        raise ConfigErrors(reader.problems)
    return Document(name, data or {}, root, reader.problems)


class _Reader:
    """Turns nodes into values. A node behind several aliases is read once and shared."""

    def __init__(self, loader: yaml.SafeLoader, name: str) -> None:
        self.problems: list[Problem] = []
        self._loader = loader
        self._name = name
        self._values: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> Any:
        identity = id(node)
        if identity in self._open:
            return self.refuse(node, "the anchor contains itself", "write the value out")
        if identity not in self._values:
            self._open.add(identity)
            self._values[identity] = self._read(node)
            self._open.discard(identity)
        return self._values[identity]

    def _read(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item) for item in node.value]
        if node.tag in (_TEXT, _DATE):
            return node.value
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            try:
                return self._loader.construct_object(node)
            except (ValueError, KeyError):
                return self.refuse(node, "this cannot be read as a value", _QUOTE)
        return self.refuse(node, "the tag means nothing here", "remove it, or quote text that begins with !")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                continue
            if key.tag != _TEXT:
                self.refuse(key, "a key must be text", _QUOTE)
            elif key.value in first:
                hint = f"remove one, the first is in line {first[key.value]}"
                self.refuse(key, f"the key {key.value!r} stands here twice", hint)
            else:
                first[key.value] = line
        self._loader.flatten_mapping(node)
        return {key.value: self.value(value) for key, value in node.value if key.tag == _TEXT}

    def refuse(self, node: yaml.Node, message: str, hint: str) -> None:
        self.problems.append(Problem(self._name, node.start_mark.line + 1, "", message, hint))


def _problem(error: yaml.MarkedYAMLError) -> str:
    return _NAMED.sub(r"\1", error.problem or "it breaks off")


def _cure(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "\\t" in problem:
        return "indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return "check the indentation, and put text with a colon in quotes"
    if "undefined alias" in problem:
        return "define the anchor with &name above it, or quote text that begins with *"
    if "another document" in problem or "single document" in (error.context or ""):
        return "keep one document, without ---"
    return "check indentation, brackets and quotes; an address such as [::1]:8080 needs quotes"


def _fatal(name: str, line: int | None, message: str, hint: str) -> ConfigErrors:
    return ConfigErrors([Problem(name, line, "", message, hint)])
