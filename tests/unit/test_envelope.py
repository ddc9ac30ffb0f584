"""The envelope on chosen bodies; on generated ones it is in ``test_envelope_differential.py``."""

from __future__ import annotations

import json

import msgspec
import pytest

from mcp_proxy import envelope as module
from mcp_proxy.envelope import INVALID_REQUEST, PARSE_ERROR, Envelope, EnvelopeError, Kind, parse

MODERN_META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientInfo":{"name":"sdk","version":"1"},'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)


def message(members: bytes) -> bytes:
    return b'{"jsonrpc":"2.0",' + members + b"}"


def call(arguments: bytes, rest: bytes = b"") -> bytes:
    params = b'"params":{"name":"x","arguments":' + arguments + b"}"
    return message(b'"id":7,"method":"tools/call",' + params + rest)


def refusal(body: bytes) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        parse(body)
    return caught.value


# --- the 25 vectors: two JSON parsers read them differently, or one of them does not end well ---

VECTORS = {
    "1 duplicate key": (call(b"{}", b',"method":"tools/list"'), INVALID_REQUEST),
    "2 duplicate key by an escape": (call(b"{}", b',"m\\u0065thod":"tools/list"'), INVALID_REQUEST),
    "3 case variant of a message key": (call(b"{}", b',"Method":"tools/list"'), INVALID_REQUEST),
    "4 case variant of a params key": (call(b'{},"NAME":"y"'), INVALID_REQUEST),
    "5 NaN": (call(b"NaN"), PARSE_ERROR),
    "6 Infinity": (call(b"[-Infinity]"), PARSE_ERROR),
    "7 1e400 in a skipped value": (call(b'{"a":1e400}'), PARSE_ERROR),
    "8 id 2^53+1": (message(b'"id":9007199254740993,"method":"ping"'), INVALID_REQUEST),
    "9 id 2^64+1": (message(b'"id":18446744073709551617,"method":"ping"'), INVALID_REQUEST),
    "10 integer of 5,000 digits": (call(b"1" * 5000), PARSE_ERROR),
    "11 byte order mark": (b"\xef\xbb\xbf" + call(b"{}"), PARSE_ERROR),
    "12 UTF-16": (call(b"{}").decode().encode("utf-16"), PARSE_ERROR),
    "13 UTF-32": (call(b"{}").decode().encode("utf-32-le"), PARSE_ERROR),
    "14 invalid UTF-8 in a string we read": (message(b'"id":1,"method":"a\xff"'), PARSE_ERROR),
    "15 invalid UTF-8 in a skipped value": (call(b'{"a":"\xc3("}'), PARSE_ERROR),
    "16 lone surrogate": (call(b'"\\ud800"'), PARSE_ERROR),
    "17 NUL in the name": (call(b"{}").replace(b'"x"', b'"x\\u0000"'), INVALID_REQUEST),
    "18 depth 300": (call(b"[" * 300 + b"]" * 300), PARSE_ERROR),
    "19 depth 1,000": (call(b'{"a":' * 1000 + b"1" + b"}" * 1000), PARSE_ERROR),
    "20 depth 100,000": (call(b"[" * 100_000 + b"]" * 100_000), PARSE_ERROR),
    "21 empty array": (b"[]", INVALID_REQUEST),
    "22 scalar": (b'"tools/call"', INVALID_REQUEST),
    "23 empty body": (b"", PARSE_ERROR),
    "24 trailing bytes": (call(b"{}") + b"\x00", PARSE_ERROR),
    "25 __proto__ and constructor": (call(b'{"__proto__":{"a":1},"constructor":1}'), None),
}


@pytest.mark.parametrize(("body", "code"), VECTORS.values(), ids=VECTORS.keys())
def test_every_json_differential_has_its_outcome(body: bytes, code: int | None) -> None:
    if code is None:
        assert parse(body).name == "x"
    else:
        assert refusal(body).code == code


# --- more of each kind ---

