"""Where the spans of the benchmark go: a collector that takes them and looks at none.

``python -m tests.bench.collector PORT``: a process of its own, so that its work is not the proxy's.
"""

from __future__ import annotations

import asyncio
import sys

from tests.tools.otlp_receiver import OtlpReceiver


async def serve(port: int) -> None:
    async with OtlpReceiver(port, decode=False):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
