"""Packing: once, atomically, whatever the names, links and modes; what cannot be packed is said."""

from __future__ import annotations

import compileall
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from envpack_trees import ODD_NAMES, SITE, make_venv, staged_tree, tree

import envpack.pack.archive_writer
import envpack.pack.packing
import envpack.pack.store
from envpack.archive.encoding import read_index
from envpack.errors import BrokenEnvironmentError, EnvpackError, NotAnEnvironmentError
from envpack.pack.collect import Collected
from envpack.pack.members import DIRECTORY, FILE, SYMLINK, Member, header_bytes, tar_header
from envpack.pack.packing import pack, unchanged_archive
from envpack.pack.pyc import _mark_bytecode
from envpack.pack.store import safe_name
from envpack.pack.walk import Walk
from envpack.stage.staging import stage
from envpack.stage.verify import verify

pytestmark = pytest.mark.usefixtures("small_base")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return make_venv(tmp_path / "env")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPIBOOT_HOME", os.fspath(tmp_path / "home"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path / "home"


# ---- once


def test_what_has_not_changed_is_not_packed_again(prefix: Path, home: Path) -> None:
    first = pack(prefix)
    assert first.path.parent.parent == home / "packs"
    assert first.path.name == f"env-{first.pack_id[:16]}.tar.zst"
    inode = first.path.stat().st_ino
    second = pack(prefix)
    assert (first.reused, second.reused) == (False, True)
    assert second == first.__class__(**{**vars(first), "reused": True, "seconds": second.seconds})
    assert second.path.stat().st_ino == inode


def test_what_would_be_used_again(prefix: Path, home: Path) -> None:
    assert unchanged_archive(prefix) is None and not home.exists()
    result = pack(prefix)
    assert unchanged_archive(prefix) == result.path
    (prefix / "share" / "new").touch()
    assert unchanged_archive(prefix) is None


def test_imports_from_the_environment_are_no_change(prefix: Path) -> None:
    pack(prefix)
    (prefix / SITE / "demo" / "__pycache__" / "other.cpython-399.pyc").write_bytes(b"x")
    assert pack(prefix).reused


def put_back(path: Path) -> None:
    info = path.stat()
    path.write_text("VALUE = 43\n")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


