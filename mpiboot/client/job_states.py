"""One answer of the batch system serves all that wait in this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

from mpiboot.batch import BatchSystem, JobState


class Answers:
    """The last answer of one batch system, and who waits for the next one."""

    def __init__(self, batch: BatchSystem) -> None:
        self.batch = batch
        self._lock = threading.Lock()
        self._watched: Counter[str] = Counter()
        self._states: dict[str, JobState] = {}
        self._asked = 0.0

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[None]:
        """Within, a question about another job asks for this one too."""
        with self._lock:
            self._watched[job_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[job_id] -= 1
                self._watched += Counter()  # drops what nobody waits for any more

    def state(self, job_id: str, max_age_s: float = 0.0) -> JobState:
        """A job's state, at most `max_age_s` old."""
        now = time.monotonic()
        with self._lock:  # who waited for it here finds the answer that came meanwhile
            if job_id not in self._states or self._asked < now - max_age_s:
                asked = time.monotonic()
                self._states = self.batch.states(sorted({job_id, *self._watched}))
                self._asked = asked
            return self._states[job_id]


_answers: dict[str, Answers] = {}


def answers_of(batch: BatchSystem) -> Answers:
    """This process's Answers of a batch system."""
    return _answers.setdefault(batch.name, Answers(batch))
