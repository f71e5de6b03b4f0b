"""Several processes that decode and write frames of one file: Python's threads would wait for one another.

The parent forks children that share its plan, and works as they do. Each takes the number of the next frame from a pipe
that was filled before, so none waits for another; what a child has to say goes to the parent through a pipe of its own.
Whoever fails empties the pipe of numbers: that ends the others.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from envpack import errors
from envpack.common.places import host_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    # Does one frame, by its number, and returns its size in bytes.
    Work = Callable[[int], int]

_NUMBER = struct.Struct("<I")
# A pipe takes a page before its writer has to wait; 16 of them, but for a user who has a thousand others (pipe(7)).
_MOST_NUMBERS = 4096 // _NUMBER.size
# What ends a parent, which may have handlers of its own.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def may_fork() -> bool:
    """Tell whether this process may fork.

    It has no other thread, which could hold a lock, has not loaded MPI, and is told how its children end: not so where
    who started it ignores SIGCHLD (wait(2)).
    """
    alone = threading.active_count() == 1 and "mpi4py.MPI" not in sys.modules
    return alone and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN


def run(
    frames: int, jobs: int, begin: Callable[[], Work], progress: Callable[[int], None] | None = None
) -> None:
    """Do all frames, in `jobs` processes at once.

    Parameters
    ----------
    frames : int
        How many there are.
    jobs : int
        Processes, this one included.
    begin : callable
        Called once in each process; what it returns does one frame, by its number, and returns its size in bytes.
    progress : callable, optional
        Called in this process with the bytes done since the last call.

    Raises
    ------
    EnvpackError, OSError
        What went wrong in any of them; all have ended then.
    """
    step = max(1, -(-frames // _MOST_NUMBERS))
    numbers, fill = os.pipe()
    os.write(fill, b"".join(_NUMBER.pack(frame) for frame in range(0, frames, step)))
    os.close(fill)
    children = _Children(progress)
    try:
        for _ in range(min(jobs, frames) - 1):
            children.fork(numbers, frames, step, begin)
        try:
            for done in _each(numbers, frames, step, begin()):
                children.count(done)
        except BaseException:
            _drain(numbers)
            raise
        children.join()
    finally:
        children.end()
        os.close(numbers)


def _each(numbers: int, frames: int, step: int, work: Work) -> Iterator[int]:
    while number := os.read(numbers, _NUMBER.size):
        (first,) = _NUMBER.unpack(number)
        for frame in range(first, min(first + step, frames)):
            yield work(frame)


def _drain(numbers: int) -> None:
    while os.read(numbers, 1 << 16):
        pass


class _Children:
    """The other processes, and what they say: a line per frame with its bytes, or one with what went wrong."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._pids: list[int] = []
        self._heard: dict[int, bytes] = {}
        self._error: Exception | None = None

    def fork(self, numbers: int, frames: int, step: int, begin: Callable[[], Work]) -> None:
        parent = os.getpid()
        # A handler that raises must find the child in the list; and in the child, none of the parent's may run.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            reader, writer = os.pipe()
            try:
                pid = os.fork()
            except OSError:
                # No more processes allowed: those that there are do it.
                os.close(reader)
                os.close(writer)
                return
            if pid == 0:
                self._be_child(parent, unblocked, numbers, writer, frames, step, begin)
            self._pids.append(pid)
            self._heard[reader] = b""
            os.close(writer)
            os.set_blocking(reader, False)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def _be_child(
        self,
        parent: int,
        unblocked: Iterable[int],
        numbers: int,
        writer: int,
        frames: int,
        step: int,
        begin: Callable[[], Work],
    ) -> NoReturn:
        """Work, and end without any of the parent's clean-up."""
        status = 1
        try:
            # The parent's handlers are for the parent's work; what it ignores (nohup), its children do too.
            for number in _ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            for done in _each(numbers, frames, step, begin()):
                if self._progress is not None:
                    os.write(writer, b"%d\n" % done)
                if os.getppid() != parent:
                    break
            else:
                status = 0
        except BaseException as exc:
            _drain(numbers)
            os.write(writer, _told(exc))
        finally:
            os._exit(status)

    def count(self, done: int) -> None:
        """Count what this process has done, and what the others have said of theirs so far."""
        if self._progress is not None:
            self._progress(done)
            self._hear(0)

    def join(self) -> None:
        """Wait for all; raise what went wrong in one of them."""
        while self._heard:
            self._hear(None)
        while self._pids:
            pid = self._pids.pop()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status and self._error is None:
                how = f"signal {-status}, for want of memory perhaps" if status < 0 else f"status {status}"
                self._error = errors.StageFailedError(f"a writer on {host_name()} ended by itself ({how})")
        if self._error is not None:
            raise self._error

    def _hear(self, timeout_s: float | None) -> None:
        for reader in select.select(list(self._heard), [], [], timeout_s)[0]:
            data = os.read(reader, 1 << 16)
            *lines, self._heard[reader] = (self._heard[reader] + data).split(b"\n")
            for line in lines:
                if line.isdigit():
                    assert self._progress is not None
                    self._progress(int(line))
                else:
                    self._error = self._error or _error(line)
            if not data:
                os.close(reader)
                del self._heard[reader]

    def end(self) -> None:
        """End those that are left, if any: after an error, or an interrupt."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)
        for reader in self._heard:
            os.close(reader)
        self._pids.clear()
        self._heard.clear()


def _told(exc: BaseException) -> bytes:
    if isinstance(exc, OSError):
        told: list[object] = ["OSError", exc.errno, exc.strerror]
    elif isinstance(exc, errors.EnvpackError):
        told = [type(exc).__name__, str(exc)]
    else:
        told = ["StageFailedError", f"a writer on {host_name()} failed: {exc!r}"]
    return json.dumps(told).encode() + b"\n"


def _error(line: bytes) -> Exception:
    name, *arguments = json.loads(line)
    return OSError(*arguments) if name == "OSError" else getattr(errors, name)(*arguments)
