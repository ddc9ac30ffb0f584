"""The pools of one process as the configuration wants them, now and after a reload.

Rules of this file: a pool whose configuration has not changed is not touched. What a change takes away is
drained by the pool; what is in progress on connections of old settings ends on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from mcp_proxy.assembly import checkup_of, dial_of, needs_tls, policy_of, source_of
from mcp_proxy.backends import Backend, Source, endpoint_of
from mcp_proxy.checkup import Checkup
from mcp_proxy.config import PoolConfig
from mcp_proxy.config.changes import Part
from mcp_proxy.pools import Dial, Pool
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Transport
from mcp_proxy.upstream.berths import Berths


class _Member:
    """A pool and what belongs to it."""

    def __init__(self, pool: Pool, config: PoolConfig) -> None:
        self.pool = pool
        self.config = config
        self.checkup: Checkup | None = None
        self.source: Source | None = None
        self.finding: asyncio.Task[None] | None = None


class Fleet:
    """``pools`` by name; those that a reload has removed stay until they have let go of everything."""

    def __init__(
        self,
        tasks: Tasks,
        *,
        berths: Berths,
        on_change: Callable[[Pool], None],
        on_overdue: Callable[[Backend], None],
        on_ejected: Callable[[Pool], None],
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self._members: dict[str, _Member] = {}
        self._leaving: set[str] = set()
        self._retired: list[Transport] = []
        self._tasks = tasks
        self._berths = berths
        self._on_change = on_change
        self._on_overdue = on_overdue
        self._on_ejected = on_ejected
        self._is_running = False

    # --- what the configuration says ---------------------------------------------------

    def prepare(
        self, configs: Mapping[str, PoolConfig], changed: Mapping[str, Collection[Part]]
    ) -> Callable[[], None]:
        """Everything that can fail; the callable puts ``configs`` in force and cannot fail. ``changed``: what
        is different in pools that there are already. Raises StartupError for certificates that cannot be
        used and packages that are not installed."""
        told = {name: self._told(name, configs[name], changed.get(name, ())) for name in configs}
        dials = {
            name: dial_of(configs[name], self._tasks, self._berths)
            for name, parts in told.items()
            if Part.CONNECTIONS in parts
        }
        sources = {name: source_of(configs[name]) for name, parts in told.items() if Part.MEMBERS in parts}

        def apply() -> None:
            for name, parts in told.items():
                member = self._members.get(name) or self._join(name, configs[name], dials[name])
                before, member.config = member.config, configs[name]
                if Part.POLICY in parts:
                    member.pool.configure(policy_of(member.config))
                    if member.checkup is None or _how_checked(before) != _how_checked(member.config):
                        self._check(member)
                if Part.CONNECTIONS in parts:
                    self._retired += member.pool.reconnect(dials[name])
                if Part.MEMBERS in parts:
                    self._find(member, sources[name])
            for name in self._members.keys() - configs.keys():
                self._remove(name)

        return apply

    def _told(self, name: str, config: PoolConfig, changed: Collection[Part]) -> Collection[Part]:
        """What is to be made anew of a pool."""
        member = self._members.get(name)
        if member is None:
            return tuple(Part)
        if needs_tls(config) and not needs_tls(member.config):
            return {*changed, Part.CONNECTIONS}  # nobody has loaded the authorities
        return changed

    def _join(self, name: str, config: PoolConfig, dial: Dial) -> _Member:
        self._leaving.discard(name)
        pool = self.pools.get(name)  # one that was removed and comes back may still have backends
        if pool is None:
            self.pools[name] = pool = Pool(name, policy_of(config), dial, self._tasks)
            pool.on_change, pool.on_stranger = self._on_change, self._met_stranger
            pool.on_overdue, pool.on_ejected = self._on_overdue, self._on_ejected
        self._members[name] = member = _Member(pool, config)
        return member

    def _find(self, member: _Member, source: Source | None) -> None:
        """Where the backends of a pool come from, from now on."""
        self._stop_finding(member)
        member.source = source
        if source is None:
            found = [endpoint_of(entry.url, entry.weight) for entry in member.config.backends]
            member.pool.update(found, "reload")
        elif self._is_running:
            self._start_finding(member)

    def _check(self, member: _Member) -> None:
        """How its backends are checked, from now on."""
        if member.checkup is not None:
            member.checkup.stop()
        member.checkup = checkup_of(member.pool, member.config, self._tasks)
        if member.config.health.active is None:
            for backend in member.pool.backends:
                member.pool.checked(backend, True)  # nobody would find out any more

    def _remove(self, name: str) -> None:
        member = self._members.pop(name)
        if member.checkup is not None:
            member.checkup.stop()
        self._stop_finding(member)
        member.pool.update((), "reload")
        self._leaving.add(name)

    # --- finding backends ----------------------------------------------------------------

    def start(self) -> None:
        """Begin to look for backends. Idempotent; needs a running loop."""
        if not self._is_running:
            self._is_running = True
            for member in self._members.values():
                self._start_finding(member)

    def _start_finding(self, member: _Member) -> None:
        source = member.source
        if source is not None:
            member.finding = self._tasks.spawn(
                source.run(lambda found: member.pool.update(found, "discovery"))
            )

    def _stop_finding(self, member: _Member) -> None:
        if member.finding is not None:
            member.finding.cancel()
        member.finding = member.source = None

    def _met_stranger(self, pool: Pool) -> bool:
        """Whether somebody can say if there is such a backend."""
        member = self._members.get(pool.name)
        if member is None or member.source is None:
            return True
        member.source.refresh()
        return member.source.health()[0]

    @property
    def is_complete(self) -> bool:
        """Every pool has backends, as far as it needs to find them."""
        return all(member.source is None or member.pool.backends for member in self._members.values())

    def health(self, name: str) -> list[str]:
        """Sentences for ``/readyz?verbose`` about a pool, no addresses."""
        member = self._members.get(name)
        if member is None:
            return ["is being removed"]
        said = []
        if member.source is not None:
            said.append(member.source.health()[1])
        if member.checkup is not None:
            said.append(member.checkup.disagreement())
        return [sentence for sentence in said if sentence]

    # --- time ------------------------------------------------------------------------------

    def sweep(self, at_s: float) -> None:
        """Fire due deadlines; a job for the Ticker."""
        for pool in self.pools.values():
            pool.sweep(at_s)
        for member in self._members.values():
            if member.checkup is not None:
                member.checkup.sweep(at_s)
        if self._retired:
            self._sweep_retired(at_s)
        for name in [name for name in self._leaving if self.pools[name].is_empty]:
            self._leaving.discard(name)
            del self.pools[name]

    def _sweep_retired(self, at_s: float) -> None:
        for transport in self._retired:
            transport.sweep(at_s)
            if transport.is_idle:
                self._tasks.spawn(transport.aclose())
        self._retired = [transport for transport in self._retired if not transport.is_idle]

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        for transport in self._retired:
            await transport.aclose()
        for pool in list(self.pools.values()):  # the last of one that is being removed may leave meanwhile
            await pool.aclose()


def _how_checked(config: PoolConfig) -> object:
    """Checks that go on as they are need not begin anew."""
    return config.health.active, config.era
