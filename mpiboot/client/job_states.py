"""Cache of job states: one query of the batch system serves all threads of this process that wait for jobs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

from mpiboot.batch.job_state import JobState
from mpiboot.batch.submission import BatchSystem


class JobStateCache:
    """The last states that a batch system reported, and the jobs that threads wait for."""

    def __init__(self, batch: BatchSystem) -> None:
        self.batch = batch
        self._lock = threading.Lock()
        self._watched: Counter[str] = Counter()
        self._states: dict[str, JobState] = {}
        self._asked_at = 0.0

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[None]:
        """Within this context, a query about any job includes this one, too."""
        with self._lock:
            self._watched[job_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[job_id] -= 1
                self._watched += Counter()  # drops jobs with a count of zero

    def state(self, job_id: str, max_age_s: float = 0.0) -> JobState:
        """Return a job's state, at most `max_age_s` seconds old.

        Raises
        ------
        BatchError
            The batch system does not answer.
        """
        now = time.monotonic()
        with self._lock:  # another thread may have queried while this one waited for the lock
            if job_id not in self._states or self._asked_at < now - max_age_s:
                asked_at = time.monotonic()
                self._states = self.batch.states(sorted({job_id, *self._watched}))
                self._asked_at = asked_at
            return self._states[job_id]


_caches: dict[tuple[str, str], JobStateCache] = {}


def job_state_cache(batch: BatchSystem) -> JobStateCache:
    """Return this process's cache for a batch system."""
    return _caches.setdefault((type(batch).__name__, batch.name), JobStateCache(batch))
