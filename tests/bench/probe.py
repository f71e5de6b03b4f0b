"""Start one contender's job, from the login node, and time it: run by the environment's Python, ORDERS in JSON.

Prints a line of JSON: `submitted` (the moment of sbatch) and `workers`, `result`, in seconds since the epoch; all of the
cluster's hosts share one clock. Everything is imported before the clock starts.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client

POLL_S = 0.05
TIMEOUT_S = 300.0
EXIT_S = 10.0


def main() -> None:
    orders = json.loads(sys.argv[1])
    found = {
        "script": script,
        "runner": runner,
        "jobqueue": jobqueue,
        "mpiboot": mpiboot,
    }[orders["kind"]](orders)
    print(json.dumps(found), flush=True)
    faulthandler.dump_traceback_later(
        EXIT_S, exit=True
    )  # what a client left behind must not hold up the bench


def until(probe: Any, what: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {TIMEOUT_S:g} s")
        time.sleep(POLL_S)
    return found


def submit(orders: dict[str, Any]) -> tuple[float, Any]:
    """Run sbatch, or the script itself where there is none; the job's id, or its process."""
    submitted = time.time()
    if orders["sbatch"]:
        output = subprocess.check_output([*orders["sbatch"], orders["script"]], text=True)
        return submitted, output.strip()
    with Path(orders["log"]).open("wb") as log:
        return submitted, subprocess.Popen(
            ["bash", orders["script"]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def gone(job: Any) -> bool:
    if isinstance(job, str):
        asked = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}"]
        states = subprocess.run(asked, capture_output=True, text=True).stdout.split()
        return not set(states) - {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
    return job.poll() is not None


def finish(job: Any) -> None:
    """Wait for the job's end; force it where closing the cluster does not end it."""
    with contextlib.suppress(TimeoutError):
        deadline = time.monotonic() + 20
        until(lambda: gone(job) or time.monotonic() > deadline, "the job's end")
    if not gone(job):
        if isinstance(job, str):
            subprocess.run(["scancel", job], check=False)
        else:
            os.killpg(job.pid, signal.SIGTERM)
    until(lambda: gone(job), "the job's end after it was cancelled")


def first_result(client: Client) -> float:
    assert client.submit(sum, [20, 22]).result(timeout=60) == 42
    return time.time()


def script(orders: dict[str, Any]) -> dict[str, Any]:
    """A job that writes Dask's scheduler file, which is polled for, as its users do."""
    file = Path(orders["scheduler_file"])
    file.unlink(missing_ok=True)
    submitted, job = submit(orders)

    def address() -> Any:
        if gone_early := (not isinstance(job, str) and gone(job)):
            raise RuntimeError(f"the job has ended: {gone_early}")
        with contextlib.suppress(OSError, ValueError):
            return json.loads(file.read_text())["address"]
        return None

    found = until(address, str(file))
    seen = time.time()
    with Client(found, timeout=60) as client:
        client.wait_for_workers(orders["n_workers"], timeout=TIMEOUT_S)
        workers = time.time()
        result = first_result(client)
        with contextlib.suppress(Exception):
            client.shutdown()
    finish(job)
    return {"submitted": submitted, "scheduler": seen, "workers": workers, "result": result}


def runner(orders: dict[str, Any]) -> dict[str, Any]:
    """dask-jobqueue's runner: its client is one of the job's own ranks, and writes down what it saw."""
    file = Path(orders["scheduler_file"])
    file.unlink(missing_ok=True)
    submitted, job = submit(orders)
    told = until(lambda: file.exists() and file.read_text().endswith("}\n") and file.read_text(), str(file))
    finish(job)
    return {"submitted": submitted, **json.loads(told)}


def jobqueue(orders: dict[str, Any]) -> dict[str, Any]:
    """dask-jobqueue's cluster: the scheduler in this process, a job per node."""
    import warnings

    from dask_jobqueue import SLURMCluster

    warnings.simplefilter("ignore")
    submitted = time.time()
    with SLURMCluster(**orders["options"]) as cluster:
        cluster.scale(jobs=orders["jobs"])
        with Client(cluster) as client:
            client.wait_for_workers(orders["n_workers"], timeout=TIMEOUT_S)
            workers = time.time()
            result = first_result(client)
    until(lambda: not subprocess.check_output(["squeue", "--noheader", "--me"]).strip(), "the jobs' end")
    return {"submitted": submitted, "workers": workers, "result": result}


def mpiboot(orders: dict[str, Any]) -> dict[str, Any]:
    """mpiboot, as in a notebook."""
    import mpiboot as package
    import mpiboot.client.connect  # the notebook has imported distributed, too
    from mpiboot.batch import registry

    moments = []

    def timed(submit: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            moments.append(time.time())
            return submit(*arguments, **options)

        return call

    for batch in registry.available().values():
        batch.submit = timed(batch.submit)  # type: ignore[method-assign]
    asked = time.time()
    job = package.submit(**orders["options"])
    client = package.connect(job, timeout=TIMEOUT_S, progress=lambda text: None)
    workers = time.time()
    result = first_result(client)
    client.shutdown()
    with contextlib.suppress(Exception):
        client.close()
    until(lambda: not job.ask().live, "the job's end")
    if job.batch.name == "slurm":
        finish(job.job_id)
    events = job.directory.read_events()
    return {
        "submitted": moments[0],
        "asked": asked,
        "workers": workers,
        "result": result,
        "events": [event for event in events if event["event"] in ("phase", "staged", "worker")],
    }


if __name__ == "__main__":
    main()
