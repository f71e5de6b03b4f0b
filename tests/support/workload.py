"""A user's computation with known results, round after round, each of them timed; for tests that disturb its job."""

from __future__ import annotations

import json
import time
from typing import Any

from faults import BootedJob
from waiting import wait_until

# A round: one task on every worker, and one that needs all of their results, so that workers talk to each other.
PROGRAM = """
import json, os, sys, time
import mpiboot
from concurrent.futures import CancelledError
orders = json.loads(sys.argv[1])
def connect():
    return mpiboot.connect(orders["job_id"], n_workers=orders["n_workers"], timeout="2 min")
def square(i):
    for _ in range(orders["lines"]):
        print(f"{orders['mark']} {i} " + "x" * orders["line_bytes"], flush=True)
    return i * i, bytes(10_000)
def total(parts):
    return sum(square for square, _ in parts)
def one_round(i):
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    numbers = range(i, i + len(workers))
    squares = [
        client.submit(square, n, pure=False, workers=[worker], allow_other_workers=True)
        for n, worker in zip(numbers, workers)
    ]
    right = [(n * n, bytes(10_000)) for n in numbers], sum(n * n for n in numbers)
    return len(workers), right == tuple(client.gather([squares, client.submit(total, squares, pure=False)]))
client = connect()
rounds = wrong = repeated = 0
worst_s, slow, begin = 0.0, [], time.time()
while not os.path.exists(orders["end"]):
    started = time.monotonic()
    try:
        n_workers, right = one_round(rounds)
    except (CancelledError, OSError, RuntimeError, TimeoutError) as error:
        if not orders["tolerant"]:
            raise
        print(f"once more: {error!r}", flush=True)
        repeated += 1
        client.close(timeout=1)
        client = connect()
        continue
    took_s = time.monotonic() - started
    rounds, wrong, worst_s = rounds + 1, wrong + (not right), max(worst_s, took_s)
    if took_s > 3:
        slow.append([round(time.time() - took_s - begin, 1), round(took_s, 1)])
    print(json.dumps({
        "rounds": rounds, "wrong": wrong, "repeated": repeated, "workers": n_workers, "time": time.time(),
        "worst_s": round(worst_s, 2), "slow": slow[-20:],
    }), flush=True)
    time.sleep(orders["pause_s"])
print("finished", flush=True)
"""


class Workload:
    """The computation of one job. It goes on until `ends_well` is called.

    Parameters
    ----------
    job
        A job that is ready.
    n_workers
        With so many workers it begins.
    lines, line_bytes
        What each task prints: so many lines, so long.
    node
        The node on which its client runs; None: the login node.
    tolerant
        Whether a lost connection to the scheduler only repeats a round.
    """

    def __init__(
        self,
        job: BootedJob,
        n_workers: int,
        *,
        lines: int = 0,
        line_bytes: int = 100,
        pause_s: float = 0.25,
        node: int | None = None,
        tolerant: bool = False,
    ) -> None:
        user = job.user
        self.mark = f"printed-in-job-{job.job_id}"
        self.output = user.home / f"workload-{job.job_id}.out"
        self._end = user.home / f"workload-{job.job_id}.end"
        orders = {
            "job_id": job.job_id,
            "n_workers": n_workers,
            "lines": lines,
            "line_bytes": line_bytes,
            "pause_s": pause_s,
            "tolerant": tolerant,
            "mark": self.mark,
            "end": self._end.name,
        }
        program = user.writes("workload.py", PROGRAM)
        start = f'touch {self.output.name}; setsid python -u {program} "$0" > {self.output.name} 2>&1 &'
        user.types("bash", "-c", start, json.dumps(orders), node=node)
        wait_until(lambda: self.last()["rounds"] > 0, "first round", 90, self.said)

    def said(self) -> str:
        return self.output.read_text()[-3000:]

    def last(self) -> dict[str, Any]:
        """Return the figures of all rounds so far."""
        lines = [line for line in self.output.read_text().splitlines() if line.startswith("{")]
        figures: dict[str, Any] = json.loads(lines[-1]) if lines else {"rounds": 0}
        return figures

    def goes_on(self, rounds: int = 5, timeout_s: float = 120) -> None:
        """Wait for `rounds` more rounds; fail at once if a round fails."""
        target = self.last()["rounds"] + rounds

        def done() -> bool:
            assert "Traceback" not in self.output.read_text(), self.said()
            return bool(self.last()["rounds"] >= target)

        wait_until(done, "more rounds", timeout_s, self.said)

    def goes_on_for(self, seconds: float, timeout_s: float = 60) -> None:
        """Let it compute for `seconds`; fail if five rounds take longer than `timeout_s`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.goes_on(timeout_s=timeout_s)

    def has_workers(self, n_workers: int, timeout_s: float = 60) -> None:
        wait_until(lambda: self.last()["workers"] == n_workers, f"{n_workers} workers", timeout_s, self.said)

    def ends_well(self, timeout_s: float = 60) -> dict[str, Any]:
        """End the computation and return its figures; fail unless all results were right."""
        self._end.touch()
        wait_until(lambda: "finished" in self.output.read_text(), "end of the workload", timeout_s, self.said)
        assert self.last()["wrong"] == 0, self.said()
        return self.last()
