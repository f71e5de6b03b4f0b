"""What is packed of an environment: links out of it followed, globs applied, what cannot be read named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from envpack_trees import SITE, XY

from envpack.errors import BrokenEnvironmentError
from envpack.pack.walk import Walk, walk_environment


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A venv without an interpreter, so that nothing but its own files is found."""
    prefix = tmp_path / "env"
    for folder in ("bin", "share", "lib/pkg"):
        (prefix / folder).mkdir(parents=True)
    (prefix / "pyvenv.cfg").touch()
    (prefix / "bin" / "python").touch()
    (prefix / "lib" / "pkg" / "m.py").write_text("inside\n")
    return prefix


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the prefix, as uv's cache or a Spack package."""
    folder = tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("outside\n")
    (folder / "sub" / "m.py").write_text("outside\n")
    return folder


def links(walk: Walk) -> dict[str, str]:
    return {os.fsdecode(e.path): os.fsdecode(e.link) for e in walk.entries if e.link is not None}


def sources(walk: Walk, below: str) -> dict[str, str]:
    """Return where the files below a folder come from."""
    return {
        os.fsdecode(entry.path): os.fsdecode(entry.source)
        for entry in walk.entries
        if entry.link is None
        and os.fsdecode(entry.path).startswith(below)
        and not os.path.isdir(entry.source)  # noqa: PTH112
    }


NOTHING_RUNS = "{}/bin/python does not run on this host, so missing and stale .pyc files are not compiled"


@pytest.mark.parametrize(
    ("link", "target", "packed"),
    [
        # Inside: as they are.
        ("lib/x", "pkg/m.py", "pkg/m.py"),
        ("lib/x", "../lib/pkg", "../lib/pkg"),
        ("lib/x", "{env}/lib/pkg/m.py", "{env}/lib/pkg/m.py"),
        ("lib/x", "{env}", "{env}"),
        ("lib/x", "..", ".."),
        ("lib/x", "pkg/../pkg/m.py", "pkg/../pkg/m.py"),
        # Inside, by a way that leaves it, or by another name.
        ("lib/x", "../../env/lib/pkg/m.py", "pkg/m.py"),
        ("lib/pkg/x", "{tmp}/alias/lib/pkg/m.py", "m.py"),
        ("bin/x", "{tmp}/alias", ".."),
        ("lib/x", "{env}/../env/bin", "../bin"),
        # Dangling, and loops.
        ("lib/x", "missing", "missing"),
        ("lib/x", "../../missing", "../../missing"),
        ("lib/x", "/nonexistent/x", "/nonexistent/x"),
        ("lib/x", "x", "x"),
        # A folder outside, but not where code is looked for; a device; a folder that holds the prefix.
        ("share/x", "{tmp}/outside/sub", "{tmp}/outside/sub"),
        ("share/x", "../../outside/sub", "{tmp}/outside/sub"),
        ("lib/x", "/dev/null", "/dev/null"),
        ("lib/x", "/proc/version", "/proc/version"),
        ("lib/x", "/sys", "/sys"),
        ("lib/x", "{tmp}", "{tmp}"),
        ("lib/x", "../..", "{tmp}"),
    ],
)
def test_links_that_stay_links(
    link: str, target: str, packed: str, prefix: Path, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "alias").symlink_to("env")
    places = {"env": prefix, "tmp": tmp_path}
    (prefix / link).symlink_to(target.format(**places))
    assert links(walk_environment(prefix, "venv")) == {link: packed.format(**places)}


@pytest.mark.parametrize(
    ("link", "target", "expected"),
    [
        ("share/x", "{tmp}/outside/file", {"share/x": "{tmp}/outside/file"}),
        ("lib/x", "../../outside/file", {"lib/x": "{tmp}/outside/file"}),
        ("lib/x", "{tmp}/chain", {"lib/x": "{tmp}/outside/file"}),
        ("lib/x", "{tmp}/alias-of-outside/file", {"lib/x": "{tmp}/outside/file"}),
        ("lib/x", "../../outside/sub", {"lib/x/m.py": "{tmp}/outside/sub/m.py"}),
        ("bin/x", "{tmp}/outside/sub", {"bin/x/m.py": "{tmp}/outside/sub/m.py"}),
    ],
)
def test_links_that_are_followed(
    link: str, target: str, expected: dict[str, str], prefix: Path, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "chain").symlink_to("outside/file")
    (tmp_path / "alias-of-outside").symlink_to("outside")
    (prefix / link).symlink_to(target.format(tmp=tmp_path))
    walk = walk_environment(prefix, "venv")
    assert links(walk) == {}
    assert sources(walk, link) == {path: where.format(tmp=tmp_path) for path, where in expected.items()}
    assert walk.warnings == [
        NOTHING_RUNS.format(prefix),
        f"1 links lead out of {prefix}; what they name was packed in their place: {link}",
    ]
    entry = next(entry for entry in walk.entries if entry.path == os.fsencode(link))
    assert os.path.samestat(entry.info, Path(os.fsdecode(entry.source)).lstat())


