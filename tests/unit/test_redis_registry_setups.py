"""The registry over TLS, a Unix socket, ACLs, Sentinel and Cluster; all of them real."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, SessionRecord
from tests.tools.redis_server import RedisCluster, RedisServer, SentinelGroup, eventually
from tests.tools.tls import Authority
from tests.unit.redis_registry import MOVED, RECORD, Replica, fails, name, outcomes, replica, session

A, B = name(1), name(2)


async def converses(one: Replica) -> None:
    """One of everything."""
    registry = one.registry
    assert await registry.create(A, RECORD) is True
    assert await registry.create(A, MOVED) is False
    assert await registry.refresh(A) == RECORD
    assert await registry.replace(A, RECORD, MOVED) is True
    assert await registry.claim(A, "token", 5) is True
    await registry.disclaim(A, "token")
    shown = await registry.show(A)
    assert shown is not None
    assert [listed._replace(expires_s=None) for listed in (await registry.page("", 10)).sessions] == [
        shown._replace(expires_s=None)
    ]
    await registry.end(A)
    assert await registry.fetch(A) is ENDED
    await one.heard(lambda: len(one.changes) == 2)
    assert registry.health() == (True, "redis: connected")


# --- one server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def over_tls(authority: Authority) -> Iterator[RedisServer]:
    with RedisServer(tls=(authority.certificate, authority.key, authority.ca)) as redis:
        yield redis


async def test_everything_works_over_tls(over_tls: RedisServer, authority: Authority) -> None:
    over_tls.flush()
    async with replica(
        f"rediss://127.0.0.1:{over_tls.port}/0?ssl_ca_certs={authority.ca}", budget_s=2.0
    ) as one:
        await converses(one)


async def test_a_certificate_that_is_not_trusted_is_no_server(over_tls: RedisServer) -> None:
    async with replica(f"rediss://127.0.0.1:{over_tls.port}/0", waits=False, budget_s=2.0) as one:
        assert "certificate is not trusted" in await fails(one.registry.fetch(A))


async def test_everything_works_over_a_unix_socket_and_in_another_database() -> None:
    with RedisServer() as redis:
        async with replica(f"unix://{redis.socket_path}?db=3") as one:
            await one.registry.create(B, RECORD)
            assert redis.keys() == []
            redis.command("SELECT", 3)
            assert redis.keys() == [session(B)]
            redis.flush()
            await converses(one)


async def test_a_user_with_the_rights_it_needs_and_no_other_is_enough() -> None:
    with RedisServer() as redis:
        redis.command(
            *("ACL", "SETUSER", "proxy", "on", ">s3cret", "resetkeys", "~mcp-proxy:*"),
            *("resetchannels", "&mcp-proxy:changes", "-@all", "+get", "+set", "+getex", "+pexpire"),
            *("+pttl", "+del", "+eval", "+scan", "+publish", "+subscribe", "+ping", "+hello"),
        )
        async with replica(f"redis://proxy:s3cret@127.0.0.1:{redis.port}/0") as one:
            await converses(one)


async def test_a_user_without_rights_gets_errors_and_no_absent_sessions() -> None:
    with RedisServer() as redis:
        redis.command(
            "ACL", "SETUSER", "proxy", "on", ">s3cret", "~mcp-proxy:*", "-@all", "+hello", "+ping", "+role"
        )
        async with replica(f"redis://proxy:s3cret@127.0.0.1:{redis.port}/0", waits=False) as one:
            assert "NOPERM" in await fails(one.registry.fetch(A))
            assert "NOPERM" in await fails(one.registry.create(A, RECORD))


# --- Sentinel -------------------------------------------------------------------------------------


async def test_everything_works_with_the_master_that_the_sentinels_name() -> None:
    with SentinelGroup() as group:
        async with replica(group.url) as one:
            await converses(one)
        assert group.master.calls()["publish"] == 2


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_new_master_is_followed_by_operations_and_by_the_subscription(how: str) -> None:
    with SentinelGroup(sentinels=3, replicas=2) as group:
        async with replica(group.url) as one, replica(group.url) as other:
            await one.registry.create(A, RECORD)
            # WAIT would not do: it waits for what its own connection has written.
            for follower in group.replicas:
                eventually(partial(_has_caught_up, follower, group.master), "a replica has everything")
            (group.master.kill if how == "killed" else group.master.freeze)()

            await fails(one.registry.fetch(A))
            assert await one.works(lambda: one.registry.fetch(A)) == RECORD
            assert await one.works(lambda: one.registry.create(B, RECORD)) is True
            await other.heard(lambda: other.resets >= 2)
            resets = other.resets
            await one.works(lambda: one.registry.end(A))

            # Sentinels cut connections when they tidy up: then it was told that it may have missed some.
            await other.heard(lambda: A in other.changes or other.resets > resets)
            assert group.current() is not group.master
            assert group.current().command("EXISTS", session(B)) == 1
            if how == "frozen":
                group.master.thaw()
                for _ in range(50):
                    assert await one.registry.fetch(B) == RECORD


async def test_sentinels_that_hang_or_are_gone_do_not_hide_the_one_that_answers() -> None:
    with SentinelGroup(sentinels=3) as group:
        group.sentinels[0].freeze()
        group.sentinels[1].kill()
        async with replica(group.url) as one:
            await converses(one)
        group.sentinels[0].thaw()


async def test_a_service_that_no_sentinel_knows_is_said_to_be_unknown() -> None:
    with SentinelGroup() as group:
        async with replica(group.url.replace("sessions", "other"), waits=False) as one:
            assert "the sentinels know no master" in await fails(one.registry.fetch(A))


# --- Cluster --------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as nodes:
        yield nodes


async def test_everything_works_in_a_cluster_and_every_node_gets_its_share(cluster: RedisCluster) -> None:
    async with replica(cluster.url) as one:
        await converses(one)
        for some in (range(start, start + 20) for start in range(10, 310, 20)):
            # A few at once: each has the time of a request, and this may be a busy machine.
            records = [SessionRecord(f"backend-{n}") for n in some]
            made = await outcomes(
                *(one.registry.create(name(n), record) for n, record in zip(some, records, strict=True))
            )
            assert made == [True] * 20
            assert await outcomes(*(one.registry.fetch(name(n)) for n in some)) == records
        held = [len(node.keys()) for node in cluster.nodes]
        assert sum(held) == 301
        assert min(held) > 50


async def test_pages_go_through_all_nodes(cluster: RedisCluster) -> None:
    async with replica(cluster.url) as one:
        for some in (range(start, start + 20) for start in range(0, 200, 20)):
            assert await outcomes(*(one.registry.create(name(n), RECORD) for n in some)) == [True] * 20
        seen: set[str] = set()
        page = await one.registry.page("", 30)
        seen.update(listed.name for listed in page.sessions)
        while page.cursor:
            page = await one.registry.page(page.cursor, 30)
            seen.update(listed.name for listed in page.sessions)

        assert seen == {name(n) for n in range(200)}


async def test_one_node_is_enough_to_find_the_others(cluster: RedisCluster) -> None:
    seed = cluster.nodes[1].port
    async with replica(f"redis+cluster://127.0.0.1:1,127.0.0.1:{seed}") as one:
        await converses(one)


async def test_a_slot_that_moves_is_followed_at_every_step(cluster: RedisCluster) -> None:
    slot = cluster.slot(session(A))
    async with replica(cluster.url) as one:
        # Several idle connections to each node: what must stay side by side must share one.
        for _ in range(3):
            await outcomes(*(one.registry.fetch(name(n)) for n in range(50)))
        await one.registry.create(A, RECORD)
        source = cluster.owner(slot)
        target = next(node for node in cluster.nodes if node is not source)

        cluster.begin_move(slot, target)
        assert await one.registry.fetch(A) == RECORD  # still at the source
        assert cluster.move_keys(slot, source, target) == 1
        assert await outcomes(*(one.registry.fetch(A) for _ in range(50))) == [RECORD] * 50  # ASK
        assert await one.registry.refresh(A) == RECORD
        shown = await one.registry.show(A)
        assert shown is not None
        assert shown.record == RECORD
        assert await one.registry.replace(A, RECORD, MOVED) is True
        await one.registry.end(A)
        assert await one.registry.fetch(A) is ENDED
        assert source.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        cluster.end_move(slot, target)
        assert await outcomes(*(one.registry.fetch(A) for _ in range(50))) == [ENDED] * 50  # MOVED
        assert await one.registry.create(A, RECORD) is True
        assert one.registry.health()[0]
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1


async def test_slots_that_move_under_load_lose_no_operation(cluster: RedisCluster) -> None:
    names = [name(n) for n in range(40)]
    wrong: list[object] = []
    asked = 0
    async with replica(cluster.url, budget_s=2.0) as one:
        await outcomes(*(one.registry.create(of, SessionRecord(of)) for of in names))
        is_over = asyncio.Event()

        async def ask() -> None:
            nonlocal asked
            while not is_over.is_set():
                for of, found in zip(names, await outcomes(*map(one.registry.fetch, names)), strict=True):
                    asked += 1
                    if found != SessionRecord(of):
                        wrong.append(found)

        asking = asyncio.ensure_future(ask())
        for of in names[:12]:
            slot = cluster.slot(session(of))
            source = cluster.owner(slot)
            target = cluster.nodes[(cluster.nodes.index(source) + 1) % 3]
            await asyncio.to_thread(cluster.move, slot, target)
        is_over.set()
        await asking

    assert asked > 100
    assert wrong == []


async def test_a_node_that_hangs_delays_no_other_keys(cluster: RedisCluster) -> None:
    async with replica(cluster.url) as one:
        names = [name(n) for n in range(60)]
        await outcomes(*(one.registry.create(of, SessionRecord(of)) for of in names))
        owners = {of: cluster.owner(cluster.slot(session(of))) for of in names}
        hung = cluster.nodes[2]
        hung.freeze()
        for _ in range(3):
            for of, found in zip(names, await outcomes(*map(one.registry.fetch, names)), strict=True):
                if owners[of] is hung:
                    assert isinstance(found, StoreError)
                else:
                    assert found == SessionRecord(of)
        for _ in range(5):
            await outcomes(*map(one.registry.fetch, names))
        ok, sentence = one.registry.health()
        assert not ok
        assert sentence.startswith("1 of 3 nodes of the redis cluster unreachable for ")
        hung.thaw()

        for of in names:
            assert await one.works(partial(one.registry.fetch, of)) == SessionRecord(of)


async def test_a_cluster_that_comes_late_is_found() -> None:
    group = RedisCluster()
    async with replica(group.url, waits=False) as one:
        assert "no node of the cluster answers" in await fails(one.registry.fetch(A))
        assert not one.registry.health()[0]
        await asyncio.to_thread(group.__enter__)
        try:
            await one.works(lambda: one.registry.fetch(A))
            await one.heard(lambda: one.resets)
            await converses(one)
        finally:
            group.__exit__(None, None, None)


def _has_caught_up(replica: RedisServer, master: RedisServer) -> bool:
    offset = replica.info("replication").get("slave_repl_offset")
    return offset == master.info("replication")["master_repl_offset"]


async def test_a_node_that_was_replaced_by_its_replica_is_left(cluster: RedisCluster) -> None:
    with RedisServer("cluster-enabled yes", "cluster-node-timeout 1000") as spare:
        cluster.adopt(spare, of=cluster.nodes[0])
        async with replica(cluster.url) as one:
            names = [name(n) for n in range(60)]
            await outcomes(*(one.registry.create(of, SessionRecord(of)) for of in names))
            # WAIT would not do: it waits for what its own connection has written.
            eventually(lambda: _has_caught_up(spare, cluster.nodes[0]), "the replica has everything")
            cluster.nodes[0].kill()

            for of in names:
                assert await one.works(partial(one.registry.fetch, of)) == SessionRecord(of)
            assert await one.works(lambda: one.registry.create(name(99), RECORD)) is True
            assert spare.command("DBSIZE") > 5
