"""A node's copy of the archive while it arrives: checked frame by frame, staged from, and passed on to other agents.

One thread fills it (`agent.tree`), so that neither decryption nor a slow disk holds up the agent; the event loop serves
others from it. The copy is a file without a name in the job's folder, in the form of `envpack.stage.arrival`. It goes
with the agent, however that ends. Only the agent imports this module.
"""

import asyncio
import contextlib
import itertools
import json
import os
import queue
from bisect import bisect_right
from pathlib import Path

from envpack.archive.index import frame_check
from envpack.common.places import STAGE_ROOT_VARIABLE
from envpack.stage import arrival
from mpiboot.agent.threads import in_thread, in_time
from mpiboot.protocol.channel import ArchivePart, ArchiveRequest, Connection

# The most that one message carries, usually some frames. With 4 MiB, a sender takes a fifth more CPU time.
PART_BYTES = 1 << 20
# How often an agent that asks hears that there is nothing new, and how long it may take to accept what there is.
NOTHING_NEW_S = 2.0
SEND_TIMEOUT_S = 300.0
# Less than SEND_TIMEOUT_S: the stager's start, from a slow file system.
TABLE_TIMEOUT_S = 240.0
DISK_TIMEOUT_S = 600.0
STAGER_FAILED = "the process that stages the environment has failed"


class DamagedError(OSError):
    """What came is not the archive: the source is to be passed by."""


class CopyError(Exception):
    """This node cannot keep a copy: no source can help."""


