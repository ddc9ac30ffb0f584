"""What the parent tells its workers."""

from __future__ import annotations

import pickle

from mcp_proxy.config import Config, load
from mcp_proxy.workers.calls import Setup
from mcp_proxy.workers.parent import share

SEALED = {"MCP_PROXY_SESSION_KEY": "a secret of at least 32 characters"}


def config(workers: int) -> Config:
    given = {"backends": ["http://127.0.0.1:1/mcp"], "sessions": "signed", "workers": workers}
    return load(None, SEALED, given)


def test_the_streams_of_all_workers_are_at_least_what_was_asked_for() -> None:
    whole = config(3)
    part = share(whole)
    assert part.limits.streams == 3334
    assert (part.limits.body, part.pools) == (whole.limits.body, whole.pools)


def test_a_worker_gets_the_configuration_as_it_is_with_its_secrets() -> None:
    setup = Setup(config(2), "info", b"key")
    told: Setup = pickle.loads(pickle.dumps(setup))
    assert told == setup
    assert [key.value for key in told.config.sessions.keys] == [SEALED["MCP_PROXY_SESSION_KEY"]]
