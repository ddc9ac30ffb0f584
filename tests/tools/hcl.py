"""Terraform modules as data, and what they come to for given values of their variables.

Rules of this file: HashiCorp's own parser reads the files. Expressions are evaluated here, as many as the
modules of this repository use; any other one raises, so that nothing is compared that was not understood.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.tools import PATIENCE_S, npm

PARSER: Final = ("@cdktf/hcl2json", "0.21.0")

META_ARGUMENTS: Final = {"count", "for_each", "depends_on", "lifecycle", "provider"}
"""Of every resource, and no provider's business."""


class Unreadable(Exception):
    """The parser's own words."""


@dataclass
class Module:
    """What the ``.tf`` files of a folder declare; bodies as the parser gives them, with expressions as
    ``${...}``."""

    folder: Path
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    locals: dict[str, Any] = field(default_factory=dict)
    resources: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """The block ``terraform``."""

    def defaults(self) -> dict[str, Any]:
        return {name: each["default"] for name, each in self.variables.items() if "default" in each}

    def rendered(self, values: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
        """Every resource that there is for these values of variables, without its meta arguments."""
        given = {name: self._completed(name, value) for name, value in {**self.defaults(), **values}.items()}
        scope = Scope({"var": given}, self)
        scope.names["local"] = {name: scope.value(each) for name, each in self.locals.items()}
        return {
            which: scope.value({key: each for key, each in body.items() if key not in META_ARGUMENTS})
            for which, body in self.resources.items()
            if scope.value(body.get("count", 1))
        }

    def _completed(self, name: str, value: Any) -> Any:
        """With the optional attributes of its objects that default to an empty map."""
        empty = re.findall(r"(\w+)\s*= optional\([^,]+, \{\}\)", self.variables[name]["type"])
        if not empty:
            return value
        return [{**{key: {} for key in empty}, **each} for each in value]

    def mentioned(self, prefix: str) -> set[str]:
        """The names behind ``prefix.`` in expressions: of variables, say, for ``var``."""
        bodies = [self.variables, self.locals, list(self.resources.values()), self.outputs, self.modules]
        expressions = [text for text in strings(bodies) if "${" in text]
        return {name for text in expressions for name in re.findall(rf"\b{prefix}\.(\w+)", text)}


def strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for each in value.values():
                yield from strings(each)
        case list():
            for each in value:
                yield from strings(each)


def read(*folders: Path) -> list[Module]:
    """The modules in these folders, by one run of the parser. Raises Unreadable."""
    files = {file: folder for folder in folders for file in sorted(folder.glob("*.tf"))}
    modules = {folder: Module(folder) for folder in folders}
    for path, document in parse(*files).items():
        for kind, declared in document.items():
            _declare(modules[files[Path(path)]], kind, declared)
    return list(modules.values())


def _declare(module: Module, kind: str, declared: Any) -> None:
    match kind:
        case "resource":
            for of_type, named in declared.items():
                module.resources |= {(of_type, name): body for name, (body,) in named.items()}
        case "locals":
            for each in declared:
                module.locals |= each
        case "terraform":
            (module.settings,) = declared
        case "variable" | "output" | "module":
            getattr(module, f"{kind}s").update({name: body for name, (body,) in declared.items()})
        case "provider":
            pass
        case _:
            raise Unreadable(f"nobody here knows what a block {kind} is")


def parse(*files: Path) -> dict[str, dict[str, Any]]:
    """By path, what is in each file. Raises Unreadable."""
    command = [npm.node(), Path(__file__).with_suffix(".mjs"), npm.install(*PARSER), *files]
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode:
        raise Unreadable(done.stderr)
    parsed: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return parsed


# --- values ---------------------------------------------------------------------------------------------


@dataclass
class Scope:
    """The names that an expression may use."""

    names: dict[str, Any]
    module: Module

    def value(self, given: Any) -> Any:
        """Expressions replaced by what they are, and ``dynamic`` blocks by the blocks that they make."""
        match given:
            case str():
                return self._text(given)
            case list():
                return [self.value(each) for each in given]
            case Mapping():
                found = {key: self.value(each) for key, each in given.items() if key != "dynamic"}
                for name, generators in given.get("dynamic", {}).items():
                    made = [block for generator in generators for block in self._generated(name, generator)]
                    # The parser does not keep their order. Here, generated ones come first.
                    if made or name in found:
                        found[name] = [*made, *found.get(name, [])]
                return found
        return given

    def _generated(self, name: str, generator: Mapping[str, Any]) -> Iterator[Any]:
        (content,) = generator["content"]
        collection = self.value(generator["for_each"])
        pairs = sorted(collection.items()) if isinstance(collection, Mapping) else enumerate(collection)
        for key, value in pairs:
            yield Scope({**self.names, name: {"key": key, "value": value}}, self.module).value(content)

    def _text(self, text: str) -> Any:
        whole = re.fullmatch(r"\$\{([^{}]*)\}", text, re.S)
        if whole:
            return Expression(whole[1], self).result()
        return re.sub(r"\$\{([^{}]*)\}", lambda found: str(Expression(found[1], self).result()), text)


TOKEN: Final = re.compile(
    r'\s*(?:(?P<string>"[^"]*")|(?P<number>\d+)|(?P<name>[a-z_][a-z0-9_]*)|(?P<sign>\[\*\]|[][().,?:>]))'
)
FUNCTIONS: Final[dict[str, Callable[[Any], Any]]] = {"tostring": str, "length": len}


class Expression:
    """condition ? value : value, where a condition may compare with ``>``, and a value is a literal, a call,
    or a path from one of the names of the scope."""

    def __init__(self, text: str, scope: Scope) -> None:
        self._text, self._scope = text, scope
        self._tokens: list[str] = []
        position, text = 0, text.strip()
        while position < len(text):
            found = TOKEN.match(text, position)
            if found is None:
                raise NotImplementedError(text)
            self._tokens.append(found[0].strip())
            position = found.end()

    def result(self) -> Any:
        value = self._choice()
        if self._tokens:
            raise NotImplementedError(self._text)
        return value

    def _choice(self) -> Any:
        condition = self._comparison()
        if not self._take("?"):
            return condition
        yes = self._comparison()
        self._expect(":")
        no = self._comparison()
        return yes if condition else no

    def _comparison(self) -> Any:
        left = self._primary()
        return left > self._primary() if self._take(">") else left

    def _primary(self) -> Any:
        token = self._tokens.pop(0)
        if token.startswith('"'):
            return token[1:-1]
        if token.isdigit():
            return int(token)
        if self._take("("):
            argument = self._choice()
            self._expect(")")
            return FUNCTIONS[token](argument)
        return self._path(token)

    def _path(self, first: str) -> Any:
        if first not in self._scope.names:
            return self._resource(first)
        value = self._scope.names[first]
        while self._tokens:
            if self._take("."):
                value = value[self._tokens.pop(0)]
            elif self._take("[*]"):
                value = [] if value is None else value if isinstance(value, list) else [value]
            else:
                break
        return value

    def _resource(self, of_type: str) -> Any:
        """``TYPE.NAME.metadata[0].name``: the only thing of another resource that is used."""
        self._expect(".")
        name = self._tokens.pop(0)
        for expected in (".", "metadata", "[", "0", "]", ".", "name"):
            self._expect(expected)
        (metadata,) = self._scope.module.resources[of_type, name]["metadata"]
        return self._scope.value(metadata["name"])

    def _take(self, token: str) -> bool:
        if self._tokens[:1] == [token]:
            self._tokens.pop(0)
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise NotImplementedError(f"{self._text}: no {token}")
