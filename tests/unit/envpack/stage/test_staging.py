"""Staging: whole or not at all, once per node, safe in a folder where others write."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from envpack_trees import SITE, make_venv, staged_tree, stages, tree

import envpack.pack.archive_writer
import envpack.pack.frame_writer
import envpack.stage.gc
import envpack.stage.marker
import envpack.stage.root
import envpack.stage.stager
import envpack.stage.temporaries
import envpack.stage.writers
from envpack.archive.encoding import read_index
from envpack.common.locks import hold_folder
from envpack.common.places import staged_prefix
from envpack.errors import (
    EnvpackError,
    NoSpaceError,
    StageFailedError,
    StageRootError,
    WrongArchiveError,
)
from envpack.pack.packing import pack
from envpack.stage import arrival
from envpack.stage.stager import Stager, StageResult
from envpack.stage.staging import stage, stage_arriving

BYTECODE = SITE / "demo" / "__pycache__" / f"config.{sys.implementation.cache_tag}.pyc"
SPANNING_BYTES = 200_000


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = make_venv(tmp_path_factory.mktemp("stage") / "env")
    large = random.Random(1).randbytes(SPANNING_BYTES)
    (prefix / "share" / "large.bin").write_bytes(large)
    # A text that spans frames, and names the prefix at their borders.
    line = f"{prefix}/share/{'x' * 101}\n"
    (prefix / "share" / "large.txt").write_text(line * (SPANNING_BYTES // len(line)))
    for n in range(300):
        (prefix / "share" / f"small-{n}").write_text(f"{n}\n" * n)
    return prefix


@pytest.fixture(scope="module")
def archive(prefix: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # Many frames, and files that span several of them, in little time.
        for module in (envpack.pack.frame_writer, envpack.pack.archive_writer):
            patch.setattr(module, "FRAME_BYTES", 1 << 16)
        path = pack(prefix, prefix.parent / "env.tar.zst", level=1).path
    assert len(read_index(path).frame_sizes) > 10
    return path


def expected_tree(source: Path, staged: Path) -> dict[bytes, tuple[object, ...]]:
    """Return what staging makes of `source`: every text that names it, names the staged prefix."""
    old, new = os.fsencode(source), os.fsencode(staged)
    expected = {}
    for path, entry in tree(source).items():
        if entry[0] == "link" or (entry[0] == "file" and b"\0" not in entry[1]):  # type: ignore[operator]
            entry = (entry[0], entry[1].replace(old, new), *entry[2:])  # type: ignore[attr-defined]
        expected[path] = entry
    return expected


def comparable(prefix: Path) -> dict[bytes, tuple[object, ...]]:
    """Return a staged tree without what was compiled on the node: two compilations may differ in their bytes."""
    found = staged_tree(prefix)
    del found[os.fsencode(BYTECODE)]
    return found


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_staged_prefix_is_the_source_prefix_relocated(
    prefix: Path, archive: Path, tmp_path: Path, jobs: int
) -> None:
    result = stage(archive, tmp_path, jobs=jobs)
    index = read_index(archive)
    assert result.prefix == tmp_path / f"mpiboot-{os.geteuid()}" / f"env-{index.pack_id[:16]}"
    assert result.prefix == staged_prefix(tmp_path, index.pack_id, "env")
    expected = expected_tree(prefix, result.prefix)
    del expected[os.fsencode(BYTECODE)]
    assert comparable(result.prefix) == expected
    data = result.prefix / SITE / "demo" / "data"
    assert (data / "read-only").samefile(data / "second-name")
    assert run(result.prefix / "bin" / "demo") == f"{result.prefix} 42\n"
    assert result == result._replace(
        reused=False, jobs=jobs, transport="direct", files=len(index) - len(index.folders),
        size_bytes=index.size_bytes, bytes_read=archive.stat().st_size, pack_id=index.pack_id,
    )  # fmt: skip
    assert stages(tmp_path) == [result.prefix.name]


def test_relocated_sources_have_valid_bytecode(prefix: Path, archive: Path, tmp_path: Path) -> None:
    staged = stage(archive, tmp_path).prefix
    code = "import demo.config as c; print(c.PREFIX, c.__cached__)"
    prefix_, cached = run(staged / "bin" / "python", "-c", code).split()
    assert prefix_ == os.fspath(staged)
    before = Path(cached).stat()
    run(staged / "bin" / "python", "-c", code)
    after = Path(cached).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert os.fsencode(prefix) not in Path(cached).read_bytes()


def test_a_node_that_has_it_uses_it(archive: Path, tmp_path: Path) -> None:
    first = stage(archive, tmp_path)
    inode = first.prefix.stat().st_ino
    second = stage(archive, tmp_path)
    assert (first.reused, second.reused) == (False, True)
    assert second.prefix == first.prefix and second.prefix.stat().st_ino == inode
    assert second.bytes_read < archive.stat().st_size / 10
    assert second.mb_per_s == 0 < first.mb_per_s


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "share" / "small-7").unlink(),
        lambda p: (p / "share" / "small-7").write_text("another size"),
        lambda p: (p / SITE / "demo" / "data" / "relative").unlink(),
        lambda p: (p / SITE / "demo" / "data" / "hollow").rmdir(),
        lambda p: (p / "bin" / "python").unlink(),
        lambda p: envpack.stage.marker.marker_path(p).unlink(),
        lambda p: envpack.stage.marker.marker_path(p).write_text("{"),
        lambda p: p.rename(p.with_name("elsewhere")) and p.symlink_to("elsewhere"),
        lambda p: p.rename(p.with_name("elsewhere")) and p.write_text("a file"),
    ],
    ids=range(9),
)
def test_a_stage_that_has_lost_something_is_made_again(damage, archive: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = stage(archive, tmp_path)
    whole = comparable(first.prefix)
    damage(first.prefix)
    again = stage(archive, tmp_path)
    assert not again.reused and again.prefix == first.prefix
    assert comparable(first.prefix) == whole and not first.prefix.is_symlink()
    assert stage(archive, tmp_path).reused


def test_a_stage_from_before_a_reboot_is_made_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(archive, tmp_path)
    monkeypatch.setattr(envpack.stage.marker, "boot_id", lambda: "another boot")
    assert not stage(archive, tmp_path).reused


def test_a_stage_in_use_is_mended_in_place(archive: Path, tmp_path: Path) -> None:
    first = stage(archive, tmp_path)
    whole = comparable(first.prefix)
    in_use = hold_folder(first.prefix)
    inode = first.prefix.stat().st_ino
    kept = (first.prefix / "share" / "small-8").stat().st_ino
    (first.prefix / "share" / "small-7").unlink()
    (first.prefix / "bin" / "python").unlink()
    assert not stage(archive, tmp_path).reused
    os.close(in_use)
    assert first.prefix.stat().st_ino == inode
    assert (first.prefix / "share" / "small-8").stat().st_ino == kept
    assert comparable(first.prefix) == whole
    assert stage(archive, tmp_path).reused
    assert stages(tmp_path) == [first.prefix.name]


def test_two_at_once_make_one(archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "envpack", "stage", archive, "--root", tmp_path, "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0] * 4
    assert sorted('"reused": true' in output for output in outputs) == [False, True, True, True]


def test_one_waits_for_the_other_no_longer_than_it_may(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(archive)
    with Stager(index, tmp_path):
        monkeypatch.setattr(envpack.stage.stager, "LOCK_TIMEOUT_S", 0.1)
        with pytest.raises(
            StageFailedError, match=rf"process {os.getpid()} of .* holds .*lock-env-.*; waited 0 s"
        ):
            stage(archive, tmp_path)
    assert stages(tmp_path) == []


def test_a_stager_killed_at_any_moment_leaves_nothing_that_counts(archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "envpack", "stage", archive, "--root", tmp_path]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began
    prefix = stage(archive, tmp_path).prefix
    whole = comparable(prefix)
    killed = 0
    for n in range(12):
        envpack.stage.temporaries.remove_tree(prefix)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(took * (0.15 + 0.9 * n / 12))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if prefix.exists():
            assert comparable(prefix) == whole
    assert killed > 3
    stage(archive, tmp_path)
    assert comparable(prefix) == whole
    assert stages(tmp_path) == [prefix.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stager_told_to_end_removes_what_it_wrote(number: int, archive: Path, tmp_path: Path) -> None:
    code = (
        # Whoever runs the tests in the background hands on an ignored SIGINT, or SIGHUP.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "import sys, time, envpack.stage.extract as e, envpack.cli as c\n"
        "old = e.Extractor._write_frame\n"
        "def slow(*a):\n    old(*a); print(flush=True); time.sleep(0.3)\n"
        "e.Extractor._write_frame = slow\n"
        f"sys.exit(c.main(['stage', {str(archive)!r}, '--root', {str(tmp_path)!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert stages(tmp_path) == []


def test_leftovers_are_swept_if_their_owner_is_dead(archive: Path, tmp_path: Path) -> None:
    folder = envpack.stage.root.open_root(tmp_path)
    dead, fd = envpack.stage.temporaries.make_temporary(folder, "dead")
    os.close(fd)
    (dead / "read-only").mkdir(mode=0o500)
    alive, alive_fd = envpack.stage.temporaries.make_temporary(folder, "alive")
    prefix = stage(archive, tmp_path).prefix
    assert stages(tmp_path) == sorted([alive.name, prefix.name])
    os.close(alive_fd)


# ---- an archive that is still arriving


class Writer:
    """The process that writes the growing file."""

    def __init__(self, archive: Path, folder: Path) -> None:
        index = read_index(archive)
        self.frames = archive.read_bytes()[: index.archive_bytes]
        self.content = arrival.head(index.raw) + index.raw + self.frames
        self.file = (folder / "growing").open("wb", buffering=0)
        self.reader = os.open(folder / "growing", os.O_RDONLY)
        self.pipe, self.end = os.pipe()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.stop()
        os.close(self.reader)
        os.close(self.pipe)

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Let another process write, a bit at a time."""
        (folder / "content").write_bytes(self.content)
        code = (
            "import sys, time; data = open(sys.argv[1], 'rb').read(); step = len(data) // 50\n"
            "for at in range(0, len(data), step):\n"
            "    sys.stdout.buffer.write(data[at : at + step]); sys.stdout.flush(); time.sleep(0.005)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, folder / "content"], stdout=self.file, pass_fds=[self.end]
        )
        self.stop()
        return process

    def stop(self) -> None:
        if self.end >= 0:
            os.close(self.end)
            self.end = -1

    def stage(self, archive: Path, root: Path, **options: object) -> StageResult:
        return stage_arriving(
            arrival.Arrival(self.reader, self.pipe),
            archive,
            root,
            **{"begin": id, **options},  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("in_threads", [False, True], ids=["processes", "threads"])
def test_frames_are_staged_as_they_arrive(
    prefix: Path, archive: Path, tmp_path: Path, jobs: int, in_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    if in_threads:
        monkeypatch.setattr(envpack.stage.writers, "may_fork", lambda: False)
    with Writer(archive, tmp_path) as writer:
        process = writer.start(tmp_path)
        result = writer.stage(archive, tmp_path, jobs=jobs, transport="tree", begin=seen.append)
        assert process.wait() == 0
        again = writer.stage(archive, tmp_path)
    assert [index.pack_id for index in seen] == [result.pack_id]
    assert (result.transport, result.bytes_read) == ("tree", archive.stat().st_size)
    assert (result.reused, again.reused) == (False, True)
    expected = expected_tree(prefix, result.prefix)
    del expected[os.fsencode(BYTECODE)]
    assert comparable(result.prefix) == expected


@pytest.mark.parametrize("arrived", [0, 10, 1000, 0.5, -1])
def test_a_writer_that_gives_up_midway(archive: Path, tmp_path: Path, arrived: float) -> None:
    with Writer(archive, tmp_path) as writer:
        size = int(len(writer.content) * arrived) if isinstance(arrived, float) else arrived
        writer.file.write(writer.content[:size])
        writer.stop()
        count = len(writer.content[:size])
        with pytest.raises(
            StageFailedError, match=f"{count} bytes of the archive have arrived on .*nothing more"
        ):
            writer.stage(archive, tmp_path, jobs=2)
    assert stages(tmp_path) == []


def test_a_writer_that_stops(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "NOTHING_NEW_S", 0.1)
    with Writer(archive, tmp_path) as writer:
        writer.file.write(writer.content[:-1])
        with pytest.raises(StageFailedError, match=r"then nothing came for 0 s"):
            writer.stage(archive, tmp_path, jobs=1)
    assert stages(tmp_path) == []


def test_an_archive_replaced_since_it_was_packed(archive: Path, tmp_path: Path) -> None:
    index = read_index(archive)
    assert not stage(archive, tmp_path, expected_pack_id=index.pack_id).reused
    with pytest.raises(
        WrongArchiveError, match=r"env.tar.zst is not the expected archive: .* expected was 000"
    ):
        stage(archive, tmp_path, expected_pack_id="0" * 64)


# ---- the staging root


def own(root: Path) -> Path:
    return root / f"mpiboot-{os.geteuid()}"


def test_our_folder_is_ours_alone(archive: Path, tmp_path: Path) -> None:
    os.umask(os.umask(0))
    stage(archive, tmp_path)
    assert stat.S_IMODE(own(tmp_path).stat().st_mode) == 0o700


def test_a_symlink_in_our_folders_place_is_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    own(tmp_path).symlink_to("theirs")
    with pytest.raises(StageRootError, match=r"mpiboot-\d+ on .*: it is a symbolic link"):
        stage(archive, tmp_path)
    assert not list((tmp_path / "theirs").iterdir())


def test_a_file_in_our_folders_place_is_refused(archive: Path, tmp_path: Path) -> None:
    own(tmp_path).write_text("")
    with pytest.raises(StageRootError, match="it is not a directory"):
        stage(archive, tmp_path)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777, 0o1777])