def test_links_in_a_followed_folder(prefix: Path, outside: Path) -> None:
    """What names a folder that the link lies in becomes a link; all else outside is followed."""
    (outside / "sub" / "up").symlink_to("..")
    (outside / "sub" / "self").symlink_to(outside / "sub")
    (outside / "sub" / "fellow").symlink_to("m.py")
    (outside / "sub" / "beyond").symlink_to("../file")
    # `../pkg` would be the prefix's own folder, if it were read there.
    (outside / "pkg").mkdir()
    (outside / "pkg" / "m.py").write_text("another\n")
    (outside / "sub" / "other").symlink_to("../pkg/m.py")
    (prefix / "lib" / "a").symlink_to(outside / "sub")
    (prefix / "lib" / "b").symlink_to(outside / "sub" / "m.py")
    (prefix / "lib" / "c").symlink_to(outside / "pkg")
    (prefix / "share" / "d").symlink_to(outside / "sub")
    walk = walk_environment(prefix, "venv")
    assert links(walk) == {
        "lib/a/fellow": "m.py",
        "lib/a/self": ".",
        "lib/a/up/sub/beyond": "../file",
        "lib/a/up/sub/fellow": "m.py",
        "lib/a/up/sub/other": "../pkg/m.py",
        "lib/a/up/sub/self": "../..",
        "lib/a/up/sub/up": "..",
        "share/d": f"{outside}/sub",
    }
    assert sources(walk, "lib/b") | sources(walk, "lib/c") == {
        "lib/b": f"{outside}/sub/m.py",
        "lib/c/m.py": f"{outside}/pkg/m.py",
    }
    assert sources(walk, "lib/a/") == {
        "lib/a/beyond": f"{outside}/file",
        "lib/a/m.py": f"{outside}/sub/m.py",
        "lib/a/other": f"{outside}/pkg/m.py",
        "lib/a/up/file": f"{outside}/file",
        "lib/a/up/pkg/m.py": f"{outside}/pkg/m.py",
        "lib/a/up/sub/m.py": f"{outside}/sub/m.py",
    }


def test_site_packages_is_a_link(prefix: Path, outside: Path) -> None:
    (prefix / SITE).parent.mkdir()
    (prefix / SITE).symlink_to(outside / "sub")
    (prefix / "lib64").symlink_to("lib")
    walk = walk_environment(prefix, "venv")
    assert links(walk) == {"lib64": "lib"}
    assert sources(walk, f"lib/{XY}") == {f"{SITE}/m.py": f"{outside}/sub/m.py"}


def test_folders_outside_are_named(prefix: Path, outside: Path) -> None:
    (prefix / "share" / "x").symlink_to(outside)
    assert walk_environment(prefix, "venv").warnings[1:] == [
        f"1 links to folders outside of {prefix} were packed as links, so the nodes read what they name from where it "
        "is: share/x"
    ]


@pytest.mark.skipif(
    not Path("/bin").is_symlink() or Path("/bin").readlink() != Path("usr/bin"),
    reason="/bin is no relative link here",
)
def test_a_relative_link_in_the_root_folder(prefix: Path) -> None:
    (prefix / "share" / "x").symlink_to(os.path.relpath("/bin", prefix / "share"))
    walk = walk_environment(prefix, "venv")
    assert links(walk) == {"share/x": "/usr/bin"} and walk.warnings[1].endswith(": share/x")


def test_another_mount_of_the_prefix(prefix: Path, tmp_path: Path) -> None:
    """Another path leads to the same folder, and no link says so."""
    code = (
        "import sys; sys.path[:] = eval(sys.argv[3])\n"
        "from pathlib import Path\n"
        "from envpack.pack.walk import walk_environment\n"
        "walk = walk_environment(Path(sys.argv[1]), 'venv')\n"
        "print([(entry.path, entry.link) for entry in walk.entries if entry.link])"
    )
    (tmp_path / "mount").mkdir()
    (prefix / "lib" / "x").symlink_to(tmp_path / "mount" / "lib" / "pkg" / "m.py")
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$1" "$2" "$5"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh"]
    done = subprocess.run(
        [*command, prefix, tmp_path / "mount", sys.executable, code, repr(sys.path)],
        capture_output=True,
        text=True,
    )
    if done.returncode == 1 and "unshare" in done.stderr:
        pytest.skip(f"no namespaces: {done.stderr}")
    assert (done.stdout, done.stderr) == ("[(b'lib/x', b'pkg/m.py')]\n", "")


# ---- what is left out


