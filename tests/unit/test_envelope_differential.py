"""Both readers of ``envelope.py`` against a slow and plain one, on bodies made to tell them apart."""

from __future__ import annotations

import json
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcp_proxy import envelope as module
from mcp_proxy import jsontext
from mcp_proxy.envelope import EnvelopeError, parse
from tests.unit.envelope_reference import META, Refused, reference


def expected(body: bytes) -> tuple[object, ...]:
    try:
        return reference(body)
    except Refused as refused:
        return refused.outcome


def actual(body: bytes) -> tuple[object, ...]:
    try:
        envelope = parse(body)
    except EnvelopeError as error:
        return (error.code, json.loads(error.id))
    assert envelope.id == b"null" or envelope.id in body
    fields = [getattr(envelope, name) for name in envelope.__struct_fields__]
    fields[2] = json.loads(envelope.id)
    return tuple(fields)


# --- bodies ---


def words(text: str) -> list[str]:
    return text.split()


FINE = words(r"""
    {} [] "" 0 -0 true null "a" "\\" "\"" "[{" "}]\"[" "\\\"{" "\u0000" "\ud83d\ude00" "é😀" "ping" "1e400"
    ",1e400," {"name":"a"} [{"id":1,"method":[]}] 1e308 12e306 0.01E310 1e-999 0e999 -1.5e+300
""")
FINE += ["1" * 309, "1" * 120 + "e180", "1" + "0" * 400 + "e-99", '"' + "9" * 400 + '"', '" 1e999 "']
FINE += [
    "[" * 60 + "]" * 60,
    '{"a":' * 61 + "1" + "}" * 61,
    "[" + "[[[]]]," * 40 + "1]",
    '["' + "[" * 80 + '"]',
]
FINE += [
    "[" * 9 + '[[]],"][","\\\\",{},' * 30 + "1" + "]" * 9,
    '["' + '\\"[' * 80 + '",' + "[" * 50 + "]" * 51,
]

FAULTY = words(r"""
    1e309 1.8e308 123e+307 "\ud800" "\udc00x" "\ud800\ud800" NaN tru 01 1. - /**/1 "a"b" "\\\" [1,]
    "x","x":1 "x","params":{} {"name":"a","uri":"b"}
""")
FAULTY += ["9" * 309, "1" * 120 + "e200", "1" + "0" * 400 + "e-9", "[1, 1E999 ]", '"\t"', "[" * 70 + "]" * 70]
FAULTY += ["[" * n + "]" * n for n in (62, 63)] + [
    "[" * 61 + '"[",[[[]]]' + "]" * 61,
    '{"a":' * 64 + "1" + "}" * 64,
]

TEXTS = words(r'"x" "é" "\u0041" "2026-07-28" "" "\/"')
IDS = words(r'1 -3 "a" 9007199254740992 "\u0061" -0 999999999999999 ""')
WRONG_IDS = words("9007199254740993 12345678901234567890 1.0 1e2 null [] true")
METHODS = words(r"tools/call resources/read completion/complete tasks/get ping initialize a\u0062")
MESSAGE_KEYS = words("jsonrpc id method params result error Method x \u0131d param\u017f")
PARAMS_KEYS = [*words("name uri taskId ref _meta requestState arguments cursor task_id Name"), ""]
RESERVED_KEYS = [META + key for key in words("protocolVersion clientInfo clientCapabilities protocolversion")]
META_KEYS = [*RESERVED_KEYS, *words("traceparent tracestate progressToken TraceParent vendor/x")]
NOISE = ['"id":1,', "\\u", *'"\\[]{},: e0\udcffé\0\ufeff']


