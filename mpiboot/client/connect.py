"""`mpiboot.connect`: from a job to a connected client."""

from __future__ import annotations

from pathlib import Path

from distributed import Client

from mpiboot.client import progress as display
from mpiboot.client.find import find_job
from mpiboot.client.job import Job
from mpiboot.client.progress import Progress
from mpiboot.client.scheduler_file import connect_scheduler_file
from mpiboot.client.settings import parse_argument, seconds_of
from mpiboot.client.watch import connect_job
from mpiboot.errors import UsageError
from mpiboot.kinds import COUNT, PATH


def connect(
    job: str | int | Job | None = None,
    *,
    scheduler_file: str | Path | None = None,
    n_workers: int | None = None,
    timeout: str | float = "10 min",
    queue_timeout: str | float | None = None,
    insecure: bool = False,
    progress: Progress | None = None,
) -> Client:
    """Wait for a job's cluster and connect to it.

    Parameters
    ----------
    job : str, int or Job, optional
        A job id, the name of a job, or a `Job`. Default: the only live job.
    scheduler_file : str or path, optional
        Instead of a job: Dask's scheduler file of a cluster that was started by hand.
    n_workers : int, optional
        How many workers to wait for. Default: all that the job will have, or the remaining ones of a cluster that has
        lost some; for a scheduler file: do not wait.
    timeout : str or float, default "10 min"
        How long to wait for the workers, from the start of the job. In seconds, or text such as '30 min'.
    queue_timeout : str or float, optional
        How long to wait for the start of the job, from now. In seconds, or text such as '30 min'. Default: as long as
        the batch system says that the job may start.
    insecure : bool, default False
        Accept a `tcp://` cluster, which anyone on its network can use.
    progress : callable, optional
        Called with a line of text after each change. Default: a display in a terminal and in a notebook.

    Returns
    -------
    distributed.Client
        A client that is connected to the cluster.

    Raises
    ------
    JobEndedError
        The job has ended or cannot start; the message says how, and shows the end of its log.
    DeadlineError
        A timeout has passed; the message says how far the job got. It is a TimeoutError, too.
    RendezvousError
        The endpoint or the scheduler file cannot be trusted, or the right scheduler does not answer there.
    BatchError
        There is no such job, or the batch system does not answer.
    UsageError
        An argument has a value of the wrong type.
    """
    # Check these before the query of the batch system, which can take long.
    timeout_s = seconds_of("timeout", timeout)
    queue_timeout_s = None if queue_timeout is None else seconds_of("queue_timeout", queue_timeout)
    n_workers = n_workers and parse_argument("n_workers", COUNT, n_workers)
    if job is not None and scheduler_file is not None:
        raise UsageError("both a job and a scheduler_file are given", "Give one of them")
    if scheduler_file is None:
        return connect_job(
            find_job(job),
            n_workers=n_workers,
            timeout=timeout_s,
            queue_timeout=queue_timeout_s,
            insecure=insecure,
            progress=progress,
        )
    path = Path(parse_argument("scheduler_file", PATH, scheduler_file))
    with display.choose_display(progress) as tell:
        return connect_scheduler_file(path, n_workers, timeout_s, insecure, tell)