def test_globs(prefix: Path) -> None:
    for name in ("lib/pkg/tests/t.py", "lib/pkg/tests/deep/data", "include/a.h", "lib/libx.a", "share/doc/x"):
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).touch()
    walk = walk_environment(prefix, "venv", ["*/tests", "include/", "*.a", "share/*", "nothing"])
    assert walk.excluded == [b"include", b"lib/libx.a", b"lib/pkg/tests", b"share/doc"]
    assert [entry.path for entry in walk.entries] == [
        b"bin", b"bin/python", b"lib", b"lib/pkg", b"lib/pkg/m.py", b"pyvenv.cfg", b"share",
    ]  # fmt: skip
    assert walk.warnings[1:] == [
        "1 excluded files or folders hold code or metadata of installed packages: lib/pkg/tests"
    ]


def test_code_and_metadata_are_named(prefix: Path) -> None:
    names = [
        f"lib/p{n:02}.{end}" for n, end in enumerate(["py", "so", "so.1.2", "dist-info", "egg-info"] * 3)
    ]
    for name in names:
        (prefix / name).mkdir() if name.endswith("-info") else (prefix / name).touch()
    (prefix / "lib" / "data.txt").touch()
    walk = walk_environment(prefix, "venv", ["lib/p[01]*", "*.txt"])
    assert walk.warnings[1:] == [
        "15 excluded files or folders hold code or metadata of installed packages: "
        f"{', '.join(names[:10])} and 5 others"
    ]


def test_a_link_to_what_is_excluded(prefix: Path) -> None:
    (prefix / "lib" / "x").symlink_to("pkg/m.py")
    walk = walk_environment(prefix, "venv", ["*/m.py"])
    assert links(walk) == {"lib/x": "pkg/m.py"}


def test_what_is_no_file(prefix: Path) -> None:
    os.mkfifo(prefix / "share" / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(prefix / "lib" / "s"))
        walk = walk_environment(prefix, "venv")
    assert walk.warnings[1:] == ["not packed, as neither file, folder nor link: lib/s, share/pipe"]
    assert not {b"lib/s", b"share/pipe"} & {entry.path for entry in walk.entries}


def test_what_a_conda_base_keeps_for_itself(prefix: Path) -> None:
    for name in ("envs/x", "pkgs/p", "share/pkgs"):
        (prefix / name).mkdir(parents=True)
    (prefix / "pkgs" / "p" / "soft").write_text("a package that conda has linked\n")
    (prefix / "bin" / "soft").symlink_to("../pkgs/p/soft")
    (prefix / "bin" / "python").unlink()
    walk = walk_environment(prefix, "conda")
    assert [entry.path for entry in walk.entries if b"pkgs" in entry.path] == [b"share/pkgs"]
    assert sources(walk, "bin/") == {"bin/soft": f"{prefix}/pkgs/p/soft"}
    assert walk.warnings == [
        "not packed, as conda keeps no part of an environment in them: envs, pkgs",
        f"1 links lead out of {prefix}; what they name was packed in their place: bin/soft",
    ]


# ---- what cannot be read


def walk_as_nobody(prefix: Path) -> str:
    """Return the error of a walk by a user who is not root."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            walk_environment(prefix, "venv")
        except BrokenEnvironmentError as exc:
            os.write(write, str(exc).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        return file.read()


def test_all_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        prefix = Path(folder, "env")
        Path(folder).chmod(0o755)
        (prefix / "share").mkdir(parents=True)
        (prefix / "pyvenv.cfg").touch()
        for n in range(11):
            (prefix / f"f{n:02}").touch(mode=0)
        (prefix / "share").chmod(0)
        message = walk_as_nobody(prefix)
        (prefix / "share").chmod(0o755)
    named = ", ".join(f"{prefix}/f{n:02}" for n in range(10))
    assert message.startswith(f"cannot read 12 files or folders of {prefix} on ")
    assert message.endswith(
        f": {named} and 2 others. Make them readable, remove them, or leave them out: envpack pack --exclude GLOB"
    )


def test_a_link_into_a_closed_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix, closed = Path(folder, "env"), Path(folder, "closed")
        Path(folder).chmod(0o755)
        prefix.mkdir()
        closed.mkdir(mode=0)
        (prefix / "x").symlink_to(closed / "y")
        message = walk_as_nobody(prefix)
    assert f": {prefix}/x (a link to {closed}/y). Make them readable" in message


def test_what_vanishes_meanwhile(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def late(folder: bytes) -> object:
        if folder == os.fsencode(prefix / "lib" / "pkg"):
            (prefix / "lib" / "pkg" / "m.py").unlink()
            (prefix / "lib" / "pkg").rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", late)
    with pytest.raises(
        BrokenEnvironmentError, match=r"/lib/pkg changed while it was packed\. Pack again when"
    ):
        walk_environment(prefix, "venv")
