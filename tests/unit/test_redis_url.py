"""URLs of the registry: what they mean, what is refused, and that no secret of them is ever shown."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_proxy.config.redis_url import SCHEMES, RedisUrl, parse_url, redacted

LOCAL = (("h", 6379),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", RedisUrl("server", False, LOCAL)),
        ("redis://h:6380/", RedisUrl("server", False, (("h", 6380),))),
        ("redis://h/7", RedisUrl("server", False, LOCAL, db=7)),
        ("redis://h?db=7", RedisUrl("server", False, LOCAL, db=7)),
        ("redis://[::1]:6380/1", RedisUrl("server", False, (("::1", 6380),), db=1)),
        ("redis://[fe80::1]", RedisUrl("server", False, (("fe80::1", 6379),))),
        ("redis://user:p%40ss%2F@h", RedisUrl("server", False, LOCAL, username="user", password="p@ss/")),
        ("redis://:secret@h", RedisUrl("server", False, LOCAL, password="secret")),
        ("redis://:a:b@h", RedisUrl("server", False, LOCAL, password="a:b")),
        ("rediss://h", RedisUrl("server", True, LOCAL)),
        (
            "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=False&ssl_cert_reqs=none",
            RedisUrl(
                "server",
                True,
                LOCAL,
                options={"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": False, "ssl_cert_reqs": "none"},
            ),
        ),
        ("unix:///run/redis.sock", RedisUrl("server", False, (), path="/run/redis.sock")),
        (
            "unix://u:p@/run/my%20redis.sock?db=2",
            RedisUrl("server", False, (), path="/run/my redis.sock", db=2, username="u", password="p"),
        ),
        (
            "redis+sentinel://a,b:26380,[::1]/main/3",
            RedisUrl("sentinel", False, (("a", 26379), ("b", 26380), ("::1", 26379)), service="main", db=3),
        ),
        ("redis+sentinel://a/main", RedisUrl("sentinel", False, (("a", 26379),), service="main")),
        (
            "rediss+sentinel://u:p@a/main?sentinel_password=s",
            RedisUrl(
                "sentinel",
                True,
                (("a", 26379),),
                service="main",
                username="u",
                password="p",
                options={"sentinel_password": "s"},
            ),
        ),
        ("redis+cluster://a:7000,b:7001", RedisUrl("cluster", False, (("a", 7000), ("b", 7001)))),
        ("rediss+cluster://u:p@a/0", RedisUrl("cluster", True, (("a", 6379),), username="u", password="p")),
    ],
)
def test_every_form_means_what_it_says(text: str, expected: RedisUrl) -> None:
    url = parse_url(text)

    assert url == expected
    assert (url.username, url.password) == (expected.username, expected.password)


@pytest.mark.parametrize(
    ("text", "cause", "cure"),
    [
        ("", "no scheme", "write redis://"),
        ("localhost:6379", "no scheme", "write redis://"),
        ("http://h", "no scheme", "known:"),
        ("redis+sentinal://h/x", "no scheme", "redis+sentinel"),
        ("redis://", "no host", "write redis://"),
        ("redis://h:", "port", "%40"),
        ("redis://h:0", "port", "1 to 65535"),
        ("redis://h:65536", "port", "1 to 65535"),
        ("redis://h:\u0661", "port", "1 to 65535"),
        ("redis://a,b", "one host", "redis+sentinel"),
        ("redis://h h", "no place", "percent-encode"),
        ("redis://h\n", "no place", "percent-encode"),
        ("redis://h#1", "no place", "percent-encode"),
        ("redis://-h", "host", "write"),
        ("redis://[::1", "no host", "write"),
        ("redis://[::1]x:3/0", "no host", "write"),
        ("redis://h/x", "database", "as the last part"),
        ("redis://h/-1", "database", "as the last part"),
        ("redis://h/99999", "database", "as the last part"),
        ("redis://h/0/1", "too many parts", "write"),
        ("redis://h/1?db=1", "twice", "path alone"),
        ("redis://h?db=1&db=2", "twice", "keep one"),
        ("redis://h?timeout=1", "not known", "known: db"),
        ("redis://h?ssl_ca_certs=/x", "does not use it", "rediss"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs", "none, optional, required"),
        ("rediss://h?ssl_ca_certs=a&ssl_ca_certs=b", "twice", "keep one"),
        ("unix://h/x", "no socket", "unix:///"),
        ("unix:///", "no socket", "unix:///"),
        ("redis+sentinel://h", "names the service", "SERVICE"),
        ("redis+sentinel://h//0", "names the service", "SERVICE"),
        ("redis+sentinel://h,/main", "no host", "write"),
        ("redis+cluster://h/1", "database 0", "leave"),
        ("redis+cluster://h?db=1", "not known", "known:"),
        ("redis://:pa/ss@h", "no place", "%2F"),
        ("redis://:pa#ss@h", "no place", "%23"),
        ("redis://:pa?ss@h", "no place", "%40"),
    ],
)
def test_a_url_that_cannot_be_used_names_cause_and_cure(text: str, cause: str, cure: str) -> None:
    with pytest.raises(ValueError, match=r"Redis|Sentinel|ssl_") as refused:
        parse_url(text)

    assert cause in str(refused.value)
    assert cure in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:hunter2@h:1/2", "redis://h:1/2"),
        ("rediss://:hunter2@[::1]?ssl_password=hunter2", "rediss://[::1]:6379/0"),
        ("unix://:hunter2@/run/redis.sock", "unix:///run/redis.sock"),
        (
            "rediss+sentinel://hunter2@a,b/main/1?sentinel_password=hunter2",
            "rediss+sentinel://a:26379,b:26379/main/1",
        ),
        ("redis+cluster://x:hunter2@a,b", "redis+cluster://a:6379,b:6379"),
        ("redis://:hunter2/@h", "redis://..."),
        ("hunter2", "..."),
        ("hunter2://x", "..."),
    ],
)
def test_people_see_where_it_is_and_no_secret(text: str, shown: str) -> None:
    assert redacted(text) == shown


def read(text: str) -> tuple[RedisUrl | None, str]:
    """The URL, or what is said of it, with all that a traceback would show."""
    try:
        return parse_url(text), ""
    except ValueError as error:
        return None, "".join(traceback.format_exception_only(error)) + repr(error.__cause__)


SECRET = "hunter2SECRET"
NOISE = st.text(alphabet="/#?@:%[], \n,.=&abc", max_size=6)


@given(st.sampled_from([*SCHEMES, "http", ""]), NOISE, NOISE, NOISE, NOISE)
@example("redis", ":", "/", "h", "")
@example("rediss", "", "", "", "?ssl_password=")
@example("redis+sentinel", "", "", "@h", "/main?sentinel_password=")
def test_no_message_and_no_shown_form_repeats_a_password(
    scheme: str, before: str, after: str, host: str, rest: str
) -> None:
    for text in (
        f"{scheme}://u:{before}{SECRET}{after}@{host}{rest}",
        f"{scheme}://u:p@{host}{rest}{SECRET}",
    ):
        url, refusal = read(text)
        if url is None:
            assert SECRET not in refusal + redacted(text)
        elif SECRET in url.username + url.password + str(url.options):
            assert SECRET not in repr(url) + url.redacted
