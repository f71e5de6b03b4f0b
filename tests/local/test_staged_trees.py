"""Promise 9 with real environments: what is staged is what the environment is, and runs without it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

import conda_pack
import environments
import pytest
from condachannel import XY
from environments import BASE, ENVIRONMENTS, SITE, Environment, run
from envpackcommand import envpack
from privatemounts import Mount, private
from treewalk import BEGINS, ENDS, Trees, contents

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and a second user need root")

STRANGER = 61009  # a user id that nothing here belongs to
MAPS = "; print(open('/proc/self/maps').read())"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder with a short path: a script's first line may have 127 bytes."""
    path = tmp_path_factory.mktemp("t")
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=ENVIRONMENTS, ids=lambda build: build.__name__)
def environment(request: pytest.FixtureRequest, folder: Path) -> Iterator[Environment]:
    build: Callable[[Path], Environment] = request.param
    environment = build(folder)
    yield environment
    for mount in environment.mounts:
        with contextlib.suppress(OSError):
            mount.target.rmdir()


def test_the_staged_copy(environment: Environment, folder: Path) -> None:
    packed = envpack(
        "pack", "--prefix", environment.prefix, "--output", folder / "archive", mounts=environment.mounts
    )
    staged = Path(envpack("stage", folder / "archive", "--root", folder)["prefix"])
    warned = "\n".join(packed["warnings"])
    found = {
        "differences": Trees(
            environment.prefix,
            staged,
            seen_at=next((m.source for m in environment.mounts if m.target == environment.prefix), None),
            aliases=environment.aliases,
            base=environment.base,
            with_base_packages=environment.base_packages,
            warnings=packed["warnings"],
        ).differences()[:30],
        "not warned of": [text for text in environment.warned if text not in warned],
        **runs_alone(environment, staged, folder),
    }
    assert not any(found.values()), f"{pformat(found, width=200)}\nwarnings:\n{warned}"


def runs_alone(environment: Environment, staged: Path, folder: Path) -> dict[str, list[str]]:
    """Run the staged copy while its sources are hidden, and return what failed and which of their files it asked for."""
    python = staged / "bin/python"
    code = f"import sys; {environment.code}; assert sys.prefix == {str(staged)!r}{MAPS}"
    commands = [[python, "-c", code], *([staged / "bin" / name, "--help"] for name in environment.programs)]
    sources = environment.sources()
    hidden = [Mount(None, path) for path in sources if path.exists()]
    failed, touched = [], set()
    for number, command in enumerate(commands):
        trace = folder / f"trace-{number}"
        strace = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", trace]
        argv = private(
            hidden,
            [
                *strace,
                "env",
                "-i",
                f"PATH={os.defpath}",
                "HOME=/nonexistent",
                "PYTHONDONTWRITEBYTECODE=1",
                *command,
            ],
        )
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
        if done.returncode:
            failed.append(f"{command[0]}: {done.stderr}")
        seen = trace.read_text(errors="surrogateescape") + done.stdout
        for source in sources:
            named = re.compile(
                (BEGINS + re.escape(os.fsencode(source)) + ENDS).decode("latin-1") + r"[^\"\n]*"
            )
            touched |= {match.group() for match in named.finditer(seen)}
    return {"failed": failed, "touched": sorted(touched)[:20]}


# conda-unpack differs by design: it writes no first line for the staged interpreter, blanks fields of conda's records,
# replaces a prefix that no path begins with, and omits what is called python.
DOCUMENTED = re.compile(
    rb"conda-meta/.*\.json|bin/conda[-_]unpack.*|bin/python.*-config|.*\.pyc|.*/__pycache__|share/clobber/.*|__clobbers__.*"
)


