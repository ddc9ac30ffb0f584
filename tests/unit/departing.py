"""Gateways whose backends come and go, as a running service lets them."""

from __future__ import annotations

from typing import Any

from mcp_proxy import clock
from mcp_proxy.backends import Backend
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    Gatehouse,
)  # fmt: skip
from tests.unit.poolside import endpoint


class Site(Gatehouse):
    """A gatehouse whose pool is wired as a service does it."""

    def __init__(self, backends: int = 2, **options: Any) -> None:
        super().__init__(backends, **options)
        wire(self)


def wire(house: Gatehouse) -> None:
    house.pool.on_overdue = house.gateway.let_go
    house.pool.on_change = house.watch.recount


def without(house: Gatehouse, *gone: Backend) -> None:
    """A reload takes them out."""
    house.pool.update([endpoint(each.host) for each in house.backends if each not in gone], "reload")


def within(house: Gatehouse) -> None:
    """A reload names all again."""
    house.pool.update([endpoint(each.host) for each in house.backends], "reload")


async def pass_time(house: Gatehouse, seconds: float = 0.0) -> None:
    at_s = clock.now() + seconds
    house.pool.sweep(at_s)
    house.gateway.sweep(at_s)
    await settle()


def openings(house: Gatehouse) -> list[int]:
    return [backend.opening for backend in house.backends]
