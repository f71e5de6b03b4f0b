"""Packing again: the same content has the same id, and what has not changed is copied from the older archive."""

from __future__ import annotations

import compileall
import importlib.util
import marshal
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from envpack_trees import SITE, make_venv

import envpack.pack.archive_writer
import envpack.pack.frame_writer
import envpack.pack.older
import envpack.pack.packing
import envpack.pack.pyc
import envpack.pack.walk
from envpack.archive.damage import is_damaged
from envpack.archive.encoding import read_index
from envpack.archive.index import Index
from envpack.pack.frame_writer import FrameWriter, Piece, cut
from envpack.pack.members import FILE, Member
from envpack.pack.packing import PackResult, pack
from envpack.stage.staging import stage
from envpack.stage.verify import verify

pytestmark = pytest.mark.usefixtures("small_base")
# What an index says of the packing alone.
_OF_PACKING = ("made_at", "fingerprint", "fingerprint_s")


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A venv with many small frames, whose files need not be old to be trusted."""
    monkeypatch.setenv("MPIBOOT_HOME", os.fspath(tmp_path / "home"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(envpack.pack.older, "CLOCK_STEP_S", 0.0)
    for module in (envpack.pack.frame_writer, envpack.pack.archive_writer):
        monkeypatch.setattr(module, "FRAME_BYTES", 1 << 16)
    monkeypatch.setattr(envpack.pack.frame_writer, "_CUT_BYTES", 1 << 13)
    return make_venv(tmp_path / "env")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The members of which something was read."""
    paths: list[bytes] = []
    original = FrameWriter._read

    def noting(writer: FrameWriter, piece: Piece) -> bytes:
        paths.append(piece.member.path)
        return original(writer, piece)

    monkeypatch.setattr(FrameWriter, "_read", noting)
    return paths


def columns(index: Index) -> dict[str, object]:
    """Return all that an index says of the content."""
    meta = {key: value for key, value in index.meta.items() if key not in _OF_PACKING}
    copying = {key: value for key, value in meta.pop("copying").items() if key in ("edited", "rigid")}
    names = (name for name in Index.__slots__ if name not in ("meta", "path", "raw"))
    return {**{name: getattr(index, name) for name in names}, **meta, **copying}


def neighbours(index: Index, path: bytes) -> set[bytes]:
    """Return the files of the frame that holds a file."""
    member = index.paths.index(path)
    ends, at = [], 0
    for size in index.frame_raw_sizes:
        at += size
        ends.append(at)
    end = next(end for end in ends if end > index.offsets[member])
    start = max([0, *(each for each in ends if each < end)])
    return {index.paths[n] for n in index.files if start <= index.offsets[n] < end}


