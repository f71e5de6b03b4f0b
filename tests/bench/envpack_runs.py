"""Run envpack, tar and pip as processes, in turns, and compare what they took; for envpack_bench.py."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
SETTLE_S = 2.0


@dataclass(frozen=True)
class Run:
    """One run of one command; `result` is what `envpack --json` printed."""

    seconds: float
    cpu_s: float
    peak_mb: float
    result: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: `ours` against `theirs`; `factor` is how many times better ours is.

    `target` is the least factor; where there is no contender, the largest value that `ours` may have.
    """

    what: str
    against: str
    unit: str
    ours: float
    theirs: float | None
    target: float
    runs: dict[str, list[float]] = field(default_factory=dict)

    @property
    def factor(self) -> float | None:
        return self.theirs / self.ours if self.theirs is not None and self.ours else None

    @property
    def is_met(self) -> bool:
        return self.ours <= self.target if self.factor is None else self.factor >= self.target


class Bench:
    """What all rows share: the environment, a work folder, a staging root, and how to run commands.

    Parameters
    ----------
    env : Path
        The environment.
    work : Path
        A new folder on a disk: archives lie here, as on a shared file system.
    root : Path
        A folder that stands for a node's /tmp.
    rounds : int
        Runs of each contender.
    """

    def __init__(self, env: Path, work: Path, root: Path, rounds: int) -> None:
        self.env = env
        self.work = work
        self.root = root
        self.rounds = rounds
        self.tgz = work / "env.tar.gz"
        self.archive = work / "env.tar.zst"
        work.mkdir()

    def run(self, *argv: str | Path, **variables: str) -> Run:
        """Run a command to its end; its CPU seconds are those of all its processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = {**kept, **variables}
        output = self.work / "stdout"
        os.sync()  # what an earlier run has written must not slow this one
        quiet = [(os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
        began = time.perf_counter()
        pid = os.posix_spawnp(argv[0], [os.fspath(word) for word in argv], environment, file_actions=quiet)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise RuntimeError(f"{argv} failed: wait status {status}")
        result = json.loads(output.read_bytes()) if "--json" in argv else {}
        return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, result)

    def envpack(self, *arguments: str | Path, **variables: str) -> Run:
        """Run envpack of the current directory, which is the checkout."""
        return self.run(sys.executable, "-m", "envpack", *arguments, "--json", **variables)

    def pack(self, archive: Path, *options: str) -> Run:
        return self.envpack("pack", "--prefix", self.env, "--output", archive, *options)

    def pack_in(self, home: Path) -> Run:
        """Pack into a folder that also has the older archives of the environment."""
        return self.envpack("pack", "--prefix", self.env, MPIBOOT_HOME=os.fspath(home))

    def stage(self, archive: Path) -> Run:
        return self.envpack("stage", archive, "--root", self.root)

    def empty_root(self) -> Path:
        """Return the staging root, emptied."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        # The kernel goes on freeing a gigabyte of files for a while.
        time.sleep(SETTLE_S)
        return self.root

    def take_turns(self, **contenders: Callable[[], Run]) -> dict[str, list[Run]]:
        """Run each contender in turn, `rounds` times."""
        runs: dict[str, list[Run]] = {name: [] for name in contenders}
        for n in range(self.rounds):
            for name, contender in contenders.items():
                say(f"{name.replace('_', ' ')}, {n + 1} of {self.rounds}")
                runs[name].append(contender())
        return runs

    def tar_pack(self, tree: Path) -> Run:
        return self.run("tar", "-C", tree, "--exclude=./.envpack", "-zcf", self.tgz, ".")

    def tar_stage(self) -> Run:
        """Today's recipe, on one node."""
        script = 'cp "$0" "$1"/env.tar.gz && tar -C "$1" -zxf "$1"/env.tar.gz'
        return self.run("sh", "-c", script, self.tgz, self.empty_root())

    def first_pack(self) -> Run:
        self.archive.unlink(missing_ok=True)
        return self.pack(self.archive)

    def cold_stage(self) -> Run:
        self.empty_root()
        return self.stage(self.archive)


def megabytes_read(archive: Path, stage: Callable[[Path], Run]) -> float:
    """Return how much of an archive a stage reads from the disk: what the page cache has of it afterwards."""
    fd = os.open(archive, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    stage(archive)
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", archive]
    return int(subprocess.run(command, check=True, capture_output=True).stdout) / 1e6


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def median(runs: Iterable[Run], what: str = "seconds") -> float:
    return statistics.median(getattr(run, what) for run in runs)


def row(
    what: str,
    target: float,
    ours: tuple[str, Sequence[Run]],
    theirs: tuple[str, Sequence[Run]],
    measure: str = "seconds",
) -> Row:
    """Return the row that compares two contenders' medians."""
    return Row(
        what, theirs[0], "s", median(ours[1], measure), median(theirs[1], measure), target,
        {name: [round(getattr(run, measure), 3) for run in runs] for name, runs in (ours, theirs)},
    )  # fmt: skip
