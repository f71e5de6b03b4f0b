"""`MPICluster`: one job as a `distributed.deploy.Cluster`."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed.core import Status

from mpiboot.client import progress as display
from mpiboot.client.job import Job
from mpiboot.client.options import JobOptions, documented
from mpiboot.client.progress import Progress
from mpiboot.client.settings import load_config, seconds_of
from mpiboot.client.submit import submit_config
from mpiboot.client.watch import wait_for_endpoint
from mpiboot.distributed_internals import RemoteCluster
from mpiboot.errors import MpibootError
from mpiboot.protocol.endpoint import Endpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack


@documented
class MPICluster(RemoteCluster):
    """One batch job as a Dask cluster: submitted when made, stopped when closed.

    Parameters
    ----------
    timeout : str or float, default "10 min"
        How long to wait for the workers, from the start of the job. In seconds, or text such as '30 min'.
    queue_timeout : str or float, optional
        How long to wait for the start of the job, from now. In seconds, or text such as '30 min'. Default: as long as
        the batch system says that the job may start.
    asynchronous : bool, default False
        Use the cluster with `async with`.
    loop : tornado.ioloop.IOLoop, optional
        As for every Dask cluster.
    name : str, optional
        As for every Dask cluster. Default: the job's id.
    quiet : bool, default False
        Show no progress.
    **options
    command : sequence of str, optional
        Run this on the first node when the workers have started, and end the job with it.

    Raises
    ------
    MpibootError
        As raised by `submit` and `connect`; the job is then stopped. After a Ctrl-C, the job continues.
    """

    def __init__(
        self,
        *,
        timeout: str | float = "10 min",
        queue_timeout: str | float | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        name: str | None = None,
        quiet: bool = False,
        **options: Unpack[JobOptions],
    ) -> None:
        self._config = load_config(options)
        self._timeout_s = seconds_of("timeout", timeout)
        self._queue_timeout_s = None if queue_timeout is None else seconds_of("queue_timeout", queue_timeout)
        self.job: Job | None = None
        self.security: Any = None
        self._quiet = quiet
        super().__init__(asynchronous=asynchronous, loop=loop, name=name)
        if not self.asynchronous:
            # Wait in this thread, so that a Ctrl-C ends the wait.
            endpoint = self._boot()
            self.connect_now(endpoint.address, self.security)

    def _boot(self) -> Endpoint:
        """Submit the job and wait for its endpoint."""
        with display.choose_display((lambda line: None) if self._quiet else None) as tell:
            logged = self._logging(tell)
            self.job = submit_config(self._config, say=logged)
            self.name = f"job {self.job.job_id}"
            # A cluster that is not closed, or whose kernel ends, must not hold nodes.
            self._stop = weakref.finalize(self, _stop_quietly, self.job)
            try:
                endpoint, self.security = wait_for_endpoint(
                    self.job,
                    timeout_s=self._timeout_s,
                    queue_timeout_s=self._queue_timeout_s,
                    insecure=self._config.insecure,
                    tell=logged,
                )
            except KeyboardInterrupt:
                self._stop.detach()
                self.status = Status.closed
                raise KeyboardInterrupt(self.job.how_to_come_back(self._config.insecure)) from None
            except BaseException:
                self.status = Status.closed
                self._stop()
                raise
            logged(f"job {self.job.job_id} is ready: {endpoint.n_workers} workers")
        return endpoint

    def _logging(self, tell: Progress) -> Callable[[str], None]:
        """Return a function that shows a line, and adds it to the cluster's log unless the line repeats."""

        def log(line: str) -> None:
            self.log(line)
            tell(line)

        return log

    def __await__(self) -> Any:
        async def started() -> MPICluster:
            if self.status == Status.created:
                endpoint = await asyncio.to_thread(self._boot)
                await self.connect(endpoint.address, self.security)
            return self

        return started().__await__()

    async def on_close(self) -> None:
        """Stop the job."""
        if self.job:
            self._stop.detach()
            await asyncio.to_thread(self.job.stop)

    def scale(self, n: int) -> None:
        """Raise NotImplementedError: the size of a batch job is fixed."""
        raise NotImplementedError(
            f"one job's size is fixed: {self!r} keeps its workers. Make another MPICluster, of {n} workers"
        )

    def adapt(self, *args: Any, **kwargs: Any) -> Any:
        """Raise NotImplementedError: the size of a batch job is fixed."""
        raise NotImplementedError("one job's size is fixed. Submit a larger job, or several")

    async def more_logs(self) -> dict[str, str]:
        """Return the job's log."""
        return {"Job": await asyncio.to_thread(self.job.logs)} if self.job else {}


def _stop_quietly(job: Job) -> None:
    """Ask the job to end, without waiting and without errors: the interpreter may be shutting down."""
    with contextlib.suppress(MpibootError, OSError):
        job.batch.stop(job.job_id)
