"""envpack against tar, side by side in one run: the contenders take turns, medians are compared, nothing is asserted.

    python tests/bench/envpack_bench.py [--quick] [--repeats N] [--root DIR] [--env PREFIX] [--json FILE]

The environment, of at least 800 MB and 25,000 files, is built once, in the tests' cache folder. The figures are written
to .cache/bench/envpack.json. Rows that need a cluster are added by whoever has one: `main(more=[function])`, where each
function takes the `Bench` and yields rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = [
    "bokeh", "cryptography", "dask", "dask-mpi", "distributed", "matplotlib", "notebook", "numpy", "pandas", "pyarrow",
    "scikit-learn", "scipy", "zstandard",
]  # fmt: skip
LEAST_BYTES = 800_000_000
LEAST_FILES = 25_000
SETTLE_S = 2.0


@dataclass(frozen=True)
class Run:
    """One run of one command."""

    seconds: float
    cpu_s: float
    peak_mb: float


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
        A folder on a disk: archives lie here, as on a shared file system.
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

    def run(self, *argv: str | Path) -> Run:
        """Run a command to its end; its CPU seconds are those of all its processes."""
        path = os.pathsep.join([os.fspath(CHECKOUT), *sys.path[1:]])
        environment = {**os.environ, "PYTHONPATH": path}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        began = time.perf_counter()
        pid = os.posix_spawnp(argv[0], [os.fspath(word) for word in argv], environment, file_actions=quiet)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise RuntimeError(f"{argv} failed: wait status {status}")
        return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)

    def envpack(self, *arguments: str | Path) -> Run:
        return self.run(sys.executable, "-m", "envpack", *arguments)

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

    # ---- the contenders

    def tar_pack(self) -> Run:
        return self.run("tar", "-C", self.env, "-zcf", self.tgz, ".")

    def tar_stage(self) -> Run:
        """Today's recipe, on one node."""
        script = 'cp "$0" "$1"/env.tar.gz && tar -C "$1" -zxf "$1"/env.tar.gz'
        return self.run("sh", "-c", script, self.tgz, self.empty_root())

    def first_pack(self) -> Run:
        self.archive.unlink(missing_ok=True)
        return self.envpack("pack", "--prefix", self.env, "--output", self.archive)

    def second_pack(self) -> Run:
        return self.envpack("pack", "--prefix", self.env, "--output", self.archive)

    def cold_stage(self) -> Run:
        return self.envpack("stage", self.archive, "--root", self.empty_root())

    def warm_stage(self) -> Run:
        return self.envpack("stage", self.archive, "--root", self.root)

    def staged_prefix(self) -> Path:
        return next((self.root / f"mpiboot-{os.geteuid()}").glob("[!.]*"))


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


def one_node(bench: Bench) -> Iterator[Row]:
    """Yield the rows that one machine can fill."""
    packs = bench.take_turns(tar=bench.tar_pack, envpack=bench.first_pack, unchanged=bench.second_pack)
    stages = bench.take_turns(tar=bench.tar_stage, envpack=bench.cold_stage, again=bench.warm_stage)
    tar, cold, warm = (
        ("cp + tar -zxf", stages["tar"]),
        ("envpack stage", stages["envpack"]),
        ("again", stages["again"]),
    )
    yield row("cold stage, one node", 6, cold, tar)
    yield row("CPU seconds, cold stage", 3.5, cold, tar, "cpu_s")
    yield row("stage when the node has it", 20, warm, tar)
    yield row("first pack", 3, ("envpack pack", packs["envpack"]), ("tar -zcf", packs["tar"]))
    yield row(
        "pack when nothing changed", 20, ("again", packs["unchanged"]), ("first pack", packs["envpack"])
    )
    megabytes = [path.stat().st_size / 1e6 for path in (bench.archive, bench.tgz)]
    yield Row("archive size", "tar -zcf", "MB", megabytes[0], megabytes[1], 1)
    peak = max(run.peak_mb for run in stages["envpack"])
    yield Row("peak memory of a stager", "at most", "MB", peak, None, 300)
    yield from first_import(bench)