def test_conda_unpack_makes_the_same(folder: Path) -> None:
    """The oracle: conda-pack's archive, unpacked where the staged copy was, and conda-unpack run there."""
    prefix = environments.conda(folder).prefix
    packed = envpack("pack", "--prefix", prefix, "--output", folder / "archive")
    staged = Path(envpack("stage", packed["path"], "--root", folder)["prefix"])
    ours = contents(staged)
    staged.rename(folder / "ours")
    staged.mkdir()
    with (
        warnings.catch_warnings(action="ignore") if sys.version_info >= (3, 11) else contextlib.nullcontext()
    ):
        conda_pack.pack(
            prefix=str(prefix),
            output=str(folder / "archive.tar"),
            ignore_editable_packages=True,
            ignore_missing_files=True,
        )
    shutil.unpack_archive(folder / "archive.tar", staged)
    subprocess.run([staged / "bin/python", staged / "bin/conda-unpack"], check=True, timeout=60)
    theirs = contents(staged)
    different = {
        path: (ours.get(path), content)
        for path, content in theirs.items()
        if ours.get(path) != content and not DOCUMENTED.fullmatch(path)
    }
    first_lines = {
        path: (mine[0].partition(b"\n")[0], his[0].partition(b"\n")[0])
        for path, (mine, his) in different.items()
        if mine and mine[0].partition(b"\n")[2] == his[0].partition(b"\n")[2] and mine[1] == his[1]
    }
    in_text = [
        path
        for path, (mine, his) in different.items()
        if mine and mine[0].replace(b"." + os.fsencode(prefix), b"." + os.fsencode(staged)) == his[0]
    ]
    assert different.keys() - first_lines.keys() - set(in_text) == set()
    assert set(first_lines.values()) == {
        (b"#!%s/bin/%s" % (os.fsencode(staged), name), b"#!/usr/bin/env " + name)
        for name in (b"python", os.fsencode(XY), b"python -E")
    }
    assert [path for path in ours.keys() - theirs.keys() if not DOCUMENTED.fullmatch(path)] == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user may enter: pytest's own are closed."""
    path = Path(tempfile.mkdtemp(prefix="envpack-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_another_user_packs_it_and_cannot_read_the_package_cache(open_folder: Path) -> None:
    """An environment that somebody made for a group: the same archive, although the cache is in a closed home."""
    environment = environments.conda(open_folder)
    (open_folder / "env-pkgs").chmod(0o700)
    for record in environment.prefix.glob("conda-meta/*.json"):
        record.chmod(0o644)  # as conda writes them
    mine = envpack("pack", "--prefix", environment.prefix, "--output", open_folder / "mine")
    theirs = open_folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, STRANGER, STRANGER)
    as_user = [
        "setpriv",
        f"--reuid={STRANGER}",
        f"--regid={STRANGER}",
        "--clear-groups",
        "env",
        f"HOME={theirs}",
    ]
    packed = envpack(
        "pack", "--prefix", environment.prefix, "--output", theirs / "archive",
        by=as_user, mounts=open_to_all([BASE, Path(sys.prefix)], open_folder),
    )  # fmt: skip
    assert packed["pack_id"] == mine["pack_id"]
    assert packed["warnings"] == mine["warnings"]
    staged = Path(envpack("stage", theirs / "archive", "--root", open_folder)["prefix"])
    assert Trees(environment.prefix, staged, warnings=packed["warnings"]).differences() == []


def open_to_all(paths: list[Path], folder: Path) -> tuple[Mount, ...]:
    """Return mounts among which every user can reach these paths, although a folder above them is closed."""
    closed = {
        path: Path("/", path.parts[1])
        for path in paths
        if any(p.stat().st_mode & 1 == 0 for p in path.parents)
    }
    kept = [Mount(path, folder / f"mount-{number}") for number, path in enumerate(closed)]
    hidden = [Mount(None, top) for top in set(closed.values())]
    return (*kept, *hidden, *(Mount(place, path) for path, place in kept))


# ---- the same content has the same id


@pytest.mark.parametrize("build", [environments.conda, environments.uv_copy], ids=["conda", "venv"])
def test_the_same_content_has_the_same_id(build: Callable[[Path], Environment], folder: Path) -> None:
    """Whatever the number of threads, the order of directory listings, the times, and the locale."""
    prefix = build(folder).prefix
    other = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        for path in sorted(prefix.iterdir(), reverse=True):  # tmpfs lists the newest first
            run("cp", "-a", path, other)
        mounts = (Mount(other, prefix),)
        ways: dict[str, dict[str, Any]] = {
            "one thread": {"jobs": 1},
            "four threads": {"jobs": 4},
            "another order": {"mounts": mounts},
            "another locale": {"by": ["env", "LC_ALL=C", "PYTHONHASHSEED=7", "TZ=Asia/Tokyo"]},
        }
        ids = {}
        for number, (way, options) in enumerate(ways.items()):
            jobs = options.pop("jobs", 2)
            packed = envpack(
                "pack", "--prefix", prefix, "--output", folder / str(number), "--jobs", jobs, **options
            )
            ids[way] = packed["pack_id"]
        listed = [[path.name for path in place.iterdir()] for place in (prefix / SITE, other / SITE)]
        assert sorted(listed[0]) == sorted(listed[1]) and listed[0] != listed[1]
    finally:
        shutil.rmtree(other)
    assert ids == dict.fromkeys(ways, ids["one thread"])


def test_a_touched_file_is_packed_again_and_no_node_stages_anew(folder: Path) -> None:
    prefix = environments.uv_copy(folder).prefix
    home = ["env", f"MPIBOOT_HOME={folder}"]
    first = envpack("pack", "--prefix", prefix, by=home)
    staged = envpack("stage", first["path"], "--root", folder)
    (prefix / SITE / "pygments/__init__.py").touch()
    second = envpack("pack", "--prefix", prefix, by=home)
    again = envpack("stage", second["path"], "--root", folder)
    assert (first["pack_id"], first["reused"]) == (second["pack_id"], second["reused"])
    assert (again["prefix"], again["reused"]) == (staged["prefix"], True)
    assert envpack("pack", "--prefix", prefix, by=home)["reused"]
