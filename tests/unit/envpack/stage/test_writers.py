"""Several processes write one stage: what happens when one of them does not come to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from envpack.errors import CorruptArchiveError, NoSpaceError, StageFailedError
from envpack.stage import writers

FRAMES = 40


def marks(folder: Path, of_child: Callable[[int], None] = lambda frame: None) -> Callable[[], writers.Work]:
    """Each frame leaves a file named for it, with its process in it; `of_child` runs first in all but this process."""
    here = os.getpid()

    def work(frame: int) -> int:
        if os.getpid() != here:
            of_child(frame)
        (folder / str(frame)).write_text(str(os.getpid()))
        return frame

    return lambda: work


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before  # those that nobody has waited for count as well


@pytest.mark.parametrize("jobs", [1, 2, 5, 2 * FRAMES])
@pytest.mark.parametrize("most_numbers", [1024, 7])
def test_each_frame_is_done_once(
    jobs: int, most_numbers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_MOST_NUMBERS", most_numbers)
    done: list[int] = []
    writers.run_writers(FRAMES, jobs, marks(tmp_path), done.append)
    assert {int(path.name) for path in tmp_path.iterdir()} == set(range(FRAMES))
    assert sum(done) == sum(range(FRAMES)) and len(done) == FRAMES


def test_nothing_to_do(tmp_path: Path) -> None:
    writers.run_writers(0, 2, marks(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CorruptArchiveError("member a is damaged", "Pack again"), CorruptArchiveError),
        (NoSpaceError("full", "Make room"), NoSpaceError),
        (OSError(28, "No space left on device"), OSError),
        (RuntimeError("of our own"), StageFailedError),
    ],
)
def test_what_went_wrong_in_a_child_is_raised_here(
    error: Exception, expected: type[Exception], tmp_path: Path
) -> None:
    def fail(frame: int) -> None:
        raise error

    with pytest.raises(expected, match=r"damaged|full|No space|of our own"):
        writers.run_writers(FRAMES, 3, hold_for_a_child(marks(tmp_path, fail)))


def hold_for_a_child(begin: Callable[[], writers.Work]) -> Callable[[], writers.Work]:
    """This process takes no frame until a child has taken one: else it may do all of them alone."""
    here = os.getpid()
    reader, writer = os.pipe()

    def begin_held() -> writers.Work:
        if os.getpid() == here:
            os.close(writer)
            os.read(reader, 1)
            os.close(reader)
        work = begin()

        def told(frame: int) -> int:
            try:
                return work(frame)
            finally:
                if os.getpid() != here:
                    os.write(writer, b".")

        return told

    return begin_held


def test_a_killed_child_is_not_taken_for_a_done_one(tmp_path: Path) -> None:
    def end(frame: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(StageFailedError, match=r"ended without an error \(signal 9, perhaps out of memory"):
        writers.run_writers(FRAMES, 2, hold_for_a_child(marks(tmp_path, end)))


def test_an_error_here_ends_the_children(tmp_path: Path) -> None:
    here = os.getpid()

    def begin() -> writers.Work:
        if os.getpid() == here:
            raise KeyboardInterrupt
        return marks(tmp_path, lambda frame: signal.pause())()

    with pytest.raises(KeyboardInterrupt):
        writers.run_writers(FRAMES, 3, begin)


def test_a_signal_while_a_child_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the parent's to act on, with all of its children known; in the child it is only an end."""
    here, fork = os.getpid(), os.fork

    def over(*_: object) -> None:
        if os.getpid() != here:
            (tmp_path / "in the child").touch()
            os._exit(1)
        raise KeyboardInterrupt

    def fork_and_signal() -> int:
        pid = fork()
        signal.raise_signal(signal.SIGTERM)  # to this thread alone: the tests' process may have others
        return pid

    monkeypatch.setattr(os, "fork", fork_and_signal)
    before = signal.signal(signal.SIGTERM, over)
    try:
        with pytest.raises(KeyboardInterrupt):
            writers.run_writers(FRAMES, 3, marks(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not list(tmp_path.iterdir())


def test_what_the_parent_ignores_ends_no_child(tmp_path: Path) -> None:
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hangs_up = marks(tmp_path, lambda frame: os.kill(os.getpid(), signal.SIGHUP))
        writers.run_writers(FRAMES, 2, hold_for_a_child(hangs_up))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(list(tmp_path.iterdir())) == FRAMES


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ],
)
def test_a_process_that_has_threads_or_ignores_its_children_does_not_fork(before: str) -> None:
    code = f"{before}\nfrom envpack.stage import writers\nprint(writers.may_fork())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == f"{not before}\n"
