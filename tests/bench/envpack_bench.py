"""envpack against tar, side by side in one run: the contenders take turns, medians are compared, nothing is asserted.

    python tests/bench/envpack_bench.py [--quick] [--repeats N] [--root DIR] [--env PREFIX] [--json FILE]

The environments, a conda environment and a venv of the same packages, are built once, in the tests' cache folder. Each
has at least 800 MB and 25,000 files. A small package is installed into the conda environment, and removed again. The
figures are written to .cache/bench/envpack.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from envpack_runs import CHECKOUT, Bench, Row, Run, megabytes_read, row, say
from figures import number, table

sys.path.insert(0, os.fspath(CHECKOUT / "tests" / "support"))

PACKAGES = [
    "bokeh", "cryptography", "dask", "dask-mpi", "distributed", "matplotlib", "notebook", "numpy", "pandas", "pyarrow",
    "scikit-learn", "scipy", "zstandard",
]  # fmt: skip
LEAST_BYTES = 800_000_000
LEAST_FILES = 25_000
# Pure Python with an entry script; no other package requires it.
SMALL_PACKAGE = "tabulate==0.9.0"
LOST = "lib/python*/site-packages/pandas/__init__.py"
# What the README suggests to leave out: tests, headers, static libraries, type stubs.
EXCLUDED = ["*/tests", "*.pyi", "include", "*/include", "*.a"]


def one_node(bench: Bench) -> Iterator[Row]:
    """Yield the rows of a pack, and of a stage on one node."""
    packs = bench.take_turns(
        tar=partial(bench.tar_pack, bench.env),
        envpack=bench.first_pack,
        unchanged=partial(bench.pack, bench.archive),
    )
    yield from stages(bench, "")
    yield row("first pack", 3, ("envpack pack", packs["envpack"]), ("tar -zcf", packs["tar"]))
    yield row(
        "pack when nothing changed", 20, ("again", packs["unchanged"]), ("first pack", packs["envpack"])
    )
    yield Row("archive size", "tar -zcf", "MB", megabytes(bench.archive), megabytes(bench.tgz), 1)
    yield from first_import(bench)


def stages(bench: Bench, of: str) -> Iterator[Row]:
    """Yield the rows of a cold and a warm stage against tar."""
    runs = bench.take_turns(
        tar=bench.tar_stage, envpack=bench.cold_stage, again=partial(bench.stage, bench.archive)
    )
    tar, cold = ("cp + tar -zxf", runs["tar"]), ("envpack stage", runs["envpack"])
    yield row(f"cold stage{of}, one node", 6, cold, tar)
    yield row(f"CPU seconds, cold stage{of}", 3.5, cold, tar, "cpu_s")
    yield row(f"stage{of} when the node has it", 20, ("again", runs["again"]), tar)
    peak = max(run.peak_mb for run in runs["envpack"])
    yield Row(f"peak memory of a stager{of}", "at most", "MB", peak, None, 300)


def first_import(bench: Bench) -> Iterator[Row]:
    """Yield the row of importing pandas: each time from a prefix that was staged just now."""

    def staged() -> Run:
        return bench.run(bench.cold_stage().result["prefix"] + "/bin/python", "-c", "import pandas")

    def source() -> Run:
        return bench.run(bench.env / "bin" / "python", "-c", "import pandas")

    source()
    runs = bench.take_turns(import_from_source=source, import_from_stage=staged)
    ours, theirs = ("staged", runs["import_from_stage"]), ("source prefix", runs["import_from_source"])
    # "No slower", within what two equal runs differ by.
    yield row("first import of pandas", 0.95, ours, theirs)


def with_base_interpreter(bench: Bench) -> Iterator[Row]:
    """Yield the rows of a stage of a venv; tar has its base interpreter in the archive as well."""
    venv = Bench(cached_venv(), bench.work / "venv", bench.root, bench.rounds)
    venv.first_pack()
    say("tar of the same files")
    venv.tar_pack(Path(venv.cold_stage().result["prefix"]))
    yield from stages(venv, " of a venv")


def after_install(bench: Bench) -> Iterator[Row]:
    """Yield the rows of pack and stage after `pip install` of a small package."""
    from condaenv import pip, pip_install

    remove = partial(pip, "--python", str(bench.env / "bin" / "python"), "uninstall", "--yes")
    # A bench that was killed has not removed it.
    remove(SMALL_PACKAGE.partition("=")[0])
    older = bench.pack_in(bench.work / "older").result["path"]
    pip_install(bench.env, [SMALL_PACKAGE], "--no-deps")
    try:
        yield from deltas(bench, Path(older))
    finally:
        remove(SMALL_PACKAGE.partition("=")[0])


def deltas(bench: Bench, older: Path) -> Iterator[Row]:
    """Yield the rows of pack with an older archive, and of stage with an older or damaged stage on the node."""
    home = bench.work / "home"

    def first_pack() -> Run:
        shutil.rmtree(home, ignore_errors=True)
        return bench.pack_in(home)

    def next_pack() -> Run:
        shutil.rmtree(home)
        shutil.copytree(bench.work / "older", home, copy_function=os.link)
        return bench.pack_in(home)

    packs = bench.take_turns(first_pack=first_pack, next_pack=next_pack)
    first, delta = ("first pack", packs["first_pack"]), ("next pack", packs["next_pack"])
    yield row("pack after pip install", 5, delta, first)
    archive = Path(delta[1][-1].result["path"])

    def have_none() -> None:
        bench.empty_root()

    def have_older() -> None:
        bench.empty_root()
        bench.stage(older)

    def have_damaged() -> None:
        bench.empty_root()
        next(Path(bench.stage(archive).result["prefix"]).glob(LOST)).unlink()

    nodes = {"cold": have_none, "older_stage": have_older, "lost_file": have_damaged}

    def staged(name: str) -> Run:
        nodes[name]()
        return bench.stage(archive)

    runs = bench.take_turns(**{name: partial(staged, name) for name in nodes})
    read = {}
    for name, prepare in nodes.items():
        prepare()
        read[name] = megabytes_read(archive, bench.stage)
    cold = ("cold stage", runs["cold"])
    for name, what in (("older_stage", "stage after pip install"), ("lost_file", "stage that lost a file")):
        yield row(f"CPU seconds, {what}", 4, (name, runs[name]), cold, "cpu_s")
        yield row(what, 1, (name, runs[name]), cold)
        yield Row(f"read of the archive, {what}", "cold stage", "MB", read[name], read["cold"], 20)


def with_exclude(bench: Bench) -> Iterator[Row]:
    """Yield the rows of an archive without what the README suggests to leave out."""
    whole, lean = bench.archive, bench.work / "lean.tar.zst"
    all_files = bench.pack(whole).result
    fewer = bench.pack(lean, *(f"--exclude={glob}" for glob in EXCLUDED)).result

    def cold_stage(archive: Path) -> Run:
        bench.empty_root()
        return bench.stage(archive)

    runs = bench.take_turns(everything=partial(cold_stage, whole), excluded=partial(cold_stage, lean))
    yield Row("files with --exclude", "everything", "", fewer["files"], all_files["files"], 1)
    size, whole_size = fewer["raw_bytes"] / 1e6, all_files["raw_bytes"] / 1e6
    yield Row("size of them", "everything", "MB", size, whole_size, 1)
    yield Row("archive size with --exclude", "everything", "MB", megabytes(lean), megabytes(whole), 1)
    yield row(
        "cold stage with --exclude", 1, ("--exclude", runs["excluded"]), ("everything", runs["everything"])
    )


def megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


# ---- report


def print_table(rows: Sequence[Row], about: dict[str, object]) -> None:
    columns = ["envpack, side by side", "ours", "theirs", "against", "factor", "target", ""]
    cells = []
    for entry in rows:
        theirs = "" if entry.theirs is None else f"{number(entry.theirs)} {entry.unit}"
        factor = "" if entry.factor is None else f"{entry.factor:.1f} x"
        target = f"{entry.target:g} {entry.unit}" if entry.factor is None else f"{entry.target:g} x"
        verdict = "met" if entry.is_met else "missed"
        ours = f"{number(entry.ours)} {entry.unit}"
        cells.append([entry.what, ours, theirs, entry.against, factor, target, verdict])
    print(table(columns, cells))
    print(", ".join(f"{key} {value}" for key, value in about.items()))


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


def cached_conda() -> Path:
    """Return the conda environment that is measured: a real one, built once per machine."""
    from condaenv import cached_env

    say("environment: built on the first run")
    env: Path = cached_env(PACKAGES)
    return env


def cached_venv() -> Path:
    """Return a venv of the same packages, built once per machine."""
    from condachannel import cache_folder, digest
    from condaenv import pip_install
    from filelock import FileLock

    folder = cache_folder() / "venvs" / digest([sys.base_prefix, sys.version, *PACKAGES])
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
            pip_install(folder / "env", PACKAGES)
            (folder / "built").touch()
    return folder / "env"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
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
    env = (arguments.env or cached_conda()).absolute()
    json_path = arguments.json.absolute()
    work = env.parent / f"envpack-bench-{os.getpid()}"
    root = arguments.root.absolute() / f"envpack-bench-{os.getpid()}"
    os.chdir(CHECKOUT)
    bench = Bench(env, work, root, 1 if arguments.quick else arguments.repeats)
    rows: list[Row] = []
    try:
        facts = about(bench)
        for part in (one_node, with_base_interpreter, after_install, with_exclude):
            rows.extend(part(bench))
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
    print_table(rows, facts)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    write_json(rows, facts, json_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
