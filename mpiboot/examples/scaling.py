"""The scaling test: the same computation on 1, 2, 4 and more workers, to see how many of them are worth their cost.

`mpiboot submit -- python -m mpiboot.examples.scaling` groups the flights of 2013, replicated to a chosen size, on more
and more workers of the job, and reports time, speed-up and efficiency.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.common.units import parse_size_bytes
from envpack.errors import MalformedValueError
from mpiboot.client import timeline
from mpiboot.common.units import show_size
from mpiboot.errors import MpibootError, UsageError
from mpiboot.examples import flights
from mpiboot.examples.scheduler import connect_to_scheduler
from mpiboot.examples.tables import text_table
from mpiboot.examples.waiting import gather, wait_for
from mpiboot.kinds import COUNT

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd
    from distributed import Client

PARTITION_BYTES = 64 * 1024**2
DEFAULT_BYTES = 1024**3
# Beyond about half of its memory, a worker spills to disk, and the test would measure the disk.
MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class Measurement:
    """The measured computation on a number of workers.

    Attributes
    ----------
    n_workers, n_nodes, n_threads : int
        The numbers of workers, nodes and threads that it used.
    seconds : list of float
        Duration of each repeat.
    median_s : float
        Median of `seconds`.
    speedup : float
        The median of the smallest number of workers, divided by this one.
    efficiency : float
        The speed-up divided by the ratio of workers; 1 is perfect.
    """

    n_workers: int
    n_nodes: int
    n_threads: int
    seconds: list[float]
    median_s: float
    speedup: float
    efficiency: float


@dataclass(frozen=True)
class Scaling:
    """The measurements with data of one size.

    Attributes
    ----------
    size_bytes : int
        Size of the data in memory.
    n_rows : int
        Number of flights.
    n_partitions : int
    measurements : list of Measurement
        One for each number of workers, in increasing order.
    """

    size_bytes: int
    n_rows: int
    n_partitions: int
    measurements: list[Measurement]


@dataclass(frozen=True)
class _Worker:
    host: str
    address: str
    n_threads: int
    memory_bytes: int | None


def measure(
    client: Client,
    *,
    size_bytes: int | None = None,
    counts: Sequence[int] | None = None,
    repeat: int = 3,
    timeout_s: float = 600,
    progress: Callable[[str], object] = lambda text: None,
) -> Scaling:
    """Time the same computation on more and more workers; each node is filled before the next is used.

    Parameters
    ----------
    client : distributed.Client
    size_bytes : int, optional
        Size of the replicated flights in memory, in bytes; it is rounded to whole copies of the table. Default: 1 GiB,
        or less if the memory of a worker is small.
    counts : sequence of int, optional
        Numbers of workers. Default: 1, 2, 4 and so on, and all.
    repeat : int, default 3
        Timed runs for each number of workers, after one that is not timed.
    timeout_s : float, default 600
        Longest duration of each run, in seconds.
    progress : callable, optional
        Called with a line of text before each number of workers.

    Returns
    -------
    Scaling
        The smallest number of workers has the speed-up and the efficiency 1.

    Raises
    ------
    UsageError
        There are fewer workers than asked for, or the smallest number of workers cannot hold the data.
    MpibootError
        A result differs from plain pandas, or a worker was lost.
    """
    workers = _workers(client)
    counts = _counts(counts, len(workers))
    if repeat < 1:
        raise UsageError(f"--repeat {repeat} is too few", "Pass 1 or more")
    table = flights.read()
    table_bytes = int(table.memory_usage(deep=True).sum())
    limits = [w.memory_bytes for w in workers if w.memory_bytes]
    room_bytes = int(MEMORY_SHARE * min(limits)) * counts[0] if limits else sys.maxsize
    copies = max(round((size_bytes or min(DEFAULT_BYTES, room_bytes)) / table_bytes), 1)
    size_bytes = copies * table_bytes
    if size_bytes > room_bytes:
        raise UsageError(
            f"{show_size(size_bytes)} of flights do not fit {counts[0]} worker(s), which would spill to disk beyond "
            f"{show_size(room_bytes)}",
            "Pass a smaller --size, or begin with more --workers",
        )
    expected = [(frame * copies).to_dict() for frame in _computation(table)]
    # Every number of workers gets the same partitions; if all work, each thread has equally many.
    n_threads = sum(w.n_threads for w in workers[: counts[-1]])
    at_least = max(2 * n_threads, size_bytes / PARTITION_BYTES, len(table) / flights.ROWS_PER_PIECE)
    n_partitions = n_threads * math.ceil(at_least / n_threads)

    measurements: list[Measurement] = []
    for count in counts:
        progress(f"{show_size(size_bytes)} on {count} of {len(workers)} workers")
        chosen = workers[:count]
        addresses = [w.address for w in chosen]
        seconds = _time(client, table, expected, addresses, n_partitions, copies, repeat, timeout_s)
        median_s = statistics.median(seconds)
        first = measurements[0] if measurements else None
        speedup = first.median_s / median_s if first else 1.0
        measurements.append(
            Measurement(
                count,
                len({w.host for w in chosen}),
                sum(w.n_threads for w in chosen),
                seconds,
                median_s,
                speedup,
                efficiency=speedup * counts[0] / count,
            )
        )
    return Scaling(size_bytes, copies * len(table), n_partitions, measurements)


def _counts(counts: Sequence[int] | None, n_workers: int) -> list[int]:
    if not n_workers:
        raise MpibootError("the scheduler has no workers", "Read why: mpiboot logs")
    if counts is None:
        return sorted({2**i for i in range(n_workers.bit_length())} | {n_workers})
    if not counts or min(counts) < 1 or max(counts) > n_workers:
        raise UsageError(
            f"--workers {','.join(map(str, counts))}: the job has {n_workers}",
            f"Pass numbers from 1 to {n_workers}",
        )
    return sorted(set(counts))


def _workers(client: Client) -> list[_Worker]:
    """Return the workers sorted by host, so that the first ones fill a node."""
    descriptions = client.run(_describe, on_error="ignore")
    return sorted(
        (_Worker(address=address, **rest) for address, rest in descriptions.items()),
        key=lambda w: (w.host, w.address),
    )


def _describe(dask_worker: Any) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "n_threads": dask_worker.state.nthreads,
        "memory_bytes": dask_worker.memory_manager.memory_limit,
    }


def _computation(table: Any) -> list[Any]:
    """Return delays per carrier and month, and distance per route, of a table of pandas or Dask."""
    # Without sort=True, Dask shuffles data between all workers of the cluster, for a result of a few rows.
    return [
        table.groupby(["carrier", "month"], sort=True)["arr_delay"].agg(["count", "sum"]),
        table.groupby(["origin", "dest"], sort=True)["distance"].agg(["count", "sum"]),
    ]


def _time(
    client: Client,
    table: pd.DataFrame,
    expected: list[dict[str, Any]],
    workers: list[str],
    n_partitions: int,
    copies: int,
    repeat: int,
    timeout_s: float,
) -> list[float]:
    """Return the seconds of each repeat on these workers alone. Their data are in memory before the clock starts."""
    on_workers, pieces = flights.spread(
        client, table, workers, n_pieces=n_partitions, copies=copies, strict=True
    )
    wait_for(client, pieces, timeout_s, needs=workers)
    seconds = []
    for _ in range(1 + repeat):
        start = time.perf_counter()
        futures = client.compute(_computation(on_workers), workers=workers, allow_other_workers=False)
        got = gather(client, futures, timeout_s, needs=workers)
        seconds.append(time.perf_counter() - start)
        del futures  # otherwise the next run would reuse their results
        # Sums of whole minutes and miles are exact in float64.
        if [frame.to_dict() for frame in got] != expected:
            raise MpibootError(
                f"the sums of {len(workers)} workers differ from those of plain pandas",
                "Read its logs: mpiboot logs",
            )
    return seconds[1:]


def report(scaling: Scaling) -> str:
    """Lay out the measurements as a table of at most 80 columns.

    Returns
    -------
    str
        The column `seconds` is the median of the repeats. The last line names the largest number worth its cost.
    """
    text = text_table(
        f"{scaling.n_rows:,} flights ({show_size(scaling.size_bytes)}) in {scaling.n_partitions} partitions",
        ["workers", "nodes", "threads", "seconds", "fastest", "slowest", "speed-up", "efficiency"],
        [
            [
                str(m.n_workers),
                str(m.n_nodes),
                str(m.n_threads),
                f"{m.median_s:.3f}",
                f"{min(m.seconds):.3f}",
                f"{max(m.seconds):.3f}",
                f"{m.speedup:.2f}",
                f"{m.efficiency:.0%}",
            ]
            for m in scaling.measurements
        ],
    )
    fastest = min(scaling.measurements, key=lambda m: m.median_s)
    worth = max(m.n_workers for m in scaling.measurements if m.efficiency >= 0.5)
    return f"{text}\nFastest on {fastest.n_workers} worker(s); at least half efficient up to {worth}."


def plot(scaling: Scaling, file: str | PathLike[str]) -> None:
    """Draw speed-up and efficiency over the number of workers, with the ideal.

    Raises
    ------
    EnvironmentUnfitError
        matplotlib is not installed.
    """
    figure = timeline.figure_type()(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [m.n_workers for m in scaling.measurements]
    left.plot(counts, [n / counts[0] for n in counts], "--", color="grey", label="ideal")
    left.plot(counts, [m.speedup for m in scaling.measurements], "o-", label="measured")
    left.set_ylabel(f"speed-up against {counts[0]} worker(s)")
    left.legend()
    right.axhline(1, linestyle="--", color="grey")
    right.plot(counts, [m.efficiency for m in scaling.measurements], "o-")
    right.set_ylabel("efficiency")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_xlabel("workers")
    figure.suptitle(f"{scaling.n_rows:,} flights, {show_size(scaling.size_bytes)}", fontsize="medium")
    figure.savefig(file)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mpiboot.examples.scaling", description=__doc__)
    parser.add_argument(
        "--size", metavar="SIZE", help="size of the data in memory, such as 16G (default 1G, or less)"
    )
    parser.add_argument(
        "--workers", metavar="N,N", help="numbers of workers (default 1,2,4 and so on, and all)"
    )
    parser.add_argument(
        "--repeat", metavar="N", type=int, default=3, help="timed runs of each number of workers (default 3)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the measurements to this file, too")
    parser.add_argument("--plot", metavar="FILE", help="draw them into this file: png, svg or pdf")
    options = parser.parse_args(argv)
    try:
        size_bytes = _parse(parse_size_bytes, "--size", options.size)
        counts = _parse(lambda text: [COUNT.parse(n) for n in text.split(",")], "--workers", options.workers)
        # Refuse before the measurements, not after them.
        for file in filter(None, (options.json, options.plot)):
            if not os.access(Path(file).absolute().parent, os.W_OK):
                raise UsageError(
                    f"{file}: its folder does not exist or cannot be written", "Name another file"
                )
        if options.plot:
            timeline.figure_type()
        with connect_to_scheduler("mpiboot.examples.scaling") as client:
            scaling = measure(
                client,
                size_bytes=size_bytes,
                counts=counts,
                repeat=options.repeat,
                progress=lambda text: print(text, file=sys.stderr, flush=True),
            )
        print(report(scaling))
        if options.json:
            Path(options.json).write_text(json.dumps(asdict(scaling), indent=1) + "\n")
        if options.plot:
            plot(scaling, options.plot)
    except (MpibootError, OSError) as error:  # distributed raises OSError if a connection breaks
        print(f"mpiboot.examples.scaling: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    return 0


def _parse(parse: Callable[[str], Any], option: str, text: str | None) -> Any:
    try:
        return None if text is None else parse(text)
    except MalformedValueError as error:
        raise UsageError(f"{option}: {error.problem}", error.remedy) from error


if __name__ == "__main__":
    sys.exit(main())