NOT_JSON = [
    *(b"{", b"nul", b"{}x", b"{} {}", b"\x0c{}", b"{}\x0c", b"// c\n{}", b'{"a":1,}', b"{'a':1}", b"{a:1}"),
    *(call(b"[1,]"), call(b"01"), call(b"+1"), call(b".5"), call(b"1."), call(b"0x1"), call(b"1e")),
    *(call(b'"\x01"'), call(b'"\\x41"'), call(b'"\\u12"'), call(b'"\n"'), call(b'"a')),
    *(call(b'"\\udc00"'), call(b'"\\ud800\\ud800"'), call(b'"\\ud83dx"'), call(b'{"\\ud800":1}')),
    *(call(b'"\xed\xa0\x80"'), call(b'"\xc0\xaf"'), call(b'{"\xff":1}'), call(b'"\xf4\x90\x80\x80"')),
    *(call(b"1e309"), call(b"-1e309"), call(b"1.8E+308"), call(b"1" * 310), call(b"[" + b"1" * 309 + b"e5]")),
    *(call(b"1" + b"0" * 400 + b"e-5"), call(b"[0.1,\n1e999 ]"), b"1e400", b"[1,2", b'{"id":1e999}'),
    *(b"[" * 3_000_000, b'{"a":' * 500_000, b"]" * 100),
]


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[-24:]))
def test_text_that_is_not_json_to_everyone_is_a_parse_error(body: bytes) -> None:
    error = refusal(body)
    assert (error.code, error.id) == (PARSE_ERROR, b"null")


NOT_A_MESSAGE = [
    *(message(b'"id":1,"id":2,"method":"a"'), message(b'"method":"a","params":{"uri":"","uri":""}')),
    *(b"1", b"null", b"true", b"{}", b'{"jsonrpc":"2.0"}', b'{"method":"ping"}', b" [ ] "),
    *(b'{"jsonrpc":"1.0","method":"a"}', b'{"jsonrpc":2.0,"method":"a"}', b'{"jsonrpc":null,"method":"a"}'),
    *(message(b'"method":' + value) for value in (b'""', b"1", b"null", b'["a"]', b'"a\\u0000"', b'"a\\nb"')),
    *(message(b'"method":"' + value + b'"') for value in (b"a" * 257, b"\x7f", "\u202e".encode(), b"\\t")),
    *(message(b'"method":"a","params":' + value) for value in (b"[]", b"null", b'"x"', b"1")),
    *(message(b'"method":"a","params":{"_meta":' + value + b"}") for value in (b"[]", b"null", b"1")),
    *(message(b'"id":1,"method":"a","result":{}'), message(b'"id":1,"method":"a","error":{}')),
    *(message(b'"id":1,"result":{},"error":{}'), message(b'"id":1'), message(b'"result":{}')),
    *(message(b'"id":null,"result":{}'), message(b'"id":{},"error":{}')),
]


@pytest.mark.parametrize("body", NOT_A_MESSAGE, ids=repr)
def test_json_that_is_not_a_message_is_an_invalid_request(body: bytes) -> None:
    assert refusal(body).code == INVALID_REQUEST


@pytest.mark.parametrize("id", [b"{}", b"[1]", b"true", b"1.0", b"1e3", b"null", b"-9007199254740993"])
def test_an_id_is_a_string_or_a_small_integer(id: bytes) -> None:
    error = refusal(message(b'"id":' + id + b',"method":"ping"'))
    assert (error.code, error.id) == (INVALID_REQUEST, b"null")


@pytest.mark.parametrize("space", [b"", b"\t\n\r    "])
def test_an_id_is_kept_byte_for_byte(space: bytes) -> None:
    numbers = [b"0", b"-1", b"-0", b"9007199254740992", b"-9007199254740992"]
    for id in [*numbers, b'""', b'"a\\u0041\\/"', '"é"'.encode()]:
        assert parse(message(b'"method":"ping","id":' + space + id + space)).id == id