def test_open_modes_are_refused(mode: int, archive: Path, tmp_path: Path) -> None:
    own(tmp_path).mkdir()
    own(tmp_path).chmod(mode)
    with pytest.raises(
        StageRootError,
        match=rf"\(mode {mode:04o}\)\. If you trust its content: chmod 700 /",
    ):
        stage(archive, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to somebody else")
def test_another_owner_is_refused(archive: Path, tmp_path: Path) -> None:
    own(tmp_path).mkdir(mode=0o700)
    os.chown(own(tmp_path), 12345, -1)
    with pytest.raises(StageRootError, match=r"it belongs to uid 12345, not to root \(uid 0\)"):
        stage(archive, tmp_path)


def test_a_root_where_everybody_may_replace_files_is_refused(archive: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StageRootError, match="without the sticky bit"):
        stage(archive, tmp_path)
    tmp_path.chmod(0o1777)
    stage(archive, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text(""), "it is not a directory"),
    ],
)
def test_no_root(make, message: str, archive: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "root")
    with pytest.raises(
        StageRootError, match=rf"cannot stage below .*root on .*{message}.*--root or MPIBOOT_STAGE"
    ):
        stage(archive, tmp_path / "root")


class Limits:
    """What statvfs says."""

    def __init__(self, **values: int) -> None:
        self.__dict__.update(
            {"f_flag": 0, "f_frsize": 4096, "f_bavail": 10**9, "f_files": 10**9, "f_favail": 10**9} | values
        )


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"f_flag": os.ST_RDONLY}, StageRootError, "it is mounted read-only"),
        ({"f_flag": os.ST_NOEXEC}, StageRootError, "it is mounted noexec"),
        (
            {"f_bavail": 100},
            NoSpaceError,
            r"no space .*: the copy takes [\d.]+ MB, 0.4 MB are free\. Choose a folder with more room: --root or MPIB",
        ),
        (
            {"f_favail": 100},
            NoSpaceError,
            r"no space .*: the copy has \d+ files, the file system has 100 inodes",
        ),
    ],
)
def test_what_is_known_before_is_said_before(
    limits: dict[str, int],
    error: type[EnvpackError],
    message: str,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Limits(**limits))
    with pytest.raises(error, match=message):
        stage(archive, tmp_path)
    assert stages(tmp_path) == []


