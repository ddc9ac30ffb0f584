"""What sessions cost that outlive a replica: CPU per store, registry operations per request, and whether
replicas add up.

Rules of this file: operations are counted by the Redis server itself; the CPU time is that of the
proxies alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

from tests.bench import candidates, load
from tests.bench.procs import Process
from tests.bench.report import Numbers
from tests.tools.redis_server import RedisServer

if TYPE_CHECKING:
    from tests.bench.measure import Bench

STORES = {
    "memory": "{{store: memory}}",
    "redis": "{{store: redis, url: '{url}'}}",
    "signed": "{{store: signed, keys: [a-secret-of-the-benchmark-0123456789]}}",
    "signed+redis": "{{store: signed, keys: [a-secret-of-the-benchmark-0123456789], url: '{url}'}}",
}
LOOKUP_SESSIONS = 200
LOOKUP_CALLS = 5
"""Of each session. All are over long before a replica would ask about a session in use by itself."""
REPLICAS = (1, 2, 3)
CALLS_PER_REPLICA_S = 300
"""The same for each, and few enough that three of them, nginx, backend and load do not compete for two
cores: what that costs (cold caches, fewer events per wake-up) is no question of replicas."""


def run(bench: Bench) -> None:
    """Everything of this file; results go to the phases ``stores``, ``lookups`` and ``replicas``."""
    with bench.excluding("registry"), ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        backend = stack.enter_context(bench.backend())
        _stores(bench, redis, backend)
        for store in ("redis", "signed+redis"):
            numbers = _lookups(bench, redis, backend, store)
            bench.results.setdefault("lookups", {})[store] = [numbers]
        _replicas(bench, redis, backend)


def _proxies(
    bench: Bench, stack: ExitStack, store: str, redis: RedisServer, backend: Process
) -> Iterable[Process]:
    sessions = STORES[store].format(url=redis.url)
    while True:
        setup = bench.setup(store.replace("+", "-"), backend.port)._replace(sessions=sessions)
        yield stack.enter_context(candidates.start("http11", setup))


def _stores(bench: Bench, redis: RedisServer, backend: Process) -> None:
    from tests.bench.measure import Instance

    with ExitStack() as stack:
        instances = []
        for store in STORES:
            process = next(iter(_proxies(bench, stack, store, redis, backend)))
            instances.append(Instance(store, process.port, process))
        bench.rounds("stores", instances, backend, bench.calls)


def _lookups(bench: Bench, redis: RedisServer, backend: Process, store: str) -> Numbers:
    with ExitStack() as stack:
        proxies = iter(_proxies(bench, stack, store, redis, backend))
        here, there = next(proxies), next(proxies)
        # Both have connected and subscribed once they have looked for a session in vain.
        for port in (here.port, there.port):
            load.call_once(port, ["nobody"], status=404)
        count = partial(_operations, redis)
        count()
        sessions = load.open_sessions(here.port, LOOKUP_SESSIONS)
        initialize = count() / LOOKUP_SESSIONS
        load.call_once(here.port, sessions * LOOKUP_CALLS)
        warm = count() / (LOOKUP_SESSIONS * LOOKUP_CALLS)
        load.call_once(there.port, sessions)
        cold = count() / LOOKUP_SESSIONS
        load.call_once(there.port, sessions * LOOKUP_CALLS)
        warm_again = count() / (LOOKUP_SESSIONS * LOOKUP_CALLS)
    return {"initialize": initialize, "warm": warm, "cold": cold, "warm_again": warm_again}


def _operations(redis: RedisServer) -> int:
    """Since the last time."""
    operations = sum(redis.calls().values())
    redis.forget_calls()
    return operations


def _replicas(bench: Bench, redis: RedisServer, backend: Process) -> None:
    from tests.bench.measure import Instance

    with ExitStack() as stack:
        proxies = iter(_proxies(bench, stack, "redis", redis, backend))
        running = [next(proxies) for _ in range(max(REPLICAS))]
        instances = []
        for count in REPLICAS:
            ports = [process.port for process in running[:count]]
            setup = bench.setup(f"nginx-{count}", backend.port)
            spreader = stack.enter_context(candidates.start_spreader(setup, ports))
            name = f"{count} replica{'s' if count > 1 else ''}"
            instances.append(Instance(name, spreader.port, None))
        of_name = dict(zip((each.name for each in instances), REPLICAS, strict=True))

        def sample(instance: Instance, backend: Process) -> Numbers:
            replicas = running[: of_name[instance.name]]
            per_s = CALLS_PER_REPLICA_S * len(replicas)
            connections = bench.options.connections * len(replicas)
            with closing(load.CallLoad(instance.port, connections)) as calls:
                calls.run_paced(bench.options.warm_s, per_s)
                before = sum(process.cpu_ns() for process in replicas)
                result = calls.run_paced(bench.options.seconds, per_s)
                cpu_s = (sum(process.cpu_ns() for process in replicas) - before) / 1e9
            answered = len(result.latencies_s)
            return {
                "cpu_us": cpu_s * 1e6 / answered,
                "per_cpu_s": answered / cpu_s,
                "per_s": answered / result.elapsed_s,
            }

        bench.rounds("replicas", instances, backend, sample)