CHANGES: list[Callable[[Path], object]] = [
    lambda p: (p / SITE / "demo" / "new.py").write_text(""),
    lambda p: (p / SITE / "demo" / "config.py").unlink(),
    lambda p: (p / SITE / "demo" / "__init__.py").write_text("VALUE = 4200\n"),
    lambda p: put_back(p / SITE / "demo" / "__init__.py"),
    lambda p: (p / "bin" / "demo").chmod(0o700),
    lambda p: (p / SITE / "demo" / "data" / "hollow").rmdir(),
    lambda p: (p / "new-folder").mkdir(),
    lambda p: (p / "bin" / "python3").unlink() or (p / "bin" / "python3").symlink_to("/usr/bin/python3"),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_any_other_change_is(change: Callable[[Path], object], prefix: Path) -> None:
    first = pack(prefix)
    time.sleep(0.01)
    change(prefix)
    second = pack(prefix)
    assert not second.reused and second.pack_id != first.pack_id
    # A job that waits may have been given the first.
    assert first.path.exists() and second.path != first.path
    assert pack(prefix).path == second.path


def test_an_edit_in_place_of_a_file_with_two_names(prefix: Path, tmp_path: Path) -> None:
    """conda and uv link files into their caches; such an edit may restore size and modification time."""
    path = prefix / SITE / "demo" / "__init__.py"
    os.link(path, tmp_path / "cached")
    first = pack(prefix)
    put_back(path)
    second = pack(prefix)
    assert (second.reused, second.pack_id == first.pack_id) == (False, False)
    assert (stage(second.path, tmp_path).prefix / SITE / "demo" / "__init__.py").read_text() == "VALUE = 43\n"


def test_old_archives_go_when_nobody_can_want_them(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for n in range(5):
        (prefix / "share" / "n").write_text("n" * n)
        made.append(pack(prefix, level=1).path)
        os.utime(made[-1], (n, n))
    assert [path.exists() for path in made] == [False, False, True, True, True]
    os.utime(made[2])
    (prefix / "share" / "n").write_text("last")
    made.append(pack(prefix, level=1).path)
    assert [path.exists() for path in made] == [False, False, True, False, True, True]


def test_one_archive_is_the_users_own(prefix: Path, tmp_path: Path) -> None:
    first = pack(prefix, tmp_path / "mine.tar.zst")
    assert first.path == tmp_path / "mine.tar.zst" and not (tmp_path / "home").exists()
    assert pack(prefix, tmp_path / "mine.tar.zst").reused
    assert pack(prefix, tmp_path / "mine.tar.zst", level=read_index(first.path).meta["level"]).reused
    assert not pack(prefix, tmp_path / "mine.tar.zst", level=1).reused
    first.path.write_bytes(b"damaged")
    assert not pack(prefix, tmp_path / "mine.tar.zst").reused
    assert verify(first.path).pack_id == first.pack_id


def test_the_pack_id_names_the_content(prefix: Path, tmp_path: Path) -> None:
    ids = {pack(prefix, tmp_path / f"{level}.tar.zst", level=level).pack_id for level in (1, 9)}
    assert len(ids) == 1
    (prefix / "share" / "x").write_text("x")
    assert pack(prefix, tmp_path / "1.tar.zst").pack_id not in ids


def test_nobody_else_can_read_it(prefix: Path, home: Path) -> None:
    os.umask(os.umask(0))
    path = pack(prefix).path
    assert path.stat().st_mode & 0o777 == 0o600
    assert [folder.stat().st_mode & 0o777 for folder in path.parents[:3]] == [0o700] * 3


def test_the_source_is_only_read(prefix: Path) -> None:
    before = tree(prefix)
    for path in (prefix / SITE / "demo" / "__pycache__").iterdir():
        path.unlink()
    (prefix / SITE / "demo" / "__pycache__").chmod(0o555)
    names = {path for path in tree(prefix) if b"__pycache__/" not in path}
    pack(prefix)
    assert {path for path in before if b"demo/__pycache__/" not in path} == names
    assert not list((prefix / SITE / "demo" / "__pycache__").iterdir())
    (prefix / SITE / "demo" / "__pycache__").chmod(0o755)


# ---- atomically


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_pack_leaves_nothing(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "env.tar.zst"
    first = pack(prefix, output)
    content = output.read_bytes()
    (prefix / "share" / "x").write_text("x")
    for error in (OSError("disk"), KeyboardInterrupt()):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(envpack.pack.archive_writer, "encode_index", fail)
            with pytest.raises((EnvpackError, KeyboardInterrupt)):
                pack(prefix, output)
        assert listed(tmp_path / "out") == ["env.tar.zst"]
        assert output.read_bytes() == content
    assert first.path == output


def test_a_killed_pack_leaves_nothing_for_long(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code = (
        "import time, envpack.pack.archive_writer as w, envpack.pack.packing as p\n"
        "def slow(*a):\n    print(flush=True); time.sleep(60)\n"
        f"w.encode_index = slow\np.pack({str(prefix)!r}, {str(tmp_path / 'out' / 'env.tar.zst')!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    pack(prefix, tmp_path / "out" / "other.tar.zst")
    # The other packer lives, and its file with it.
    assert len(listed(tmp_path / "out")) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(listed(tmp_path / "out")) == 2
    pack(prefix, tmp_path / "out" / "env.tar.zst")
    assert (listed(tmp_path / "out")) == ["env.tar.zst", "other.tar.zst"]


@pytest.mark.parametrize("text", ["less", "same size", "more than before"])
def test_a_file_that_changes_meanwhile(text: str, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = envpack.pack.packing.collect

    def late(walk: Walk) -> Collected:
        found = collect(walk)
        (prefix / "share" / "log").write_text(text)
        return found

    (prefix / "share" / "log").write_text("some text")
    monkeypatch.setattr(envpack.pack.packing, "collect", late)
    with pytest.raises(BrokenEnvironmentError, match="share/log changed while it was packed"):
        pack(prefix)


# ---- what there is in environments


def test_a_hostile_home(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "home"\nfolder'
    folder.mkdir()
    prefix = make_venv(folder / "my env")
    result = pack(prefix, folder / "a b.tar.zst")
    staged = stage(result.path, tmp_path).prefix
    assert staged.name == f"my_env-{result.pack_id[:16]}"
    assert subprocess.run(
        [staged / "bin" / "demo"], check=True, capture_output=True, text=True
    ).stdout.endswith(" 42\n")
    for name in ODD_NAMES:
        path = os.fsencode(staged / SITE / "demo" / "data") + b"/" + name
        assert Path(os.fsdecode(path)).read_bytes() == b"odd " + name


def test_every_text_names_the_staged_prefix(prefix: Path, tmp_path: Path) -> None:
    staged = stage(pack(prefix).path, tmp_path).prefix
    for path, entry in staged_tree(staged).items():
        if not path.endswith(b".pyc"):
            assert os.fsencode(prefix) not in repr(entry).encode(), path
    assert (staged / SITE / "demo" / "data" / "absolute").readlink() == staged / "pyvenv.cfg"


def test_a_prefix_with_other_names(tmp_path: Path) -> None:
    """A symlinked home: scripts name it as it was called when they were installed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "home-link").symlink_to("real")
    prefix = make_venv(tmp_path / "home-link" / "env")
    (prefix / "share" / "resolved").write_text(f"{tmp_path}/real/env/x\n")
    for given in (prefix, tmp_path / "real" / "env"):
        result = pack(given, tmp_path / "a.tar.zst")
        staged = stage(result.path, tmp_path).prefix
        assert (staged / "bin" / "demo").read_text().startswith(f"#!{staged}/bin/python\n")
        assert (staged / "share" / "resolved").read_text() == f"{staged}/x\n"


def test_sparse_files_over_4_gib(prefix: Path, tmp_path: Path) -> None:
    size = 2**32 + 2**20
    with (prefix / "share" / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(size - 3)
        file.write(b"end")
    result = pack(prefix, level=1)
    staged = stage(result.path, tmp_path).prefix
    with (staged / "share" / "sparse").open("rb") as file:
        assert file.read(8) == b"start\0\0\0"
        file.seek(size - 6)
        assert file.read() == b"\0\0\0end"
    info = (staged / "share" / "sparse").stat()
    assert info.st_size == size and info.st_blocks * 512 < 64 << 20
    large = Member(b"share/sparse", FILE, size=9 * 2**30)
    assert tarfile.TarInfo.frombuf(tar_header(large), "utf-8", "strict").size == large.size


def test_read_only_prefixes(prefix: Path, tmp_path: Path) -> None:
    for folder in (prefix / "share", prefix / SITE / "demo", prefix):
        folder.chmod(0o555)
    try:
        result = pack(prefix)
        index = read_index(result.path)
        # Else neither a stager nor tar could put files there.
        modes = [index.modes[i] for i in index.folders]
        assert modes and all(mode & 0o700 == 0o700 for mode in modes)
        staged = stage(result.path, tmp_path).prefix
        assert os.access(staged / "share", os.W_OK)
        assert (staged / SITE / "demo" / "data" / "read-only").stat().st_mode & 0o777 == 0o444
    finally:
        for folder in (prefix / "share", prefix / SITE / "demo", prefix):
            folder.chmod(0o755)


def test_what_is_no_file_is_left_out(prefix: Path, tmp_path: Path) -> None:
    os.mkfifo(prefix / "share" / "pipe")
    result = pack(prefix)
    assert result.warnings == ("not packed, as neither file, folder nor link: share/pipe",)
    assert not (stage(result.path, tmp_path).prefix / "share" / "pipe").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_file(prefix: Path) -> None:
    (prefix / "share" / "secret").touch(mode=0)
    with pytest.raises(BrokenEnvironmentError, match=r"cannot read .*share/secret: Permission denied"):
        pack(prefix)


def test_a_staged_prefix_can_be_packed(prefix: Path, tmp_path: Path) -> None:
    staged = stage(pack(prefix).path, tmp_path).prefix
    again = pack(staged, tmp_path / "again.tar.zst")
    assert not any((path + b"/").startswith(b".envpack/") for path in read_index(again.path).paths)


# ---- bytecode


def bytecode(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (prefix / SITE / "demo" / "__pycache__").iterdir()}


def imports_write_nothing(prefix: Path) -> bool:
    """Tell whether the bytecode of the demo package is as Python wants it."""
    before = bytecode(prefix)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    code = "import demo.config, demo"
    subprocess.run([prefix / "bin" / "python", "-c", code], check=True, env=variables)
    return len(before) == 2 and bytecode(prefix) == before


@pytest.mark.parametrize(
    "state",
    [
        lambda folder: None,
        lambda folder: [path.unlink() for path in folder.iterdir()],
        lambda folder: [path.write_bytes(b"\0" * 16 + path.read_bytes()[16:]) for path in folder.iterdir()],
        lambda folder: [path.write_bytes(b"short") for path in folder.iterdir()],
        lambda folder: [os.utime(path) for path in folder.parent.glob("*.py")],
    ],
    ids=["there", "missing", "of another Python", "broken", "stale"],
)
def test_bytecode_is_valid_where_it_is_staged(
    state: Callable[[Path], object], prefix: Path, tmp_path: Path
) -> None:
    state(prefix / SITE / "demo" / "__pycache__")
    staged = stage(pack(prefix).path, tmp_path).prefix
    assert imports_write_nothing(staged)


def test_an_edit_within_the_second_of_its_bytecode(prefix: Path, tmp_path: Path) -> None:
    path = prefix / SITE / "demo" / "__init__.py"
    os.utime(path, ns=(0, 1_700_000_000_200_000_000))
    compileall.compile_file(path, quiet=1, force=True)
    os.utime(next(path.parent.glob("__pycache__/__init__.*")), ns=(0, 1_700_000_000_300_000_000))
    path.write_text("VALUE = 43\n")
    os.utime(path, ns=(0, 1_700_000_000_900_000_000))
    python = stage(pack(prefix).path, tmp_path).prefix / "bin" / "python"
    assert subprocess.check_output([python, "-c", "import demo; print(demo.VALUE)"]) == b"43\n"


def test_bytecode_can_be_left_out(prefix: Path, tmp_path: Path) -> None:
    packed = pack(prefix, exclude=["*.pyc"])
    assert list(stage(packed.path, tmp_path).prefix.rglob("*.pyc")) == []


@pytest.mark.parametrize("glob", ["*", "bin", "bin/python", "pyvenv.cfg"])
def test_what_every_environment_needs_cannot_be_left_out(glob: str, prefix: Path) -> None:
    with pytest.raises(
        BrokenEnvironmentError, match=r"--exclude leaves out .*: nothing could run without it"
    ):
        pack(prefix, exclude=[glob])


def test_globs_as_people_type_them(prefix: Path) -> None:
    for glob in (f"{prefix}/share", "./share", "share/"):
        assert pack(prefix, exclude=[glob]).excluded == ("share",)


def test_warnings_of_modes_and_of_scripts_of_another_environment(prefix: Path, tmp_path: Path) -> None:
    (prefix / "bin" / "demo").write_text(f"#!{tmp_path}/moved/bin/python3\n")
    (prefix / "share").chmod(0o2755)
    (prefix / SITE / "demo" / "data" / "hollow").chmod(0o500)
    warnings = pack(prefix).warnings
    assert "packed without their set-uid, set-gid or sticky bits: share" in warnings
    hollow = f"{SITE}/demo/data/hollow"
    assert f"the staged copies of these folders can be written to by their owner: {hollow}" in warnings
    foreign = f"install their packages anew: bin/demo ({tmp_path}/moved/bin/python3)"
    assert [warning for warning in warnings if warning.endswith(foreign)] != []


def test_a_link_to_a_folder_hides_no_path_to_it(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (prefix / SITE / "linked").symlink_to(tmp_path / "elsewhere")
    (prefix / SITE / "x.pth").write_text(f"{tmp_path}/elsewhere\n")
    assert any(f"{tmp_path}/elsewhere (a .pth file)" in warning for warning in pack(prefix).warnings)


def test_another_name_of_bytecode_keeps_its_content(prefix: Path, tmp_path: Path) -> None:
    pyc = next((prefix / SITE / "demo" / "__pycache__").glob("__init__.*"))
    pyc.write_bytes(b"another magic number, \1\0\0\0 and so on")
    os.link(pyc, prefix / SITE / "demo" / "data" / "copy.pyc")
    staged = stage(pack(prefix).path, tmp_path).prefix
    assert (staged / SITE / "demo" / "data" / "copy.pyc").read_bytes() == pyc.read_bytes()
    assert (staged / pyc.relative_to(prefix)).read_bytes() != pyc.read_bytes()


@pytest.mark.parametrize("target", [None, "/dev/null", "/nowhere", "../demo/__pycache__"])
def test_what_stands_where_a_bytecode_folder_would_stays(
    target: str | None, prefix: Path, tmp_path: Path
) -> None:
    (prefix / SITE / "other").mkdir()
    (prefix / SITE / "other" / "module.py").write_text("VALUE = 1\n")
    cache = prefix / SITE / "other" / "__pycache__"
    cache.write_text("no bytecode here") if target is None else cache.symlink_to(target)
    staged = stage(pack(prefix).path, tmp_path).prefix / SITE / "other" / "__pycache__"
    assert target == (os.readlink(staged) if staged.is_symlink() else None)  # noqa: PTH115
    assert staged.is_symlink() or staged.read_text() == "no bytecode here"


def test_an_environment_without_bytecode_folders(prefix: Path, tmp_path: Path) -> None:
    for path in (prefix / SITE / "demo" / "__pycache__").iterdir():
        path.unlink()
    (prefix / SITE / "demo" / "__pycache__").rmdir()
    (prefix / SITE / "demo" / "data" / "bad.py").write_text("this is no Python")
    staged = stage(pack(prefix).path, tmp_path).prefix
    assert imports_write_nothing(staged)
    assert not list((staged / SITE / "demo" / "data").glob("__pycache__/bad*"))


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("a.cpython-311.pyc", 0, True),
        ("a.cpython-311.opt-2.pyc", 0, True),
        ("a.b.pypy39.pyc", 0, True),
        ("a.cpython-311.pyc", 1, False),  # its source's hash counts, not the time (PEP 552)
        ("a.cpython-311.pyc", 3, False),
        ("gone.cpython-311.pyc", 0, False),
        ("a.cpython-311.txt", 0, False),
        ("a.pyc", 0, False),
    ],
)
def test_which_files_follow_from_their_source(name: str, flags: int, expected: bool, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"magi" + flags.to_bytes(4, "little") + bytes(100))
    paths = [b"lib/a.py", b"lib/a.b.py", b"lib/__pycache__/" + name.encode()]
    members = [Member(path, FILE, source=os.fsencode(file)) for path in paths]
    _mark_bytecode(members, jobs=2)
    assert [member.bytecode for member in members] == [False, False, expected]


def test_bytecode_for_another_interpreter(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staged interpreter compiles where the one that stages has another bytecode."""
    path = pack(prefix).path
    monkeypatch.setattr("envpack.archive.bytecode.own_magic", lambda: b"else")
    assert imports_write_nothing(stage(path, tmp_path).prefix)


def test_an_interpreter_that_does_not_run(prefix: Path, tmp_path: Path) -> None:
    (prefix / "bin" / "python").unlink()
    (prefix / "bin" / "python").symlink_to("/nonexistent/python3")
    result = pack(prefix)
    assert result.warnings == (
        f"{prefix}/bin/python does not exist; was its base interpreter removed?",
        f"{prefix}/bin/python does not run on this host, so missing and stale .pyc files are not compiled",
    )
    staged = stage(result.path, tmp_path).prefix
    assert (staged / "bin" / "python").readlink() == Path("/nonexistent/python3")


# ---- what cannot be packed, and what is only warned of


def test_what_is_no_environment(tmp_path: Path) -> None:
    with pytest.raises(NotAnEnvironmentError, match=r"no environment .*/none: there is no such folder"):
        pack(tmp_path / "none")
    with pytest.raises(
        NotAnEnvironmentError, match=r"is not an environment: it has neither conda-meta/ .* nor pyvenv.cfg"
    ):
        pack(tmp_path)
    assert not (tmp_path / "home").exists()


def test_no_folder_for_the_output(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BrokenEnvironmentError, match=r"the folder .*/none does not exist\. Make it: mkdir -p /"
    ):
        pack(prefix, tmp_path / "none" / "a.tar.zst")


def test_the_output_is_a_folder(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokenEnvironmentError) as raised:
        pack(prefix, tmp_path)
    assert str(raised.value) == (
        f"cannot write {tmp_path}: it is a folder. Name a file: --output {tmp_path}/env.tar.zst"
    )


def test_no_archive_in_the_environment_itself(prefix: Path) -> None:
    for output in (prefix / "a.tar.zst", prefix / "share" / "a.tar.zst"):
        with pytest.raises(BrokenEnvironmentError, match="it lies in the environment that is to be packed"):
            pack(prefix, output)
    assert not list(prefix.rglob("*.tar.zst"))


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 20}, {"jobs": 0}])
def test_senseless_options(options: dict[str, int], prefix: Path) -> None:
    with pytest.raises(ValueError, match="must be"):
        pack(prefix, **options)  # type: ignore[arg-type]


def test_editable_installs_stay_where_they_are(prefix: Path, tmp_path: Path) -> None:
    project = tmp_path / "env-project"
    project.mkdir()
    (project / "mine.py").write_text("WHERE = __file__\n")
    info = prefix / SITE / "mine-1.0.dist-info"
    info.mkdir()
    (info / "direct_url.json").write_text(
        json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}})
    )
    (prefix / SITE / "__editable__.mine-1.0.pth").write_text(f"{project}\n")
    (prefix / SITE / "old.egg-link").write_text(f"{tmp_path}/old\n.")
    result = pack(prefix)
    (warning,) = result.warnings
    assert warning == (
        "editable installs are not packed; the nodes read their code from where it is, which is slow, and fails if a "
        f"node does not see that folder: mine ({project}), old ({tmp_path}/old). "
        "To pack them, install them without -e"
    )
    staged = stage(result.path, tmp_path).prefix
    code = "import mine; print(mine.WHERE)"
    done = subprocess.run([staged / "bin" / "python", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{project}/mine.py\n"
    # Said again, though nothing is packed.
    assert pack(prefix).warnings == (warning,)


def test_a_reused_archive_says_what_python_finds_now(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pack(prefix, level=1).warnings == ()
    (tmp_path / "module").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path / "module"))
    again = pack(prefix)
    assert (
        again.reused and len(again.warnings) == 1 and f"{tmp_path}/module (PYTHONPATH)" in again.warnings[0]
    )


def test_the_same_environment_seen_through_another_file_system(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a node sees a home by sshfs: other inodes and status times, whole seconds."""
    first = pack(prefix)
    source = next(prefix.rglob("*.py"))
    content, times = source.read_bytes(), source.stat()
    source.unlink()
    source.write_bytes(content)
    os.utime(source, ns=(times.st_mtime_ns // 10**9 * 10**9,) * 2)
    with monkeypatch.context() as patch:
        patch.setattr(envpack.pack.store, "file_system", lambda path: ("fuse.sshfs", "/home"))
        assert unchanged_archive(prefix) == first.path and pack(prefix).reused
        source.write_bytes(content + b"#")
        assert unchanged_archive(prefix) is None
        source.write_bytes(content)
        os.utime(source, ns=(times.st_mtime_ns // 10**9 * 10**9,) * 2)
    assert unchanged_archive(prefix) is None  # where everything can be seen, everything counts


# ---- details


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("env", "env"),
        ("my env", "my_env"),
        ("it's\n", "it_s_"),
        (".venv", "venv"),
        ("..", "env"),
        ("-x", "x"),
        ("\u00e9" * 50, "_" * 40),
        ("py3.11+cuda_1-a", "py3.11+cuda_1-a"),
    ],
)
def test_safe_names(name: str, expected: str) -> None:
    assert safe_name(name) == expected


@pytest.mark.parametrize("length", [1, 99, 100, 101, 255, 511, 512, 513, 1023, 1024, 1025])
@pytest.mark.parametrize("kind", [FILE, DIRECTORY, SYMLINK])
def test_header_sizes(length: int, kind: int) -> None:
    link = b"t" * length if kind == SYMLINK else b""
    member = Member(b"p" * length, kind, link=link)
    assert len(tar_header(member)) == header_bytes(member)


def test_progress_ends_at_the_total(prefix: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack(prefix, progress=lambda done, total: seen.append((done, total)))
    assert seen and seen[-1][0] == seen[-1][1]


def run_gcc(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["cc", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_paths(prefix: Path, tmp_path: Path) -> None:
    """A library compiled in the environment, as conda's compilers do it, finds its fellows in the staged prefix."""
    if subprocess.run(["sh", "-c", "command -v cc"], capture_output=True).returncode:
        pytest.skip("no C compiler")
    (tmp_path / "fellow.c").write_text("int fellow(void) { return 7; }\n")
    (tmp_path / "user.c").write_text("int fellow(void); int user(void) { return fellow(); }\n")
    run_gcc(tmp_path, "-shared", "-fPIC", "-o", f"{prefix}/lib/libfellow.so", "fellow.c")
    user = prefix / SITE / "demo" / "libuser.so"
    rpath = f"-Wl,-rpath,{prefix}/lib:/opt/other/lib,-rpath,{prefix}/lib"
    run_gcc(tmp_path, "-shared", "-fPIC", "-o", str(user), "user.c", f"-L{prefix}/lib", "-lfellow", rpath)
    staged = stage(pack(prefix).path, tmp_path).prefix
    code = (
        f"import ctypes; print(ctypes.CDLL({str(staged / SITE / 'demo' / 'libuser.so')!r}).user());"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libfellow' in line})"
    )
    (prefix / "lib" / "libfellow.so").rename(tmp_path / "away.so")
    done = subprocess.run([staged / "bin" / "python", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"7\n{staged}/lib/libfellow.so\n", "")
    assert verify(staged).files > 0
