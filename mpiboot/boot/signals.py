"""Signals and the walltime clock of a boot: each ends the job by raising `JobStop`.

Only boot imports this module; it imports no other of mpiboot.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

# Enough time to end the command, close the scheduler, end the ranks and clean all nodes.
CLOSE_BEFORE_END_S = 30.0
# A batch system may send the walltime's signal up to a minute early (sources: batch/<system>/allocation.py).
EARLY_S = 60.0
SOONEST_S = 0.1
# Clients are told at least this long before boot closes.
LEAST_NOTICE_S = 15.0
# Asking for the end takes at most so much of the time that is left for closing.
ASK_TIMEOUT_S = 5.0


class JobStop(BaseException):
    """A signal or the clock ends the job: raised in the main thread, where it interrupts the current step.

    Attributes
    ----------
    reason : str
        `stopped` or `walltime`.
    """

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
    """Ignore signals and stop the clock, so that nothing interrupts the closing of the job."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


class Walltime:
    """The clock of a job: sets `end_is_near` when boot must warn the clients, raises JobStop when boot must close.

    JobStop interrupts any step, staging too. A timer of this process keeps both times: the batch system's signal
    (SIGUSR1, which the job script requests) comes almost at once if the walltime is shorter than the signal's lead time,
    and some batch systems send none. The signal only makes boot ask for the end time again: an administrator may have
    shortened the job. Before it raises JobStop, the clock asks too: the job may have been lengthened, or suspended.

    Parameters
    ----------
    warn_before_s : float, seconds
        How long before the end `end_is_near` becomes True; at least `LEAST_NOTICE_S` before boot closes.
    end_time : float, seconds since the epoch, or None
        The end as reported by the batch system; None: it reports none.
    ask_end : callable, optional
        Returns the end as the batch system reports it now.
    """

    def __init__(
        self,
        warn_before_s: float,
        end_time: float | None,
        ask_end: Callable[[], float | None] | None = None,
    ) -> None:
        self.warn_before_s = max(warn_before_s, CLOSE_BEFORE_END_S + LEAST_NOTICE_S)
        self.end_is_near = False
        self._ask_end = ask_end or (lambda: self.end_time)
        signal.signal(signal.SIGUSR1, self._on_warning)
        signal.signal(signal.SIGALRM, self._on_alarm)
        self.set_end(end_time)

    def set_end(self, end_time: float | None) -> None:
        """Set a new end time: administrators can lengthen and shorten a running job.

        Parameters
        ----------
        end_time : float, seconds since the epoch, or None
            The end as reported by the batch system; None: it reports none.
        """
        self.end_time = end_time
        if end_time is None:
            self.end_is_near = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            return
        warn_in_s = self.remaining_s() - self.warn_before_s
        self.end_is_near = warn_in_s <= SOONEST_S or (self.end_is_near and warn_in_s <= EARLY_S)
        self._set_alarm(self.remaining_s() - CLOSE_BEFORE_END_S if self.end_is_near else warn_in_s)

    def remaining_s(self) -> float:
        """Seconds until the batch system ends the job; if it reported no end, the lead time of its signal."""
        return self.warn_before_s if self.end_time is None else self.end_time - time.time()

    def _on_warning(self, _number: int, _frame: FrameType | None) -> None:
        if not self.end_is_near:
            self.end_is_near = True
            self._set_alarm(self.remaining_s() - CLOSE_BEFORE_END_S)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if not self.end_is_near:
            return self._on_warning(number, frame)
        self.set_end(self._ask_end())
        if self.end_time is not None and self.remaining_s() <= CLOSE_BEFORE_END_S + SOONEST_S:
            ignore_signals()
            raise JobStop("walltime")

    @staticmethod
    def _set_alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, SOONEST_S))