def test_same_content_same_bytes(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 names of the prefix, one thread and eight, folders listed in another order."""
    for n in range(200):
        (tmp_path / f"name-{n}").symlink_to(prefix)
        script = prefix / "bin" / f"script-{n}"
        script.write_text(f"#!{tmp_path}/name-{n}/bin/python\n")
        script.chmod(0o755)
    first = pack(prefix, tmp_path / "1.tar.zst", jobs=1)
    listing = envpack.pack.walk._Walker._read_folder

    def shuffled(walker: envpack.pack.walk._Walker, source: bytes) -> Iterator[object]:
        entries = list(listing(walker, source))
        random.shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(envpack.pack.walk._Walker, "_read_folder", shuffled)
    second = pack(prefix, tmp_path / "2.tar.zst", jobs=8)
    one, two = read_index(first.path), read_index(second.path)
    assert len(one.meta["placeholders"]) > 200
    assert one.pack_id == two.pack_id and columns(one) == columns(two)
    frames = [path.read_bytes()[: one.archive_bytes] for path in (first.path, second.path)]
    assert frames[0] == frames[1]
    meta = [{**index.meta, "made_at": 0} for index in (one, two)]
    assert meta[0] == meta[1]


def test_an_inserted_member_changes_the_frames_around_it() -> None:
    chooser = random.Random(1)

    def member() -> Member:
        size = min(3_000_000, int(chooser.paretovariate(0.6) * 1000))
        return Member(b"lib/%x" % chooser.getrandbits(64), FILE, size=size)

    members = sorted((member() for _ in range(20_000)), key=lambda each: each.path)
    before = frames_of(members)
    changed = []
    for _ in range(50):
        after = frames_of(sorted([*members, member()], key=lambda each: each.path))
        changed.append(len(after - before))
    assert max(changed) <= 12 and sum(changed) / len(changed) < 5
    # Frames are well filled: few frames cost a node less.
    assert sum(piece[2] for frame in before for piece in frame) / len(before) > 600_000


def frames_of(members: list[Member]) -> set[tuple[tuple[bytes, int, int], ...]]:
    return {tuple((p.member.path, p.start, p.length) for p in frame) for frame in cut(members)}


def test_a_touched_file_keeps_the_pack_id(prefix: Path, read: list[bytes]) -> None:
    first = pack(prefix)
    old = read_index(first.path)
    source = prefix / SITE / "demo" / "__init__.py"
    os.utime(source, (10**9, 10**9))
    read.clear()
    second = pack(prefix)
    new = read_index(second.path)
    assert (second.pack_id, second.path, second.reused) == (first.pack_id, first.path, False)
    path = os.fsencode(source.relative_to(prefix))
    number = new.paths.index(path)
    assert (old.mtimes_ns[number] != 10**18) and new.mtimes_ns[number] == 10**18
    # Its frame was read, and that of its bytecode, which is compiled anew.
    pyc = path.replace(
        b"__init__.py", b"__pycache__/__init__.cpython-%d%d.pyc" % tuple(new.meta["python"]["version"])
    )
    assert set(read) == neighbours(new, path) | neighbours(new, pyc)
    assert second.frames_copied == len(new.frame_sizes) - 3
    verify(second.path)


def test_bytecode_that_an_import_makes_keeps_the_pack_id(prefix: Path, tmp_path: Path) -> None:
    package = prefix / SITE / "demo"
    shutil.rmtree(package / "__pycache__")
    package.chmod(0o775)
    first = pack(prefix, tmp_path / "1.tar.zst")
    umask = os.umask(0o002)
    try:
        compileall.compile_dir(package, quiet=1)
    finally:
        os.umask(umask)
    assert pack(prefix, tmp_path / "2.tar.zst").pack_id == first.pack_id


def changed(prefix: Path) -> None:
    """Install, edit, remove."""
    for n in range(3):
        (prefix / SITE / f"added_{n}.py").write_text(f"WHERE = {str(prefix)!r}\n")
    (prefix / SITE / "demo" / "config.py").write_text("PREFIX = None\n")
    (prefix / SITE / "demo" / "data" / "empty").unlink()


@pytest.mark.parametrize("rules", [None, "other"])
def test_a_delta_is_what_a_full_pack_makes(
    rules: str | None, prefix: Path, tmp_path: Path, read: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (prefix / SITE / "demo" / "data" / "large").write_bytes(os.urandom(300_000) + os.fsencode(prefix))
    pack(prefix)
    changed(prefix)
    everything = set(pack_anew(prefix, tmp_path / "full.tar.zst", read))
    if rules:
        monkeypatch.setattr(envpack.pack.packing, "rules", lambda collected: rules)
    read.clear()
    delta = pack(prefix)
    index = read_index(delta.path)
    assert columns(index) == columns(read_index(tmp_path / "full.tar.zst"))
    assert (
        delta.path.read_bytes()[: index.archive_bytes]
        == ((tmp_path / "full.tar.zst").read_bytes()[: index.archive_bytes])
    )
    assert delta.frames_copied > len(index.frame_sizes) / 2
    # Unread, if the rules are the same; in any case not compressed.
    assert set(read) == everything if rules else len(set(read)) < len(everything) / 4
    verify(delta.path)


def pack_anew(prefix: Path, output: Path, read: list[bytes]) -> list[bytes]:
    read.clear()
    assert pack(prefix, output).frames_copied == 0
    return list(read)


def test_an_edit_that_restores_size_and_time_is_packed(prefix: Path, tmp_path: Path) -> None:
    pack(prefix)
    source = prefix / SITE / "demo" / "__init__.py"
    times = source.stat()
    source.write_text("VALUE = 43\n")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = pack(prefix)
    assert second.frames_copied > 0
    staged = stage(second.path, tmp_path).prefix
    assert (staged / SITE / "demo" / "__init__.py").read_text() == "VALUE = 43\n"


def test_what_changed_just_before_is_read_again(
    prefix: Path, read: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system counts time in steps; what changes twice in one of them keeps its times."""
    monkeypatch.setattr(envpack.pack.older, "CLOCK_STEP_S", 3600.0)
    pack(prefix)
    (prefix / "share" / "new").touch()
    read.clear()
    result = pack(prefix)
    assert os.fsencode(SITE / "demo" / "__init__.py") in read
    assert result.frames_copied > 0


@pytest.mark.parametrize("where", ["copied unread", "compared", "bytecode"])
def test_damage_of_the_older_archive_is_not_copied(
    where: str, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (prefix / SITE / "demo" / "__pycache__").iterdir():
        path.unlink()
    first = pack(prefix)
    index = read_index(first.path)
    if where == "compared":
        monkeypatch.setattr(envpack.pack.packing, "rules", lambda collected: "other")
    frame = len(index.frame_sizes) // 2
    if where == "bytecode":
        at = index.offsets[next(n for n in index.bytecode if b"/demo/" in index.paths[n])]
        frame = next(n for n in range(len(index.frame_sizes)) if sum(index.frame_raw_sizes[: n + 1]) > at)
    data = bytearray(first.path.read_bytes())
    data[index.frame_starts()[frame] + index.frame_sizes[frame] // 2] ^= 1
    first.path.write_bytes(data)
    (prefix / "share" / "new").touch()
    second = pack(prefix)
    assert second.frames_copied == 0 and is_damaged(first.path)
    verify(second.path)
    assert pack(prefix) == PackResult(
        **{**vars(second), "reused": True, "seconds": pytest.approx(0, abs=60), "frames_copied": 0}
    )


def test_bytecode_is_compiled_once(prefix: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (prefix / SITE / "demo" / "__pycache__").iterdir():
        path.unlink()
    started: list[bytes] = []
    start = envpack.pack.pyc.Compiler._start

    def noting(compiler: envpack.pack.pyc.Compiler, sources: list[Member]) -> None:
        started.extend(source.path for source in sources)
        start(compiler, sources)

    monkeypatch.setattr(envpack.pack.pyc.Compiler, "_start", noting)
    pack(prefix)
    assert os.fsencode(SITE / "demo" / "config.py") in started
    started.clear()
    os.utime(prefix / SITE / "demo" / "config.py")  # the code is the same, but its header is not
    (prefix / SITE / "demo" / "__init__.py").write_text("VALUE = 4\n")
    result = pack(prefix)
    assert started == [os.fsencode(SITE / "demo" / "__init__.py")]
    index = read_index(result.path)
    assert columns(index) == columns(read_index(pack(prefix, tmp_path / "full.tar.zst").path))


def test_each_source_gets_its_own_bytecode(prefix: Path, tmp_path: Path) -> None:
    """Sources and their `.pyc` files are not sorted alike: a/b.py < a/b/x.py < a/c.py."""
    package = prefix / SITE / "demo"
    (package / "config").mkdir()
    names = ["config", "config/x", "config/y", "data", "main"]
    for name in names:
        (package / f"{name}.py").write_text(f"NAME = {name!r}\n")
    staged = stage(pack(prefix, jobs=3).path, tmp_path).prefix
    for name in names:
        source = staged / SITE / "demo" / f"{name}.py"
        pyc = Path(importlib.util.cache_from_source(os.fspath(source)))
        assert marshal.loads(pyc.read_bytes()[16:]).co_consts[0] == name


def test_force_copies_nothing(prefix: Path) -> None:
    first = pack(prefix)
    forced = pack(prefix, force=True)
    assert (forced.reused, forced.frames_copied, forced.path) == (False, 0, first.path)
