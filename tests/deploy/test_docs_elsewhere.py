"""Commands of the documentation that need a cluster, an engine, GitHub or your machine: judged, not run.

Rules of this file: such a block begins with the note ``# needs a cluster`` or ``# needs an engine``, or it is
a script (``sh``) of what is done to a machine or on GitHub. Every program in it is in the table below, with
the verbs and flags that the pages use; a folder that is to be applied has a kustomization, a path of this
repository exists, and a command or a make target of our own is there. What the files do is tested where they
are (``tests/deploy``), not here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import click
import pytest

from mcp_proxy.cli.main import COMMANDS as COMMANDS_OF_OURS
from mcp_proxy.cli.main import commands as ours
from tests.deploy.test_docs_commands import ELSEWHERE, TEXTS
from tests.tools.documents import ROOT, Block, blocks, commands, goes_on, note, prose

TARGETS: Final = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))

FOLDERS: Final = ("charts", "compose", "docs", "k8s", "nginx", "systemd", "terraform", "tests")


class Program(NamedTuple):
    """What the pages may say to a program."""

    verbs: str
    """Its first words that are no flags; empty: it has none."""
    options: str
    """Flags with a value."""
    switches: str
    """Flags without."""
    reason: str
    """Where that is from."""


PROGRAMS: Final[Mapping[str, Program]] = {
    "kubectl": Program(
        "apply create delete describe diff exec get label logs port-forward rollout",
        "-f -k -l -n -o --cert --from-file --from-literal --key --raw --tail --timeout",
        "--prefix",
        "the reference of kubectl 1.28 and later",
    ),
    "docker": Program(
        "build buildx compose kill run stop",
        "--add-host --build-arg --cap-drop --entrypoint --listen --name --output --publish --security-opt "
        "--signal --stop-timeout --tag --volume",
        "--build --detach --pull --read-only --rm --volumes --wait",
        "the reference of Docker 27 and later; --listen is an argument of the proxy",
    ),
    "gh": Program(
        "attestation release workflow",
        "--ref --repo --signer-workflow --source-ref",
        "",
        "the manual of gh 2.67 and later",
    ),
    "git": Program("log push switch tag", "-m", "-1 -s --detach --format", "git 2.23 and later"),
    "nginx": Program("", "", "-t -v", "nginx.org, command-line parameters"),
    "systemctl": Program("daemon-reload enable reload start status stop", "", "--now", "systemd 252"),
    "journalctl": Program("", "--unit --lines", "", "systemd 252"),
    "install": Program("", "-m", "-D -d", "GNU coreutils"),
    "sha256sum": Program("", "", "--check", "GNU coreutils"),
    "cp": Program("", "", "-r", "GNU coreutils"),
    "cat": Program("", "", "", "GNU coreutils"),
    "tr": Program("", "", "-d", "GNU coreutils"),
    "sed": Program("", "", "-n", "GNU sed"),
    "openssl": Program("rand", "", "-hex", "the same as in blocks that are run"),
    "curl": Program("", "-D -H -d -o -w --cacert", "-sS -si", "the same as in blocks that are run"),
    "python": Program("", "-m -k", "", "pytest, with the tests that are here"),
    "python3": Program("", "-m", "", "the module venv"),
    "/opt/mcp-proxy/bin/pip": Program("install", "--constraint", "", "pip"),
    "$EDITOR": Program("", "", "", "yours"),
}
"""More may be known than is said; a program that nobody mentions may not."""

KEYWORDS: Final = ("do", "done", "for")


class Said(NamedTuple):
    """A command, taken apart."""

    verb: str
    flags: list[str]
    behind: list[str]
    """A command of its own, behind ``--``."""


def taken_apart(words: list[str]) -> Said:
    program = PROGRAMS[words[0]]
    verb, rest = "", iter(words[1:])
    flags: list[str] = []
    for word in rest:
        if word == "--":
            return Said(verb, flags, list(rest))
        if word.startswith("-") and word != "-":
            flag, is_joined, _ = word.partition("=")
            flags.append(flag)
            if flag in program.options.split() and not is_joined:
                next(rest, None)
        elif not verb and program.verbs:
            verb = word
    return Said(verb, flags, [])


def elsewhere() -> list[tuple[Block, list[str]]]:
    """Every simple command of these blocks, in words."""
    noted = [
        (block, command.text)
        for page, text in TEXTS.items()
        for block in blocks(page, text, "console")
        if note(block) in ELSEWHERE
        for command in commands(block)
    ]
    scripts = [
        (block, line)
        for page, text in TEXTS.items()
        for block in blocks(page, text, "sh")
        for line in lines(block.text)
    ]
    return [(block, words) for block, text in (*noted, *scripts) for words in simple(text)]


def lines(script: str) -> Iterator[str]:
    """The commands of a script."""
    typed = ""
    for line in script.splitlines():
        typed = f"{typed}\n{line}" if typed else line
        if not goes_on(typed):
            yield typed
            typed = ""


def simple(command: str) -> Iterator[list[str]]:
    """The commands that pipes, lists and substitutions are made of; redirections and variables left out."""
    text = command.replace("\\\n", " ")
    for inner in _SUBSTITUTION.findall(text):
        yield from simple(inner)
    text = _REDIRECTION.sub("", _SUBSTITUTION.sub("_", text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for token in [*lexer, ";"]:
        if re.fullmatch(r"[|&;]+", token):
            if words and words != ["for"]:
                yield words
            words = []
        elif token == "for":
            words = ["for"]
        elif words == ["for"] or (not words and (token in KEYWORDS or re.match(r"\w+=", token))):
            pass  # the list of a loop, a variable
        else:
            words.append(token)


_SUBSTITUTION: Final = re.compile(r"\$\(([^()]*)\)")
_REDIRECTION: Final = re.compile(r"(?<=\s)\d?[<>]+(?:&\d|\s*[\w./-]+)")

COMMANDS = elsewhere()
IDS = [f"{number}-{block.page}-{' '.join(words[:4])}" for number, (block, words) in enumerate(COMMANDS, 1)]


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=IDS)
def test_every_program_is_known_with_what_is_said_to_it(block: Block, words: list[str]) -> None:
    judge(words)


def judge(words: list[str]) -> None:
    if words[0] == "mcp-proxy":
        parse(words[1:])
        return
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
        return
    if words[0].startswith("scripts/"):
        assert os.access(ROOT / words[0], os.X_OK)
        return
    program, said = PROGRAMS[words[0]], taken_apart(words)

    assert not program.verbs or said.verb in program.verbs.split()
    assert set(said.flags) - set(program.options.split()) - set(program.switches.split()) == set()
    if said.behind:
        judge(said.behind)


def parse(words: list[str]) -> None:
    """Raises click's error for what is no command of ours."""
    command: click.Command = ours
    context = command.make_context("mcp-proxy", list(words))
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, f"there is no command {name}"
        command, context = found, found.make_context(name, rest, context)


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=IDS)
def test_every_path_of_the_repository_is_there(block: Block, words: list[str]) -> None:
    for word in words[1:]:
        path = word.rpartition("=")[2].removeprefix("./").removeprefix("@")
        if path.partition("/")[0] in FOLDERS and "/" in path:
            assert (ROOT / path).exists(), word


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=IDS)
def test_a_folder_that_is_applied_has_a_kustomization(block: Block, words: list[str]) -> None:
    for flag, path in pairwise(words):
        if words[0] == "kubectl" and flag == "-k":
            assert (ROOT / path / "kustomization.yaml").is_file()