class Writer:
    """Writes messages that are mostly right. What is wrong comes one or two at a time."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.gap = random.choice(["", "", "", "", " ", "\n\t"])

    def rarely(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def pick(self, usual: list[str], rare: list[str]) -> str:
        return self.random.choice(rare if self.rarely(30) else usual)

    def text(self) -> str:
        return self.pick(TEXTS, FINE + FAULTY)

    def value(self, depth: int = 0) -> str:
        if depth == 3 or self.random.randrange(3):
            return self.pick(FINE, FAULTY)
        items = [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if self.rarely(2):
            return "[" + ",".join(items) + "]"
        return "{" + ",".join(f'"{self.random.choice(PARAMS_KEYS)}":{item}' for item in items) + "}"

    def key(self, key: str) -> str:
        if not key or not self.rarely(60):
            return f'"{key}"'
        at = self.random.randrange(len(key))
        escape = "\\/" if key[at] == "/" else f"\\u{ord(key[at]):04x}"
        return f'"{key[:at]}{escape}{key[at + 1 :]}"'

    def object(self, usual: dict[str, str], keys: list[str]) -> str:
        pairs = [(key, value) for key, value in usual.items() if not self.rarely(40)]
        while self.rarely(8):
            pairs.append((self.random.choice(keys), self.value()))
        self.random.shuffle(pairs)
        written = [f"{self.key(key)}:{self.gap}{value}" for key, value in pairs]
        return "{" + self.gap + f",{self.gap}".join(written) + "}"

    def params(self) -> str:
        meta = dict(zip(META_KEYS, [self.text(), self.value(), self.value()], strict=False))
        ref = {"type": self.text(), self.random.choice(["name", "uri"]): self.text()}
        usual = {key: self.text() for key in ("name", "uri", "taskId")}
        usual |= {key: self.value() for key in ("arguments", "cursor", "requestState", "inputResponses")}
        usual |= {"_meta": self.object(meta, META_KEYS), "ref": self.object(ref, ["name", "uri", "Uri"])}
        chosen = self.random.sample(list(usual), self.random.randrange(6))
        return self.object({key: usual[key] for key in chosen}, PARAMS_KEYS)

    def message(self) -> str:
        usual = {"jsonrpc": '"2.0"', "id": self.pick(IDS, WRONG_IDS)}
        if self.rarely(6):
            usual[self.random.choice(["result", "error"])] = self.value()
        else:
            usual["method"] = f'"{self.random.choice(METHODS)}"'
            usual["params"] = self.value() if self.rarely(20) else self.params()
        if self.rarely(4):
            del usual["id"]
        return self.object(usual, MESSAGE_KEYS)

    def body(self) -> bytes:
        text = self.message()
        if self.rarely(8):
            text = "[" + ",".join(self.message() for _ in range(self.random.randrange(4))) + "]"
        if self.rarely(10):
            at = self.random.randrange(len(text))
            text = text[:at] + self.random.choice(NOISE) + text[at + self.random.randrange(3) :]
        text += self.pick(["", "", "", "\n"], [" " * 6, " " * 7, "x", "{}"])
        return text.encode(errors="surrogateescape")


randoms = st.randoms(use_true_random=True)


# --- the properties ---


@settings(max_examples=300, deadline=None)
@given(randoms)
def test_parse_says_what_the_reference_says(random: Random) -> None:
    for _ in range(10):
        body = Writer(random).body()
        assert actual(body) == expected(body)


@settings(max_examples=100, deadline=None)
@given(randoms)
def test_a_yes_of_the_plain_reader_is_that_of_the_strict_one(random: Random) -> None:
    bodies = [body for body in (Writer(random).body() for _ in range(20)) if jsontext.fault(body) is None]
    for body, plain in ((body, module._plain(body)) for body in bodies):
        assert plain is None or plain == module._strict(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: json.dumps(text).encode()))
@example(b'"\\')
@example(b'{"a":"')
def test_any_bytes_have_an_outcome(body: bytes) -> None:
    assert actual(body) == expected(body)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(words(r'[ [[ ] {} [[]] "[" "]\"" "" "\\" 1')), max_size=400))
def test_depth_is_exact(parts: list[str]) -> None:
    text, levels, peak = "[", 1, 1
    for part in parts:
        if part == "]" and levels > 1:
            text, levels = text.rstrip(",") + "],", levels - 1
        elif part.strip("["):
            text += "" if part == "]" else part + ","
            peak = max(peak, levels + {"{}": 1, "[[]]": 2}.get(part, 0))
        else:
            text, levels = text + part, levels + len(part)
            peak = max(peak, levels)
    text = text.rstrip(",") + "]" * levels
    json.loads(text)
    assert jsontext._depth(text.encode()) == peak


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(['"', "ab", "[", '"[', ""]), max_size=60), st.integers(1, 9))
def test_cutting_text_into_chunks_changes_nothing(parts: list[str], size: int) -> None:
    quoted = "".join(parts).encode()
    text = b'"' + b"x" * (jsontext.CHUNK_BYTES - size) + b'"' + quoted
    assert b"".join(jsontext._bare(text)) == b"".join(quoted.split(b'"')[::2])