def test_an_id_has_at_most_1024_bytes() -> None:
    assert len(parse(message(b'"method":"a","id":"' + b"x" * 1022 + b'"')).id) == 1024
    assert refusal(message(b'"method":"a","id":"' + b"x" * 1023 + b'"')).code == INVALID_REQUEST


def known_members() -> list[tuple[bytes, str]]:
    message_keys = ["jsonrpc", "id", "method", "params", "result", "error"]
    params_keys = ["name", "uri", "taskId", "ref", "_meta", "requestState", "inputResponses"]
    prefix = "io.modelcontextprotocol/"
    meta_keys = [prefix + "protocolVersion", prefix + "clientCapabilities", "traceparent", "tracestate"]
    frames = [
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}%s}', message_keys),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"a":1%s}}', params_keys),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"a":1%s}}}', meta_keys),
        (b'{"jsonrpc":"2.0","method":"completion/complete","params":{"ref":{"a":1%s}}}', ["name", "uri"]),
    ]
    return [(frame, key) for frame, keys in frames for key in keys]


@pytest.mark.parametrize(("frame", "key"), known_members())
def test_nothing_that_is_read_may_come_twice_or_in_another_case(frame: bytes, key: str) -> None:
    def spelt(*keys: str) -> bytes:
        return frame % b"".join(b"," + json.dumps(each).encode() + b":{}" for each in keys)

    escaped = (b',"\\u%04x' % ord(key[0])) + key[1:].encode() + b'":{}'
    assert refusal(spelt(key, key)).code == INVALID_REQUEST
    assert refusal(frame % (b',"' + key.encode() + b'":1' + escaped)).code == INVALID_REQUEST
    alike = {"s": "\u017f", "k": "\u212a", "i": "\u0131", "I": "\u0130"}
    variants = {key.upper(), key.title(), key.lower()} | {key.replace(*pair) for pair in alike.items()}
    for variant in variants - {key}:
        assert refusal(spelt(variant)).code == INVALID_REQUEST, variant


@pytest.mark.parametrize("alias", [b"task_id", b"request_state", b"input_responses"])
def test_names_that_the_python_sdk_takes_for_ours_are_refused(alias: bytes) -> None:
    assert refusal(call(b'{},"' + alias + b'":"x"')).code == INVALID_REQUEST


def test_unknown_members_pass_but_not_twice() -> None:
    params = b'"params":{"":0,"Q":[{}],"meta":2,"_meta":{"vendor/a":[]}}'
    body = message(b'"id":1,"method":"vendor/do","x":1,' + params)
    assert parse(body) == Envelope(Kind.REQUEST, "vendor/do", b"1", None, None, None, None, False, ())
    assert refusal(body.replace(b'"Q"', b'"meta"')).code == INVALID_REQUEST


# --- what an Envelope says ---

NAMED = [
    ("tools/call", b'"name":"n","uri":"u","taskId":"t"', "n"),
    ("prompts/get", b'"name":"n","uri":"u"', "n"),
    ("resources/read", b'"name":"n","uri":"u"', "u"),
    ("resources/subscribe", b'"uri":"u"', "u"),
    ("resources/unsubscribe", b'"uri":"u"', "u"),
    ("tasks/get", b'"name":"n","taskId":"t"', "t"),
    ("tasks/result", b'"taskId":"t"', "t"),
    ("tasks/update", b'"taskId":"t"', "t"),
    ("tasks/cancel", b'"taskId":"t"', "t"),
    ("completion/complete", b'"ref":{"type":"ref/prompt","name":"n"}', "n"),
    ("completion/complete", b'"ref":{"type":"ref/resource","uri":"u"}', "u"),
    ("completion/complete", b'"ref":{"type":"ref/other"}', None),
    ("completion/complete", b'"name":"n"', None),
    ("tools/list", b'"name":"n"', None),
    ("vendor/do", b'"name":5,"uri":{},"taskId":null,"ref":[]', None),
    ("tools/call", b'"name":"\\u00e9\\ud83d\\ude00"', "é😀"),
    ("tools/call", b'"arguments":{"name":"inner"}', None),
]


