"""What staging makes of file systems that are full, read-only, coarse or gone, each in a mount namespace of its own.

`inside` runs a program there. In it, `archives` are the three archives, `root` is where the file system is mounted.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from envpack_trees import stages

from envpack.errors import EnvpackError, NoSpaceError, StageFailedError, StageRootError
from envpack.stage import root, temporaries
from envpack.stage.staging import stage
from envpack.stage.verify import verify

PROGRAM = """
import json, os, resource, shutil, subprocess, sys, time
from pathlib import Path
from envpack.common.locks import hold_folder
from envpack.errors import EnvpackError
from envpack.stage import extract, gc, marker, stager, temporaries
from envpack.stage.staging import stage
from envpack.stage.verify import verify
archives, root = sys.argv[1:4], Path(sys.argv[4])
own = root / f"mpiboot-{os.geteuid()}"
def age(prefix, hours):
    at = time.time() - 3600 * hours
    os.utime(marker.marker_path(prefix), (at, at))
def names():
    return sorted(name for name in os.listdir(own) if not name.startswith(".lock-"))
def fails(function, *args, **options):
    try:
        function(*args, **options)
    except EnvpackError as exc:
        return [type(exc).__name__, exc.problem, exc.remedy]
make = extract.Extractor.make_folders
def after_folders(do):
    def both(self, folders):
        make(self, folders)
        do()
    extract.Extractor.make_folders = both
