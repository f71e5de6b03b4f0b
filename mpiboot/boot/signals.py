"""What signals and the clock do to a boot. Standard library only."""

import signal
import time
from types import FrameType
from typing import NoReturn

# Enough for a command's last words, the scheduler's close, the ranks' end and the cleaning of all nodes.
CLOSE_BEFORE_END_S = 30.0
# A batch system may send the walltime's signal up to a minute early (Slurm: sbatch(1), --signal).
EARLY_S = 60.0
SOONEST_S = 0.1


class JobStop(BaseException):
    """Raised in the main thread by a signal: unwinds through whatever step is under way."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def catch_signals() -> None:
    """Let SIGTERM (the job is cancelled or stopped) and SIGINT raise JobStop, once."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    ignore_signals()
    raise JobStop("stopped")


def ignore_signals() -> None:
    """From here on the end is under way: a second signal must not interrupt it."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


class Walltime:
    """The clock of a job: `nears` when clients are to be told, JobStop when it is time to close.

    JobStop interrupts whatever step is under way, staging too. Both times are kept by our own timer, since the
    batch system's signal (Slurm's `--signal=B:USR1@120`) comes almost at once where the walltime is shorter than its
    lead, and not at all under other batch systems. The signal only starts another look at the end: an administrator may
    have shortened the job.

    Parameters
    ----------
    warn_before_s : float, seconds
        How long before the end `nears` becomes True.
    end_time : float, seconds since the epoch, or None
        The end as the batch system tells it.
    """

    def __init__(self, warn_before_s: float, end_time: float | None) -> None:
        self.warn_before_s = max(warn_before_s, CLOSE_BEFORE_END_S)
        self.nears = False
        signal.signal(signal.SIGUSR1, self._signalled)
        signal.signal(signal.SIGALRM, self._rang)
        self.set_end(end_time)

    def set_end(self, end_time: float | None) -> None:
        """What the batch system says now: jobs are lengthened and shortened."""
        self.end_time = end_time
        if end_time is None:
            return
        warn_in_s = self.left_s() - self.warn_before_s
        self.nears = warn_in_s <= SOONEST_S or (self.nears and warn_in_s <= EARLY_S)
        self._ring_in(self.left_s() - CLOSE_BEFORE_END_S if self.nears else warn_in_s)

    def left_s(self) -> float:
        """Until the batch system ends the job; where it never told its end, of the time that its signal announced."""
        return self.warn_before_s if self.end_time is None else self.end_time - time.time()

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        if not self.nears:
            self.nears = True
            self._ring_in(self.left_s() - CLOSE_BEFORE_END_S)

    def _rang(self, number: int, frame: FrameType | None) -> None:
        if self.nears:
            ignore_signals()
            raise JobStop("walltime")
        self._signalled(number, frame)

    @staticmethod
    def _ring_in(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, SOONEST_S))
