"""Noticing a change on disk, however the files are replaced, and reading the same again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcp_proxy.config import Config, ConfigErrors, read
from mcp_proxy.config.changes import compare
from mcp_proxy.config.files import digest, signature
from mcp_proxy.config.watching import Watched
from tests.tools.tls import Authority

ONE = "pools: {a: {backends: [http://one/mcp]}}\n"
TWO = "pools: {a: {backends: [http://two/mcp]}}\n"


def watch(*paths: Path) -> Watched:
    return Watched({path: signature(path) for path in paths})


def looks(watched: Watched, count: int = 4) -> list[bool]:
    return [watched.look() for _ in range(count)]


def put(directory: Path, name: str, text: str) -> Path:
    """A file, never with the signature of one that had the name before."""
    path = directory / name
    was = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(was + 1, was + 1))
    return path


class ConfigMap:
    """A volume as a kubelet writes it: names lead through ``..data`` to a directory per version, and an
    update makes a new directory and renames a new ``..data`` over the old one."""

    def __init__(self, directory: Path, **files: str) -> None:
        self._directory = directory
        self._version = 0
        self.update(**files)
        for name in files:
            (directory / f"{name}.yaml").symlink_to(Path("..data", f"{name}.yaml"))

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.yaml"

    def update(self, **files: str) -> None:
        data, old = self._directory / "..data", f"..version-{self._version}"
        self._version += 1
        new = self._directory / f"..version-{self._version}"
        new.mkdir()
        for name, text in files.items():
            (new / f"{name}.yaml").write_text(text)
        fresh = self._directory / "..data_tmp"
        fresh.symlink_to(new.name)
        fresh.rename(data)
        if self._version > 1:
            for path in (self._directory / old).iterdir():
                path.unlink()
            (self._directory / old).rmdir()


def test_nothing_is_reported_while_nothing_changes(tmp_path: Path) -> None:
    watched = watch(put(tmp_path, "a", ONE), tmp_path / "missing")

    assert looks(watched) == [False] * 4


def test_an_edit_is_reported_once_when_two_looks_have_seen_it(tmp_path: Path) -> None:
    file = put(tmp_path, "a", ONE)
    watched = watch(file)

    put(tmp_path, "a", TWO)

    assert looks(watched) == [False, True, False, False]


def test_a_file_that_is_still_being_written_is_not_reported(tmp_path: Path) -> None:
    file = put(tmp_path, "a", ONE)
    watched = watch(file)
    found = []
    for length in (10, 20, 30):
        put(tmp_path, "a", TWO[:length])
        found.append(watched.look())

    assert found == [False] * 3
    assert looks(watched, 2) == [True, False]


def test_a_change_that_is_undone_in_between_is_none(tmp_path: Path) -> None:
    file = put(tmp_path, "a", ONE)
    watched = watch(file)
    other = put(tmp_path, "b", TWO)

    file.rename(tmp_path / "kept")
    other.rename(file)
    assert not watched.look()
    (tmp_path / "kept").rename(file)

    assert looks(watched) == [False] * 4


def test_a_file_that_takes_the_place_of_another_is_reported(tmp_path: Path) -> None:
    file = put(tmp_path, "a", ONE)
    watched = watch(file)
    was = file.stat()
    fresh = put(tmp_path, "fresh", TWO)
    os.utime(fresh, ns=(was.st_atime_ns, was.st_mtime_ns))

    fresh.rename(file)

    assert looks(watched, 3) == [False, True, False]


def test_an_update_of_a_mounted_configmap_is_reported(tmp_path: Path) -> None:
    volume = ConfigMap(tmp_path, proxy=ONE, other="x")
    watched = watch(volume.path("proxy"), volume.path("other"))
    assert looks(watched, 2) == [False, False]

    for text in (TWO, ONE):
        volume.update(proxy=text, other="x")
        assert looks(watched) == [False, True, False, False]
        assert volume.path("proxy").read_text() == text


def test_a_file_that_goes_is_reported_once_and_so_is_its_return(tmp_path: Path) -> None:
    file = put(tmp_path, "a", ONE)
    watched = watch(file)

    file.unlink()
    assert looks(watched) == [False, True, False, False]

    put(tmp_path, "a", ONE)
    assert looks(watched) == [False, True, False, False]


def test_a_link_to_nowhere_and_a_loop_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")

    assert signature(tmp_path / "nowhere") is None
    assert signature(tmp_path / "loop") is None
    assert signature(Path("\0")) is None
    assert digest(tmp_path / "nowhere") == ""


def test_what_changed_while_it_was_read_is_news(tmp_path: Path) -> None:
    file = put(tmp_path, "proxy.yaml", ONE)
    loaded = read(file, {}, {})
    put(tmp_path, "proxy.yaml", TWO)

    assert looks(Watched(loaded.files), 3) == [False, True, False]


def test_every_file_that_the_configuration_names_is_watched(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    token, key, url, proxy = (
        put(tmp_path, name, text)
        for name, text in {
            "token": "t", "session.key": "k" * 32, "redis.url": "redis://h", "proxy.url": "http://p:1",
        }.items()
    )  # fmt: skip
    file = put(
        tmp_path,
        "proxy.yaml",
        f"tls: {{certificate: {authority.certificate}, key: {authority.key}}}\n"
        f"admin: {{token: 'file:{token}'}}\n"
        f"sessions: {{store: signed, url: 'file:{url}', keys: ['file:{key}']}}\n"
        f"pools: {{a: {{backends: [http://a], transport: httpx, proxy: 'file:{proxy}', "
        f"tls: {{ca: {authority.ca}}}}}}}\n"
        f"telemetry: {{access_log_file: {tmp_path}/access.log}}\n",
    )

    loaded = read(None, {"MCP_PROXY_CONFIG": str(file)}, {})

    assert set(loaded.files) == {
        file, authority.certificate, authority.key, authority.ca, token, key, url, proxy,
    }  # fmt: skip
    assert all(loaded.files.values())
    for path in loaded.files:
        watched = Watched(loaded.again().files)
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        assert looks(watched, 2) == [False, True], path.name


def test_reading_again_sees_the_file_anew_under_the_same_variables_and_flags(tmp_path: Path) -> None:
    file = put(tmp_path, "proxy.yaml", ONE)
    environ = {"MCP_PROXY_ADMIN": "127.0.0.1:1", "MCP_PROXY_CONFIG": str(file)}
    flags: dict[str, object] = {"listen": "127.0.0.1:2", "log_level": "debug"}
    first = read(None, environ, flags)
    environ.clear()
    flags.clear()

    put(tmp_path, "proxy.yaml", TWO + "listen: 127.0.0.1:3\n")
    second = first.again()
    third = second.again()

    assert second.config == third.config
    assert compare(first.config, second.config).keys == ("pools.a.backends",)
    assert (str(second.config.listen), str(second.config.admin.listen)) == ("127.0.0.1:2", "127.0.0.1:1")
    assert second.log_level == "debug"


def test_urls_alone_have_no_files_and_read_the_same_again() -> None:
    loaded = read(None, {}, {"backends": ["http://a"]})

    assert loaded.files == {}
    assert not Watched(loaded.files).look()
    assert loaded.again().config == loaded.config


def test_a_file_that_is_missing_or_broken_is_watched_until_it_can_be_read(tmp_path: Path) -> None:
    token = tmp_path / "token"
    file = put(tmp_path, "proxy.yaml", ONE)
    loaded = read(file, {}, {})
    watched = Watched(loaded.files)

    put(tmp_path, "proxy.yaml", ONE + f"admin: {{token: 'file:{token}'}}\n")
    assert looks(watched) == [False, True, False, False]
    with pytest.raises(ConfigErrors, match="cannot read the secret file") as errors:
        loaded.again()
    watched.follow(errors.value.files)
    assert looks(watched) == [False] * 4

    put(tmp_path, "token", "t")
    assert looks(watched) == [False, True, False, False]
    assert loaded.again().config.admin.token is not None


def test_a_configuration_that_is_gone_is_one_problem_and_is_awaited(tmp_path: Path) -> None:
    file = put(tmp_path, "proxy.yaml", ONE)
    loaded = read(file, {}, {})
    file.unlink()

    with pytest.raises(ConfigErrors, match="no such file") as errors:
        loaded.again()

    assert errors.value.files == {file: None}


def secret(tmp_path: Path, text: str) -> Config:
    file = put(tmp_path, "token", text)
    return read(put(tmp_path, "p.yaml", ONE + f"admin: {{token: 'file:{file}'}}\n"), {}, {}).config


def test_configurations_are_equal_as_long_as_their_secrets_are(tmp_path: Path) -> None:
    one, same, other = (secret(tmp_path, text) for text in ("one", "one\n", "other"))

    assert one == same
    assert one != other
    assert compare(one, other).keys == ("admin.token",)


def test_what_cannot_be_taken_over_has_a_place(tmp_path: Path) -> None:
    file = put(tmp_path, "proxy.yaml", ONE)
    old = read(file, {}, {})
    put(tmp_path, "proxy.yaml", TWO + "listen: 127.0.0.1:1\n")
    new = old.again()

    (issue,) = compare(old.config, new.config).issues

    assert str(new.locate(issue)) == (
        f"{file}:2: listen: this cannot change while the proxy runs (restart it, or undo the change)"
    )
