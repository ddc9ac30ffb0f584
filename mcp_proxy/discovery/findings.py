"""What a source has found so far: publishes what is news, tells its state, and logs what changes.

Rules of this file: a state is logged when it begins, not as long as it lasts. Nothing here names an
address: those of backends are logged by the pool when they come and go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mcp_proxy.backends import Endpoint, Publish
from mcp_proxy.discovery.steady import EMPTY_S, Steady

logger = logging.getLogger("mcp_proxy")


class Findings:
    """Of the source ``name``, such as ``dns weather.mcp.svc``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.publish: Publish = _nobody
        self._steady = Steady()
        self._has_looked = False
        self._failure: str | None = None

    @property
    def recheck_s(self) -> float | None:
        """After how long the next look should be at the latest, None: when it is its turn."""
        return self._steady.recheck_s

    @property
    def _count(self) -> int:
        return len(self._steady.last or ())

    def found(self, endpoints: Iterable[Endpoint], at_s: float) -> None:
        """A look has found these and no others."""
        self._has_looked = True
        doubt_before = self._steady.doubt
        news = self._steady.offer(endpoints, at_s)
        if self._steady.doubt not in (None, doubt_before):
            logger.warning("discovery: %s", self._state())
        if news is not None:
            logger.debug("discovery: %s", self._state())
            if not news:
                logger.warning("discovery: %s: no backends for %g s, so there are none", self.name, EMPTY_S)
            self.publish(news)

    def succeeded(self) -> None:
        """Looking works."""
        if self._failure is not None:
            logger.info("discovery: %s works again", self.name)
            self._failure = None

    def failed(self, reason: str, detail: str = "") -> None:
        """It does not, and what was found before stays."""
        self._has_looked = True
        if reason != self._failure:
            self._failure = reason
            logger.warning("discovery: %s%s", self._state(), f" ({detail})" if detail else "")

    def health(self) -> tuple[bool, str]:
        """As ``Source.health``."""
        return self._has_looked and self._failure is None, self._state()

    def _state(self) -> str:
        if not self._has_looked:
            return f"{self.name}: not looked yet"
        backends = f"{self._count} backend{'' if self._count == 1 else 's'}"
        if self._failure is not None:
            return f"{self.name}: {self._failure}; {backends} from before"
        if self._steady.doubt is None or not self._count:
            return f"{self.name}: {backends}"
        return f"{self.name}: suddenly {self._steady.doubt}; {backends} from before until that is certain"


def _nobody(endpoints: Iterable[Endpoint]) -> None:
    """Before ``run``."""