def test_a_file_system_that_counts_no_inodes(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Limits(f_files=0, f_favail=0))
    stage(archive, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(archive: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSpaceError, match=r"the copy takes [\d.]+ MB, 1.0 MB are free"):
        stage(archive, small_disk)
    # Filled by somebody else meanwhile.
    monkeypatch.setattr(envpack.stage.gc, "make_room", lambda *_: ())
    with pytest.raises(
        NoSpaceError, match=r"no space below .*: No space left on device while writing\. Choose"
    ):
        stage(archive, small_disk)
    assert stages(small_disk) == []


def test_a_restrictive_umask_changes_no_mode(prefix: Path, archive: Path, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        staged = stage(archive, tmp_path).prefix
    finally:
        os.umask(old)
    for name in ("bin/demo", "pyvenv.cfg", "share/large.bin", "share/small-1"):
        assert (staged / name).stat().st_mode == (prefix / name).stat().st_mode


# ---- results, progress


def test_progress_ends_at_the_total(archive: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    stage(archive, tmp_path, progress=lambda done, total: seen.append((done, total)))
    total = sum(read_index(archive).frame_raw_sizes)
    assert seen[-1] == (total, total) and seen == sorted(seen)


def test_a_result_as_json() -> None:
    result = StageResult(Path("/tmp/x"), "ab", False, 2.0, 3_000_000, 5, 100, "direct", 2, "n1")
    assert result.to_json() == (
        '{"prefix": "/tmp/x", "pack_id": "ab", "reused": false, "seconds": 2.0, "size_bytes": 3000000, "files": 5, '
        '"bytes_read": 100, "transport": "direct", "jobs": 2, "host": "n1", "linked": 0, "repaired": 0, "evicted": [], '
        '"mb_per_s": 1.5}'
    )


@pytest.mark.parametrize("jobs", [0, -1])
def test_senseless_jobs(jobs: int, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        stage(archive, tmp_path, jobs=jobs)


def test_no_thread_is_left(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envpack.stage.writers, "may_fork", lambda: False)
    before = threading.active_count()
    with Writer(archive, tmp_path) as writer:
        writer.file.write(writer.content[: len(writer.content) // 2])
        writer.stop()
        with pytest.raises(StageFailedError):
            writer.stage(archive, tmp_path)
    assert threading.active_count() == before
    assert stages(tmp_path) == []
