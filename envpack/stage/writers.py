"""Several processes that write the frames of one archive: threads would wait for Python's global lock.

The parent forks children, and works as they do. Each process takes the number of the next frame from one pipe, filled
before the first fork, so no process waits for another. A child reports progress and its error through a pipe of its
own. A process that fails empties the pipe of numbers, which ends the others. The extractor and the stager import this.
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

    # Writes one frame, by its number, and returns its size in bytes.
    Work = Callable[[int], int]

_NUMBER = struct.Struct("<I")
# A pipe holds at least a page before its writer has to wait (pipe(7): for a user of many pipes; else 16 pages).
_MOST_NUMBERS = 4096 // _NUMBER.size
# Signals that end a parent, which may have handlers of its own for them.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def may_fork() -> bool:
    """Tell whether this process may fork.

    It may not if it has another thread, which could hold a lock; if it has loaded MPI; or if SIGCHLD is ignored, for then
    wait(2) cannot report how a child ended.
    """
    alone = threading.active_count() == 1 and "mpi4py.MPI" not in sys.modules
    return alone and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN


def run_writers(
    frames: int, jobs: int, begin: Callable[[], Work], progress: Callable[[int], None] | None = None
) -> None:
    """Write all frames, in several processes at once.

    Parameters
    ----------
    frames : int
        Number of frames.
    jobs : int
        Number of processes, this one included.
    begin : callable
        Called once in each process. It returns a function that writes one frame, by its number, and returns the frame's
        size in bytes.
    progress : callable, optional
        Called in this process with the bytes written since the last call.

    Raises
    ------
    EnvpackError, OSError
        The first error in any of the processes; all have ended then.
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
    """The other processes, and their reports: one line for each frame with its bytes, or one with an error."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._pids: list[int] = []
        # The reading end of each child's pipe -> the beginning of a line whose end has not come yet.
        self._reports: dict[int, bytes] = {}
        self._error: Exception | None = None

    def fork(self, numbers: int, frames: int, step: int, begin: Callable[[], Work]) -> None:
        """Start one child; do without if no more processes are allowed."""
        parent = os.getpid()
        # A signal handler that raises must find the child in the list, and none of the parent's may run in the child.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            reader, writer = os.pipe()
            try:
                pid = os.fork()
            except OSError:
                # No more processes are allowed: the others write all frames.
                os.close(reader)
                os.close(writer)
                return
            if pid == 0:
                self._be_child(parent, unblocked, numbers, writer, frames, step, begin)
            self._pids.append(pid)
            self._reports[reader] = b""
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
        """Write frames, then end without the parent's clean-up."""
        status = 1
        try:
            # The parent's handlers are for its own work. A signal that it ignores (nohup), its children ignore too.
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
            os.write(writer, _encode(exc))
        finally:
            os._exit(status)

    def count(self, done: int) -> None:
        """Report the bytes that this process has written, and those that the others have reported so far."""
        if self._progress is not None:
            self._progress(done)
            self._read_reports(0)

    def join(self) -> None:
        """Wait for all children; raise the first error of any of them."""
        while self._reports:
            self._read_reports(None)
        while self._pids:
            pid = self._pids.pop()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status and self._error is None:
                how = f"signal {-status}, perhaps out of memory" if status < 0 else f"status {status}"
                self._error = errors.StageFailedError(
                    f"a process that wrote the copy on {host_name()} ended without an error ({how})",
                    "Ask for more memory per node, or stage with fewer --jobs",
                )
        if self._error is not None:
            raise self._error

    def _read_reports(self, timeout_s: float | None) -> None:
        for reader in select.select(list(self._reports), [], [], timeout_s)[0]:
            data = os.read(reader, 1 << 16)
            *lines, self._reports[reader] = (self._reports[reader] + data).split(b"\n")
            for line in lines:
                if line.isdigit():
                    assert self._progress is not None
                    self._progress(int(line))
                else:
                    self._error = self._error or _decode(line)
            if not data:
                os.close(reader)
                del self._reports[reader]

    def end(self) -> None:
        """End the children that still run, after an error or an interrupt."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)
        for reader in self._reports:
            os.close(reader)
        self._pids.clear()
        self._reports.clear()


def _encode(exc: BaseException) -> bytes:
    """Return an error as a line that `_decode` reads."""
    if isinstance(exc, OSError):
        path = exc.filename if isinstance(exc.filename, str | bytes) else ""
        fields: list[object] = ["OSError", exc.errno, exc.strerror, os.fsdecode(path)]
    elif isinstance(exc, errors.EnvpackError):
        fields = [type(exc).__name__, *exc.args]
    else:
        problem = f"a process that wrote the copy on {host_name()} failed: {exc!r}"
        fields = ["StageFailedError", problem, "Report this as a bug of envpack"]
    return json.dumps(fields).encode() + b"\n"


def _decode(line: bytes) -> Exception:
    name, *arguments = json.loads(line)
    return OSError(*arguments) if name == "OSError" else getattr(errors, name)(*arguments)