class ArchiveCopy:
    """This node's copy of the archive.

    Parameters
    ----------
    folder : path
        The job's folder on the node.
    number : int
        Of the `StageOrder`.

    Attributes
    ----------
    number : int
        The parameter.
    descriptors : tuple of int
        The file, and the pipe whose end shows that nothing more comes: for the stager.
    size : int
        How many bytes have arrived and were checked.
    frames_start : int
        Where the first frame begins; 0 until the index has arrived.
    is_whole : bool
        Whether all has arrived.
    failure : str or None
        Why no more comes.
    passed_by : list of str
        The sources that were passed by, each with the reason.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._file = nameless_file(folder)
        pipe, end = os.pipe()
        self._ends = [end]  # closed once, by whoever comes first
        self.descriptors = (self._file, pipe)
        self.size = 0
        self.frames_start = 0
        self.is_whole = False
        self.failure: str | None = None
        self.passed_by: list[str] = []
        self._unchecked = bytearray()
        self._table: queue.SimpleQueue[tuple[list[int], list[int]] | None] = queue.SimpleQueue()
        # Where in the file each frame begins, and where the last one ends; and the frames' checksums.
        self._borders: list[int] = []
        self._checks: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def learn(self, line: bytes) -> bool:
        """Take the sizes and checksums of all frames from the stager's first line; False if it says something else."""
        with contextlib.suppress(ValueError):
            if table := json.loads(line).get("frames"):
                self._table.put((table["sizes"], table["checks"]))
                return True
        self._table.put(None)
        return False

    def explain(self, error: str) -> str:
        """Return why the stage has failed: the stager's own error, unless the archive did not arrive."""
        why = error if self.failure in (None, STAGER_FAILED) else self.failure
        return f"{why} (passed by: {'; '.join(self.passed_by)})" if self.passed_by else str(why)

    def forget_unchecked(self) -> None:
        """Begin again after the last byte that was checked."""
        self._unchecked.clear()

    def take(self, data: bytes | memoryview) -> None:
        """Check what comes next, and append it.

        Raises
        ------
        DamagedError
            It differs from its checksum.
        CopyError
            It cannot be written, or nobody here can say what it should be.
        """
        if self._unchecked or not self.frames_start:
            self._unchecked += data
            if len(self._unchecked) < self._needed():
                return
            data = bytes(self._unchecked)
            self._unchecked.clear()
        # Most parts begin and end where frames do, and are not copied.
        view = memoryview(data)
        if not self.frames_start:
            if not arrival.is_intact(view):
                raise DamagedError("the index differs from its checksum")
            end = arrival.HEAD.size + arrival.index_size(view)
            self._append(view[:end])
            self.frames_start = end
            view = view[end:]
        self._learn_borders()
        end = self._frames_end(view)
        self._append(view[:end])
        self._unchecked += view[end:]
        self.is_whole = self.size == self._borders[-1]

    def _needed(self) -> int:
        """Return how many unchecked bytes are enough to go on: the index, or the next frame."""
        if self._borders:
            frame = bisect_right(self._borders, self.size)
            return self._borders[min(frame, len(self._checks))] - self.size
        if len(self._unchecked) < arrival.HEAD.size:
            return arrival.HEAD.size
        try:
            return arrival.HEAD.size + arrival.index_size(self._unchecked)
        except ValueError as error:
            raise DamagedError(str(error)) from error

    def _learn_borders(self) -> None:
        """Wait until the stager has told the frames' sizes and checksums."""
        if not self._borders:
            try:
                table = self._table.get(timeout=TABLE_TIMEOUT_S)
            except queue.Empty:
                raise CopyError("the process that stages the environment does not read the index") from None
            if not table:
                raise CopyError(STAGER_FAILED)
            sizes, self._checks = table
            self._borders = list(itertools.accumulate(sizes, initial=self.frames_start))

    def _frames_end(self, view: memoryview) -> int:
        """Check the whole frames in what comes next; return where the last of them ends."""
        frame = bisect_right(self._borders, self.size) - 1
        end = 0
        while frame < len(self._checks):
            size = self._borders[frame + 1] - self._borders[frame]
            if end + size > len(view):
                break
            if frame_check(view[end : end + size]) != self._checks[frame]:
                raise DamagedError(f"frame {frame} of {len(self._checks)} differs from its checksum")
            end += size
            frame += 1
        return end

    def _append(self, data: memoryview) -> None:
        """Write what was checked."""
        if not data:
            return
        if self.failure:
            raise CopyError(self.failure)
        try:
            write_at(self._file, data, self.size)
        except OSError as error:
            raise CopyError(
                f"cannot keep the archive below the staging root: {error.strerror}. Run envpack gc there, or set "
                f"{STAGE_ROOT_VARIABLE} to another folder"
            ) from error
        self.size += len(data)
        self._tell()

    def end(self, failure: str | None = None) -> None:
        """Say that nothing more comes, to the stager and to other agents."""
        self.failure = self.failure or failure
        with contextlib.suppress(IndexError):
            os.close(self._ends.pop())
        self._tell()

    def free(self) -> None:
        """Give the room back. The file stays open: a thread may be about to read it."""
        self.end("all nodes have the environment")
        os.ftruncate(self._file, 0)

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the agent has ended
            self._loop.call_soon_threadsafe(self._tell_servers)

    def _tell_servers(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def serve(self, connection: Connection, request: ArchiveRequest) -> None:
        """Send another agent what has arrived, and what arrives; return when there is no more, or the copy is given up.

        Raises
        ------
        OSError
            The connection is lost, or the other agent does not accept what it has asked for.
        """
        at = request.start
        while not self.failure and not (self.is_whole and at >= self.size):
            if at < self.size:
                size = self.part_end(at, min(self.size, at + PART_BYTES)) - at
                data = await in_thread(DISK_TIMEOUT_S, os.pread, self._file, size, at)
                at += len(data)
            else:
                data = b""
                with contextlib.suppress(TimeoutError):
                    await in_time(self._news.wait(), NOTHING_NEW_S)
                    continue
            await send_in_time(connection, data)

    def part_end(self, start: int, limit: int) -> int:
        """Return where a part that begins at `start` should end, at most at `limit`: where a frame does, if it can."""
        border = bisect_right(self._borders, limit) - 1
        return self._borders[border] if border >= 0 and self._borders[border] > start else limit


async def send_in_time(connection: Connection, data: bytes) -> None:
    """Send a part; raise OSError if the other side does not accept it in time."""
    try:
        await in_time(connection.send(ArchivePart(), data), SEND_TIMEOUT_S)
    except TimeoutError as error:
        raise ConnectionError(f"nothing was accepted for {SEND_TIMEOUT_S:g} s") from error


def nameless_file(folder: Path) -> int:
    """Open a new file that no folder lists, so that it goes with the last process that has it open."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o600)
    except OSError:  # not every file system can
        path = folder / "archive-copy"
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        path.unlink()
        return descriptor


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data`."""
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done