def first_import(bench: Bench) -> Iterator[Row]:
    """Yield the row of importing pandas: each time from a prefix that was staged just now."""

    def staged() -> Run:
        bench.cold_stage()
        return bench.run(bench.staged_prefix() / "bin" / "python", "-c", "import pandas")

    def source() -> Run:
        return bench.run(bench.env / "bin" / "python", "-c", "import pandas")

    source()
    runs = bench.take_turns(import_from_source=source, import_from_stage=staged)
    ours, theirs = ("staged", runs["import_from_stage"]), ("source prefix", runs["import_from_source"])
    # "No slower", within what two equal runs differ by.
    yield row("first import of pandas", 0.95, ours, theirs)


# ---- report


def print_table(rows: Sequence[Row], about: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="envpack, side by side")
    for name in ("what", "ours", "against", "theirs", "factor", "target", ""):
        table.add_column(name, justify="right" if name in ("ours", "theirs", "factor", "target") else "left")
    for entry in rows:
        against = "" if entry.theirs is None else f"{entry.theirs:.2f} {entry.unit}"
        factor = "" if entry.factor is None else f"{entry.factor:.1f} x"
        target = f"{entry.target:g} {entry.unit}" if entry.factor is None else f"{entry.target:g} x"
        verdict = "met" if entry.is_met else "missed"
        table.add_row(
            entry.what, f"{entry.ours:.2f} {entry.unit}", entry.against, against, factor, target, verdict
        )
    console = Console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()))


def write_json(rows: Sequence[Row], about: dict[str, object], path: Path) -> None:
    found = [{**asdict(entry), "factor": entry.factor, "met": entry.is_met} for entry in rows]
    path.write_text(json.dumps({"about": about, "rows": found}, indent=1) + "\n")


def about(bench: Bench) -> dict[str, object]:
    """Return what the numbers depend on; raises unless the environment is as large as the targets speak of."""
    files = size = 0
    for folder, _, names in os.walk(bench.env):
        for name in names:
            info = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            files += 1
            size += info.st_size
    if files < LEAST_FILES or size < LEAST_BYTES:
        raise SystemExit(f"{bench.env} has {files} files of {size / 1e6:.0f} MB: too small to be of use")
    return {
        "MB": round(size / 1e6),
        "files": files,
        "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "rounds": bench.rounds,
    }


def environment() -> Path:
    """Return the environment that is measured: a real one, built once per machine."""
    sys.path.insert(0, os.fspath(CHECKOUT / "tests" / "support"))
    from condaenv import cached_env

    say("environment: built on the first run")
    env: Path = cached_env(PACKAGES)
    return env


def main(more: Iterable[Callable[[Bench], Iterable[Row]]] = (), argv: Sequence[str] | None = None) -> int:
    """Measure, print, write.

    Parameters
    ----------
    more : iterable of callable
        Each takes the `Bench` and yields more rows.
    argv : sequence of str, optional
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shm = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=CHECKOUT / ".cache" / "bench" / "envpack.json"
    )
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds (default 3)")
    parser.add_argument("--root", type=Path, default=shm, metavar="DIR", help="stands for a node's /tmp")
    parser.add_argument("--env", type=Path, metavar="PREFIX", help="another environment")
    arguments = parser.parse_args(argv)
    env = (arguments.env or environment()).absolute()
    work = env.parent / f"envpack-bench-{os.getpid()}"
    root = arguments.root.absolute() / f"envpack-bench-{os.getpid()}"
    bench = Bench(env, work, root, 1 if arguments.quick else arguments.repeats)
    facts = about(bench)
    work.mkdir()
    rows: list[Row] = []
    try:
        for part in (one_node, *more):
            rows.extend(part(bench))
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
    print_table(rows, facts)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(rows, facts, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