@pytest.mark.parametrize(("method", "params", "name"), NAMED)
def test_the_name_is_what_the_method_acts_on(method: str, params: bytes, name: str | None) -> None:
    for space in (b"", b"        "):
        body = message(b'"id":1,"method":"' + method.encode() + b'",' + space + b'"params":{' + params + b"}")
        assert parse(body).name == name


@pytest.mark.parametrize(
    ("method", "params"),
    [
        *(("tools/call", b'"name":null'), ("tools/call", b'"name":["x"]'), ("resources/read", b'"uri":1')),
        *(("tasks/get", b'"taskId":{}'), ("completion/complete", b'"ref":"x"')),
        ("completion/complete", b'"ref":{"name":1}'),
        ("completion/complete", b'"ref":{"name":"a","uri":"b"}'),
        ("resources/read", b'"uri":"a\\u0000"'),
        ("ping", b'"_meta":{"io.modelcontextprotocol/protocolVersion":null}'),
        ("ping", b'"_meta":{"io.modelcontextprotocol/protocolVersion":2026}'),
    ],
)
def test_a_name_or_version_that_is_not_a_string_is_refused_with_the_id(method: str, params: bytes) -> None:
    error = refusal(message(b'"id":"q","method":"' + method.encode() + b'","params":{' + params + b"}"))
    assert (error.code, error.id) == (INVALID_REQUEST, b'"q"')


def test_a_modern_call_says_version_and_trace() -> None:
    trace = b',"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=1"}'
    body = call(b'{"city":"Ams"},' + MODERN_META[:-1] + trace)
    assert parse(body) == Envelope(
        *(Kind.REQUEST, "tools/call", b"7", "x", "2026-07-28"),
        *("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1", False, ()),
    )


def test_an_empty_version_is_a_version_and_an_odd_trace_is_none() -> None:
    meta = b'{"io.modelcontextprotocol/protocolVersion":"","traceparent":1,"tracestate":null}'
    envelope = parse(call(b'{},"_meta":' + meta))
    assert (envelope.version, envelope.traceparent, envelope.tracestate) == ("", None, None)


@pytest.mark.parametrize("value", [b'"opaque"', b"null", b"{}"])
@pytest.mark.parametrize("key", [b"requestState", b"inputResponses"])
def test_request_state_counts_with_any_value(key: bytes, value: bytes) -> None:
    assert parse(call(b'{},"' + key + b'":' + value)).has_request_state
    assert not parse(call(b'{"' + key + b'":' + value + b"}")).has_request_state


def test_kinds_follow_from_the_members() -> None:
    for id, kind in ((b'"id":1,', Kind.REQUEST), (b"", Kind.NOTIFICATION)):
        assert parse(message(id + b'"method":"ping"')).kind is kind
    for outcome in (b'"result":{}', b'"error":{"code":1}', b'"result":null'):
        response = Envelope(Kind.RESPONSE, "", b'"s-1"', None, None, None, None, False, ())
        assert parse(message(b'"id":"s-1",' + outcome)) == response


def test_the_id_of_a_refused_response_is_not_echoed() -> None:
    for last, id in ((b'"result":{}}', b"null"), (b'"method":"a"}', b"1")):
        assert refusal(b'{"jsonrpc":"1.0","id":1,' + last).id == id


# --- batches ---


def test_a_batch_names_the_method_of_each_message() -> None:
    messages = [message(b'"id":1,"method":"ping"'), message(b'"id":9,"result":{}')]
    messages.append(call(b'{},"requestState":1,' + MODERN_META))
    expected = ("ping", "", "tools/call")
    assert parse(b" \r\n\t[" + b", ".join(messages) + b"]\n") == Envelope(
        Kind.BATCH, "", b"null", None, "2026-07-28", None, None, True, expected
    )