"""


with_e2fsprogs = pytest.mark.skipif(
    not all(map(shutil.which, ("mkfs.ext4", "chattr"))),
    reason="no mkfs.ext4, chattr: apt-get install e2fsprogs",
)


def inside(archives: list[Path], folder: Path, mount: str, program: str) -> Any:
    """Mount a file system on a folder, in a namespace, and run a program there; return what it passes to `print_`."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    folder.mkdir(exist_ok=True)
    script = f'{mount.format(root=folder)} && exec "$@"'
    code = PROGRAM + program
    done = subprocess.run(
        [
            *("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"),
            *(sys.executable, "-c", code, *archives, folder),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def tmpfs(kilobytes: int) -> str:
    return f"mount -t tmpfs -o size={kilobytes}k,mode=1777 tmpfs {{root}}"


def test_own_unused_stages_go_the_oldest_first(archives: list[Path], tmp_path: Path) -> None:
    found = inside(
        archives, tmp_path / "root", tmpfs(3600),
        """
old = [stage(archives[n], root, force=True).prefix for n in (0, 1)]
age(old[0], 2); age(old[1], 3)
result = stage(archives[2], root, force=True)
verify(result.prefix)
print(json.dumps([[path.name for path in old], list(result.evicted), names(), result.prefix.name]))
""",
    )  # fmt: skip
    old, evicted, left, new = found
    assert (evicted, left) == ([old[1]], sorted([old[0], new]))


def test_copies_in_use_stay_and_the_message_says_what_they_hold(archives: list[Path], tmp_path: Path) -> None:
    found = inside(
        archives, tmp_path / "root", tmpfs(3600),
        """
old = [stage(archives[n], root, force=True).prefix for n in (0, 1)]
age(old[0], 2); age(old[1], 3)
fds = [hold_folder(path) for path in old]
refused = fails(stage, archives[2], root, force=True)
left = names()
os.close(fds[1])
age(old[0], 0)
result = stage(archives[2], root, force=True)
print(json.dumps([[path.name for path in old], refused, left, list(result.evicted)]))
""",
    )  # fmt: skip
    old, (kind, problem, remedy), left, evicted = found
    folder = tmp_path / "root" / f"mpiboot-{os.geteuid()}"
    assert kind == "NoSpaceError"
    assert re.fullmatch(
        rf"no space below {folder} on {os.uname().nodename}: the copy takes 1\.\d MB, 0\.\d MB are free; "
        rf"copies in use hold [23]\.\d MB: {', '.join(sorted(old))}",
        problem,
    )
    assert remedy == (
        "End the jobs that use the copies, or choose a folder with more room: --root or MPIBOOT_STAGE_ROOT"
    )
    assert (left, evicted) == (sorted(old), [old[1]])


@pytest.mark.parametrize("fork", [True, False], ids=["processes", "threads"])
def test_a_disk_that_others_fill_meanwhile(archives: list[Path], tmp_path: Path, fork: bool) -> None:
    """Unused stages go, and staging begins again; without any, it fails, and nothing is left."""
    found = inside(
        archives, tmp_path / "root", tmpfs(2000),
        f"""
extract.writers.may_fork = lambda: {fork}
gc.make_room = lambda *_: ()
old = stage(archives[0], root, force=True).prefix
refused = fails(stage, archives[1], root, force=True)
left = names()
age(old, 1)
result = stage(archives[1], root, force=True)
verify(result.prefix)
print(json.dumps([old.name, refused, left, list(result.evicted), names(), result.prefix.name]))
""",
    )  # fmt: skip
    old, (kind, problem, _), left, evicted, after, new = found
    assert kind == "NoSpaceError" and ": No space left on device while writing; copies in use hold" in problem
    assert (left, evicted, after) == ([old], [old], [new])


@pytest.mark.parametrize("known_before", [True, False])
def test_an_older_stage_that_shares_little_goes_too(
    archives: list[Path], tmp_path: Path, known_before: bool
) -> None:
    """What it has is linked, if there is room for the rest; else it is an unused stage like any other."""
    found = inside(
        archives, tmp_path / "root", tmpfs(2000),
        f"""
if not {known_before}:
    gc.make_room = lambda *_: None
old = stage(archives[0], root).prefix
for path in [old / "share" / "filler", *old.rglob("*.txt")]:
    path.write_bytes(path.read_bytes() + b"edited")
age(old, 1)
result = stage(archives[1], root)
verify(result.prefix)
print(json.dumps([old.name, list(result.evicted), result.linked, names(), result.prefix.name]))
""",
    )  # fmt: skip
    old, evicted, linked, left, new = found
    assert (evicted, linked, left) == ([old], 0, [new])


def test_a_read_only_root(archives: list[Path], tmp_path: Path) -> None:
    found = inside(
        archives, tmp_path / "root", tmpfs(4000),
        """
prefix = stage(archives[0], root).prefix
subprocess.run(["mount", "-o", "remount,ro", root], check=True)
(verify(prefix), gc.gc(root))
print(json.dumps(fails(stage, archives[0], root)))
""",
    )  # fmt: skip
    where = f"{tmp_path / 'root'} on {os.uname().nodename}"
    assert found == [
        "StageRootError",
        f"cannot stage below {where}: it is mounted read-only",
        root.CHOOSE_ANOTHER,
    ]


@with_e2fsprogs
def test_a_disk_that_fails(archives: list[Path], tmp_path: Path) -> None:
    """From then on every system call gets an input/output error (EXT4_IOC_SHUTDOWN)."""
    image = ext4_image(tmp_path)
    found = inside(
        archives, tmp_path / "root", f"mount -o loop {image} {{root}}",
        """
import fcntl
root.chmod(0o700)
prefix = stage(archives[0], root).prefix
def shut_down():
    fd = os.open(root, os.O_RDONLY)
    fcntl.ioctl(fd, 0x8004587D, b"\\2\\0\\0\\0")
    os.close(fd)
after_folders(shut_down)
print(json.dumps([fails(stage, archives[1], root), fails(stage, archives[1], root), gc.gc(root, max_size_bytes=0)]))
""",
    )  # fmt: skip
    first, second, removed = found
    folder, host = tmp_path / "root" / f"mpiboot-{os.geteuid()}", os.uname().nodename
    for kind, problem, remedy in (first, second):
        assert kind in ("StageFailedError", "StageRootError") and remedy == root.CHOOSE_ANOTHER
        assert problem.startswith(f"cannot stage in {folder} on {host}: {folder}")
        assert problem.endswith((": Input/output error", ": Read-only file system"))
    assert removed == []


def ext4_image(folder: Path) -> Path:
    """Return an image of a file system with small inodes, which keep whole seconds."""
    image = folder / "image"
    image.write_bytes(bytes(8 << 20))
    if not Path("/dev/loop-control").exists():
        pytest.skip("no loop devices")
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", image], capture_output=True, check=True)
    return image


@with_e2fsprogs
def test_leftovers_that_cannot_be_removed_block_nothing(archives: list[Path], tmp_path: Path) -> None:
    """An immutable file, and a mount point, as busy as a `.nfs…` file that another process has open."""
    found = inside(
        archives, tmp_path / "root", tmpfs(4000),
        """
first = stage(archives[0], root).prefix
for name in (".tmp-immutable", ".tmp-busy"):
    (own / name / "a").mkdir(parents=True)
    (own / name / "z").touch()
(own / ".tmp-immutable" / "a" / "file").touch()
subprocess.run(["chattr", "+i", own / ".tmp-immutable" / "a" / "file"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", own / ".tmp-busy" / "a"], check=True)
reused = stage(archives[0], root).reused
staged = stage(archives[1], root).prefix
age(first, 1)
removed = [path.name for path in gc.gc(root)]
print(json.dumps([reused, names(), staged.name, removed, first.name, os.listdir(own / ".tmp-busy")]))
subprocess.run(["chattr", "-i", own / ".tmp-immutable" / "a" / "file"], check=True)
""",
    )  # fmt: skip
    reused, left, staged, removed, first, rest = found
    assert reused
    assert left == sorted([".tmp-busy", ".tmp-immutable", staged])
    assert (removed, rest) == ([first], ["a"])


@with_e2fsprogs
def test_a_stage_with_an_immutable_file_is_no_traceback(archives: list[Path], tmp_path: Path) -> None:
    found = inside(
        archives, tmp_path / "root", tmpfs(4000),
        """
prefix = stage(archives[0], root).prefix
(prefix / "share" / "extra").touch()
subprocess.run(["chattr", "+i", prefix / "share" / "extra"], check=True)
refused = fails(stage, archives[0], root)
age(prefix, 1)
removed = len(gc.gc(root))
subprocess.run(["sh", "-c", f"chattr -i {own}/*/share/extra {own}/.tmp-*/share/extra"], stderr=subprocess.DEVNULL)
result = stage(archives[0], root)
verify(result.prefix)
print(json.dumps([refused, removed, names(), result.prefix.name]))
""",
    )  # fmt: skip
    (kind, problem, remedy), removed, left, new = found
    assert kind == "StageFailedError" and "share/extra: Operation not permitted" in problem
    assert "lsattr" in remedy
    assert (removed, left) == (1, [new])


@with_e2fsprogs
def test_a_file_system_that_keeps_whole_seconds(archives: list[Path], tmp_path: Path) -> None:
    image = ext4_image(tmp_path)
    found = inside(
        archives, tmp_path / "root", f"mount -o loop {image} {{root}}",
        """
root.chmod(0o700)
prefix = stage(archives[0], root).prefix
seconds = (prefix / "share" / "filler").stat().st_mtime_ns % 10**9
again = stage(archives[0], root).reused
verify(prefix)
os.utime(prefix / "share" / "filler", (1, 1))
mended = stage(archives[0], root)
newer = stage(archives[1], root)
verify(newer.prefix)
print(json.dumps([seconds, again, mended.repaired, newer.linked > 5]))
""",
    )  # fmt: skip
    assert found == [0, True, 1, True]


@pytest.mark.parametrize(
    ("limit", "value", "why", "remedy"),
    [
        (
            "RLIMIT_FSIZE",
            100_000,
            "File too large",
            "Raise the limit on the size of files: ulimit -f unlimited",
        ),
        ("RLIMIT_NOFILE", 7, "Too many open files", "Raise the limit on open files: ulimit -n 4096"),
    ],
)
def test_limits(archives: list[Path], tmp_path: Path, limit: str, value: int, why: str, remedy: str) -> None:
    found = inside(
        archives, tmp_path, "true",
        f"""
extract.writers.may_fork = lambda: False
def lower():
    resource.setrlimit(resource.{limit}, ({value}, limits[1]))
limits = resource.getrlimit(resource.{limit})
after_folders(lower)
refused = fails(stage, archives[0], root)
resource.setrlimit(resource.{limit}, limits)
print(json.dumps([refused, names()]))
""",
    )  # fmt: skip
    assert found[1] == []
    assert found[0][0] == "StageFailedError" and found[0][2] == remedy
    folder = tmp_path / f"mpiboot-{os.geteuid()}"
    assert found[0][1].startswith(f"cannot stage in {folder} on {os.uname().nodename}: {folder}")
    assert found[0][1].endswith(f": {why}")


def test_a_root_that_vanishes(archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envpack.stage.extract import Extractor

    make = Extractor.make_folders

    def vanish(self: Extractor, folders: range) -> None:
        make(self, folders)
        temporaries.remove_tree(tmp_path / "root")

    (tmp_path / "root").mkdir()
    monkeypatch.setattr(Extractor, "make_folders", vanish)
    with pytest.raises(
        StageFailedError, match=r"root/mpiboot-\d+/.*: No such file or directory\. Something has removed"
    ):
        stage(archives[0], tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_path_that_is_too_long(archives: list[Path], tmp_path: Path) -> None:
    here = Path.cwd()
    deep = tmp_path
    try:
        while len(str(deep)) < 3980:
            os.chdir(deep)
            deep = deep / ("x" * 200)
            Path(deep.name).mkdir()
    finally:
        os.chdir(here)
    with pytest.raises(EnvpackError, match=r"(File name too long|shorter path)") as raised:
        stage(archives[0], deep)
    assert "shorter path" in raised.value.remedy or isinstance(raised.value, StageRootError)


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.ENOSPC, NoSpaceError, "Choose a folder with more room: --root or MPIBOOT_STAGE_ROOT"),
        (errno.EDQUOT, NoSpaceError, "Choose a folder with more room: --root or MPIBOOT_STAGE_ROOT"),
        (errno.EROFS, StageRootError, root.CHOOSE_ANOTHER),
        (errno.EACCES, StageFailedError, "Check whom it belongs to: ls -ld '/a root'"),
        (
            errno.EPERM,
            StageFailedError,
            "Check whom it belongs to, and whether it is immutable: ls -ld '/a root'; lsattr -d '/a root'",
        ),
        (errno.EIO, StageFailedError, root.CHOOSE_ANOTHER),
        (errno.ESTALE, StageFailedError, "Its file server has restarted or lost it: stage again"),
        (
            errno.ENAMETOOLONG,
            StageFailedError,
            "Choose a staging root with a shorter path: --root or MPIBOOT_STAGE_ROOT",
        ),
        (errno.ENOMEM, StageFailedError, "Ask for more memory per node, or stage with fewer --jobs"),
    ],
)
def test_what_an_error_number_means(number: int, kind: type[EnvpackError], remedy: str) -> None:
    for name, shown in (("", ""), (b"lib/x", "/lib/x"), ("/elsewhere", "")):
        with pytest.raises(kind) as raised, root.named_errors(Path("/a root")):
            raise OSError(number, os.strerror(number), name or None)
        path = name if name == "/elsewhere" else f"/a root{shown}"
        assert raised.value.problem == (
            f"cannot stage in /a root on {os.uname().nodename}: {path}: {os.strerror(number)}"
        )
        assert raised.value.remedy == remedy


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "utime", "link", "symlink", "rename"])
def test_every_failed_system_call_is_named(
    call: str, archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In threads and in processes; nothing is left."""
    real = getattr(os, call)

    def fail(*args: Any, **options: Any) -> Any:
        below = options.keys() & {"dir_fd", "dst_dir_fd"} or isinstance(args[0], int)
        if below or ".tmp-" in os.fspath(args[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **options)

    for may_fork in (False,) if call == "write" else (False, True):
        monkeypatch.setattr("envpack.stage.writers.may_fork", lambda may=may_fork: may)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(
                StageFailedError,
                match=rf"cannot stage in .* on {os.uname().nodename}: {tmp_path}/.*put/output",
            ):
                stage(archives[0], tmp_path)
        assert stages(tmp_path) == []
    assert verify(stage(archives[0], tmp_path).prefix)