def test_no_program_is_known_in_vain() -> None:
    assert PROGRAMS.keys() - {words[0] for _, words in COMMANDS} == set()


# --- in passing ----------------------------------------------------------------------------------------


def flags_of(words: list[str]) -> set[str]:
    """What the command of ours may be given that these words begin with."""
    command: click.Command = ours
    found: set[str] = set()
    for word in words:
        if not isinstance(command, click.Group):
            break
        name = word if word in command.list_commands(click.Context(command)) else "serve"
        if (below := command.get_command(click.Context(command), name)) is not None:
            command = below
            found = {flag for each in command.params for flag in each.opts} | {"--help"}
    return found


@pytest.mark.parametrize("page", TEXTS)
def test_a_command_that_is_mentioned_is_one_of_ours_with_its_flags(page: str) -> None:
    mentioned = [text.split() for text in re.findall(r"`mcp-proxy ([^`\n]+)`", prose(TEXTS[page]))]
    wrong = [
        words
        for words in mentioned
        if (re.fullmatch(r"[a-z][a-z-]*", words[0]) and words[0] not in COMMANDS_OF_OURS)
        or {word.partition("=")[0] for word in words if word.startswith("--")} - flags_of(words)
    ]

    assert wrong == []


@pytest.mark.parametrize("page", TEXTS)
def test_a_make_target_that_is_mentioned_exists(page: str) -> None:
    mentioned = re.findall(r"`make ([^`\n]+)`", TEXTS[page])

    assert {target for words in mentioned for target in words.split() if "=" not in target} <= TARGETS


LANGUAGES: Final = {"console", "sh", "yaml", "json", "python", "ini", "hcl", "nginx", ""}


@pytest.mark.parametrize("page", TEXTS)
def test_commands_stand_where_they_are_run_or_judged(page: str) -> None:
    found = blocks(page, TEXTS[page])

    assert {block.language for block in found} <= LANGUAGES
    assert [
        block.line for block in found if block.language != "console" and "\n$ " in f"\n{block.text}"
    ] == []


@pytest.mark.parametrize("page", TEXTS)
def test_a_note_is_one_of_two(page: str) -> None:
    """A misspelt one would have the block run, or not judged at all."""
    notes = {note(block) for block in blocks(page, TEXTS[page], "console")}

    assert notes - {"", *ELSEWHERE} == set()


def test_simple_commands_are_found() -> None:
    text = (
        "A=1 kubectl get x -o y | mcp-proxy report - && docker run \\\n  -v $(pwd):/x:ro img > out 2>&1; "
        "for a in b; do c $a; done"
    )

    assert list(simple(text)) == [
        ["pwd"],
        ["kubectl", "get", "x", "-o", "y"],
        ["mcp-proxy", "report", "-"],
        ["docker", "run", "-v", "_:/x:ro", "img"],
        ["c", "$a"],
    ]
