"""The `mpi` transport: one rank per node, one reader. Run by mpirun as `python -m mpiboot.agent.broadcast ORDERS`.

Rank 0 reads the archive; every rank, itself included, decodes and writes each chunk while the next is sent. Chunks keep
every count far below MPI's limit of 2 GiB. Each rank prints one line of JSON, as agents do.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from envpack.archive.encoding import read_index
from envpack.stage.stager import Stager
from envpack.stage.staging import stage_stream
from mpiboot.agent.agent import node_name
from mpiboot.protocol.node import AgentOrders

CHUNK_BYTES = 16 * 1024**2


def broadcast(comm: Any, path: str, size_bytes: int) -> Iterator[memoryview]:
    """Yield the first `size_bytes` of rank 0's file, chunk by chunk, on every rank.

    The next chunk is transferred while the caller uses this one. A chunk is valid until the caller requests the second
    chunk after it.

    Parameters
    ----------
    comm
        An mpi4py communicator; only its rank 0 opens `path`.
    """
    from mpi4py import MPI

    source = os.open(path, os.O_RDONLY) if comm.rank == 0 else -1
    buffers = (bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES))
    ready: memoryview | None = None
    for number, offset in enumerate(range(0, size_bytes, CHUNK_BYTES)):
        chunk = memoryview(buffers[number % 2])[: min(CHUNK_BYTES, size_bytes - offset)]
        if source >= 0:
            read_exactly(source, chunk, offset, path)
        request = comm.Ibcast([chunk, MPI.BYTE], root=0)
        if ready is not None:
            yield ready
        request.Wait()
        ready = chunk
    if ready is not None:
        yield ready
    if source >= 0:
        os.close(source)


def read_exactly(file: int, chunk: memoryview, offset: int, path: str) -> None:
    """Fill `chunk` from the open file; raise OSError if the file is too short."""
    filled = 0
    while filled < len(chunk):
        count = os.preadv(file, [chunk[filled:]], offset + filled)
        if not count:
            raise OSError(f"{path} was cut short while it was read")
        filled += count


class BroadcastOrders(AgentOrders):
    """The orders of every rank of the broadcast: those of the node's agent, and the path of the archive."""

    archive: str


def stage_broadcast(comm: Any, orders: BroadcastOrders) -> dict[str, Any]:
    """Stage on this rank's node. A rank that fails still takes part in the broadcast, and then answers with its error.

    Parameters
    ----------
    orders
        The orders of the node's agent, and `archive`: the path of the archive.
    """
    start = time.time()
    index = read_index(orders["archive"]) if comm.rank == 0 else None
    raw, size_bytes = comm.bcast((index.raw, index.archive_bytes) if index else None, root=0)
    stager: Stager | None = None
    answer: dict[str, Any] = {}
    try:
        stager = stage_stream(
            raw,
            orders["archive"],
            orders["root"],
            jobs=orders["threads"],
            expected_pack_id=orders["pack_id"],
            transport="mpi",
        )
    except Exception as error:
        answer = {"error": str(error)}
    if comm.allreduce(stager is not None and not stager.reused):
        for chunk in broadcast(comm, orders["archive"], size_bytes):
            try:
                if stager:
                    stager.feed(chunk)
            except Exception as error:
                abort(stager)
                answer, stager = {"error": str(error)}, None
    try:
        if stager:
            answer = {"stage": {**stager.finish().asdict(), "start": start, "end": time.time()}}
    except Exception as error:
        answer = {"error": str(error)}
    finally:
        abort(stager)
    return answer


def abort(stager: Stager | None) -> None:
    if stager:
        stager.abort()


def main() -> None:
    from mpi4py import MPI

    orders: BroadcastOrders = json.loads(sys.argv[1])
    try:
        answer = stage_broadcast(MPI.COMM_WORLD, orders)
    except Exception as error:  # rank 0 cannot read: the others must not wait for it
        print(json.dumps({"node": node_name(orders), "error": str(error)}), flush=True)
        MPI.COMM_WORLD.Abort(1)
    print(json.dumps({"node": node_name(orders), **answer}), flush=True)


if __name__ == "__main__":
    main()
