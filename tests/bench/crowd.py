"""Many light workers in one process: `python crowd.py ADDRESS COUNT NAME`. Each is a full `distributed.Worker`.

Prints `ready` when everything is imported, waits for a line on stdin, starts the workers and prints `started`; ends
with stdin. Dask's configuration, TLS files included, comes from the environment.
"""

from __future__ import annotations

import asyncio
import resource
import sys

from distributed import Worker

AT_ONCE = 32


async def main() -> None:
    address, count, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    gate = asyncio.Semaphore(AT_ONCE)

    async def start(k: int) -> Worker:
        async with gate:
            return await Worker(
                address, nthreads=1, name=f"{name}-{k}", memory_limit=0, dashboard=False, death_timeout=120
            )

    workers = await asyncio.gather(*(start(k) for k in range(count)))
    print("started", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    await asyncio.gather(*(worker.close(nanny=False) for worker in workers), return_exceptions=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main())