@pytest.mark.parametrize(
    "element", [b"[]", b"1", b"null", b"{}", message(b'"id":1,"method":"initialize"'), message(b'"id":1')]
)
def test_one_bad_message_refuses_the_batch(element: bytes) -> None:
    error = refusal(b"[" + message(b'"id":1,"method":"ping"') + b"," + element + b"]")
    assert (error.code, error.id) == (INVALID_REQUEST, b"null")


def test_the_messages_of_a_batch_claim_one_version() -> None:
    modern = call(b"{}," + MODERN_META)
    other = modern.replace(b"2026-07-28", b"2025-11-25")
    assert parse(b"[" + modern + b"," + modern + b"]").version == "2026-07-28"
    assert refusal(b"[" + modern + b"," + other + b"]").code == INVALID_REQUEST


def test_a_batch_has_a_bound() -> None:
    pings = [message(b'"id":1,"method":"ping"')] * 128
    assert parse(b"[" + b",".join(pings) + b"]").methods == ("ping",) * 128
    assert refusal(b"[" + b",".join([*pings, pings[0]]) + b"]").code == INVALID_REQUEST
    assert refusal(b"[" + b"1," * 1_000_000 + b"1]").code == INVALID_REQUEST


# --- limits and details ---


def test_depth_counts_from_the_message_or_the_batch() -> None:
    assert parse(deep := call(b"[" * 62 + b"]" * 62)).name == "x"
    assert refusal(b"[" + deep + b"]").code == PARSE_ERROR


def test_objects_that_are_read_have_at_most_256_members_and_others_any_number() -> None:
    many = b",".join(b'"k%d":1' % n for n in range(300))
    assert parse(call(b"{" + many + b"}")).name == "x"
    assert refusal(call(b"{}," + many)).code == INVALID_REQUEST
    assert refusal(b"{" + many + b"}").code == INVALID_REQUEST


def test_a_stack_that_is_nearly_used_up_refuses_the_body() -> None:
    body = call(b"[" * 40 + b"]" * 40)

    def detail_far_down() -> str:
        try:
            return detail_far_down()
        except RecursionError:  # again, while there is no frame left to raise an EnvelopeError in
            try:
                parse(body)
            except EnvelopeError as error:
                return error.detail
            pytest.fail("There are more frames left than a nesting of 40 needs.")

    assert detail_far_down() == "The body is nested too deeply."


def test_details_are_sentences_without_bytes_of_the_client() -> None:
    refused = [body for body, code in VECTORS.values() if code is not None]
    for body in refused + NOT_A_MESSAGE + NOT_JSON:
        error = refusal(body.replace(b'"x"', b'"s3cret"'))
        assert error.detail.endswith(".")
        assert "s3cret" not in error.detail
        assert str(error) == error.detail


# --- what the plain reader relies on ---


@pytest.mark.parametrize(
    "body",
    [
        call(b'{"name":"inner","method":[1,2,{"id":3}]}'),
        call(b'{"text":"\\u00e9 \\"quoted\\" \\/ \\ud83d\\ude00"},' + MODERN_META),
        call('{"städte":["Köln"]}'.encode()) + b"\n",
        message(b'"method":"notifications/initialized"'),
        message(b'"id":"a","method":"tools/list","params":{"cursor":"x"}'),
    ],
)
def test_messages_of_the_sdks_need_the_plain_reader_only(body: bytes) -> None:
    assert module._plain(body) == module._strict(body)


def test_no_string_has_a_shorter_spelling_than_the_encoders() -> None:
    short = dict.fromkeys('"\\\b\f\n\r\t', 2)
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        character = chr(code)
        shortest = short.get(character, 6 if code < 0x20 else len(character.encode()))
        if len(msgspec.json.encode(character)) - 2 != shortest:
            pytest.fail(f"U+{code:04X}")
