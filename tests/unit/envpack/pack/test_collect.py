"""What is relocated in an environment: by all its names, by conda's records; and what is only warned of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from envpack_trees import SITE, XY

from envpack.common.elf import Library
from envpack.errors import BrokenEnvironmentError
from envpack.pack import walk as walking
from envpack.pack.collect import Collected, collect
from envpack.pack.editable import outside_warnings
from envpack.pack.interpreter import Interpreter, ask, guess
from envpack.pack.members import FILE, Member
from envpack.pack.scan import Scanner
from envpack.pack.walk import walk_environment


def collected(prefix: Path, kind: str = "venv", exclude: tuple[str, ...] = ()) -> Collected:
    return collect(walk_environment(prefix, kind, exclude))


def warnings(prefix: Path) -> list[str]:
    """Return what the walk says, and what lies outside."""
    walk = walk_environment(prefix, "venv")
    return [*walk.warnings, *outside_warnings(walk)]


def members(found: Collected) -> dict[str, Member]:
    return {os.fsdecode(member.path): member for member in found.members}


def names(found: Collected) -> list[str]:
    return [os.fsdecode(old) for old, _ in found.placeholders]


@pytest.fixture(autouse=True)
def no_python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A venv without an interpreter, which has an alias."""
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "pyvenv.cfg").touch()
    (tmp_path / "alias").symlink_to("env")
    return prefix


# ---- names


SCRIPTS = [
        ("bin/tool", "#!{alias}/bin/python\n"),
        ("bin/tool", "#! {alias}/bin/python3.11 -E -s\n"),
        # For paths that are too long for a first line, or have blanks: as pip, uv and conda write them.
        ("bin/tool", "#!/bin/sh\n'''exec' {alias}/bin/python \"$0\" \"$@\"\n' '''\n"),
        ("bin/tool", "#!/bin/sh\n'''exec' \"{alias}/bin/python\" \"$0\" \"$@\"\n' '''\n"),
        ("bin/tool", "#!/bin/sh\n'''exec' '{alias}/bin/python' \"$0\" \"$@\"\n' '''\n"),
        ("bin/activate", "deactivate () {{\n}}\nVIRTUAL_ENV='{alias}'\nexport VIRTUAL_ENV\n"),
        ("bin/activate", "if x; then\n    export VIRTUAL_ENV=$(cygpath {alias})\nelse\n    export VIRTUAL_ENV={alias}\n"),
        ("bin/activate.csh", "setenv VIRTUAL_ENV \"{alias}\"\n"),
        ("bin/activate.fish", "set -gx VIRTUAL_ENV '{alias}'\n"),
        ("bin/activate.nu", "    let virtual_env = r#'{alias}'#\n"),
        ("bin/activate.xsh", "$VIRTUAL_ENV = r\"{alias}\"\n"),
        ("bin/Activate.ps1", "$env:VIRTUAL_ENV = '{alias}'\n"),
        ("bin/activate_this.py", "base = \"{alias}\"\n"),
        ("pyvenv.cfg", "command = /usr/bin/python3 -m venv {alias}\n"),
]  # fmt: skip
# A path with a blank stands in quotes.
WITH_BLANK = [(path, text) for path, text in SCRIPTS if "'{alias}" in text or '"{alias}' in text]


@pytest.mark.parametrize(
    ("path", "text", "alias"),
    [*((*script, "alias") for script in SCRIPTS), *((*script, "my alias") for script in WITH_BLANK)],
)
def test_another_name(path: str, text: str, alias: str, prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "my alias").symlink_to("env")
    (prefix / path).write_text(text.format(alias=tmp_path / alias))
    assert names(collected(prefix)) == [os.fspath(prefix), os.fspath(tmp_path / alias)]


def test_other_paths_are_no_names(prefix: Path, tmp_path: Path) -> None:
    (prefix / "bin" / "tool").write_text(f"#!/usr/bin/env python\n# {tmp_path}/alias/bin/python\n")
    (prefix / "bin" / "tool2").write_bytes(b"#!\0/bin/python\n")
    (prefix / "bin" / "activate").write_text(f"VIRTUAL_ENV={tmp_path}\n")
    assert names(collected(prefix)) == [os.fspath(prefix)]


def test_the_prefix_is_given_by_a_link(prefix: Path, tmp_path: Path) -> None:
    assert names(collected(tmp_path / "alias")) == [os.fspath(tmp_path / "alias"), os.fspath(prefix)]


# ---- the base interpreter


def test_no_process_to_ask_with(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(BlockingIOError):
        ask(prefix)


def test_the_places_of_an_interpreter_that_does_not_run(prefix: Path, tmp_path: Path) -> None:
    """Debian's /usr/lib has `python3` beside `python3.11`."""
    base = tmp_path / "base"
    for name in ("python3", "python3.11", "python3.12"):
        (base / "lib" / name).mkdir(parents=True)
    assert guess(prefix, os.fspath(base)).stdlib == f"{base}/lib/python3"
    (prefix / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)
    found = guess(prefix, os.fspath(base))
    assert (found.stdlib, found.purelib) == (
        f"{base}/lib/python3.11",
        f"{prefix}/lib/python3.11/site-packages",
    )


def a_base(folder: Path, is_system: bool = False) -> Interpreter:
    """Make what looks like an interpreter's prefix, and return what it would say in a venv."""
    for name in (
        "bin/python3.13t", "bin/idle3.13", "include/Python.h", "lib/python3.13t/os.py", "lib/python3.13t/test/x.py",
        "lib/python3.13t/json/tests/x.py", "lib/python3.13t/config-3.13t-x86_64/Makefile", "lib/libpython3.13t.a",
        "lib/libpython3.13t.so.1.0", "lib/python3.13t/site-packages/pip.py", "lib/python3/dist-packages/yaml.py",
        "lib/node/x.js", "share/zoneinfo/UTC", "share/doc/x", "lib/python3.13t/__pycache__/os.cpython-313t.opt-2.pyc",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "bin" / "python3").symlink_to("python3.13t")
    stdlib = f"{folder}/lib/python3.13t"
    return Interpreter(
        (3, 13),
        "cpython",
        "cpython-313t",
        "f30d0d0a",
        str(folder),
        f"{folder}/bin/python3.13t",
        stdlib,
        stdlib,
    )


def base_members(found: Collected) -> list[str]:
    return sorted(
        name.removeprefix(".envpack-base/")
        for name, member in members(found).items()
        if name.startswith(".envpack-base/") and member.kind
    )


def with_base(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, interpreter: Interpreter, home: str
) -> Collected:
    monkeypatch.setattr(walking.interpreters, "ask", lambda prefix: interpreter)
    (prefix / "bin" / "python").symlink_to(Path(home) / "python3")
    (prefix / "pyvenv.cfg").write_text(f"home = {home}\nexecutable = {home}/python3.13t\n")
    (prefix / "lib" / "python3.13t" / "site-packages").mkdir(parents=True)
    return collected(prefix)


def test_a_base_interpreter_of_ones_own(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free-threaded names; by a link, as /opt/python names the current version."""
    base = tmp_path / "base"
    interpreter = a_base(base)
    (tmp_path / "current").symlink_to("base")
    found = with_base(prefix, monkeypatch, interpreter, f"{tmp_path}/current/bin")
    assert base_members(found) == [
        "bin/python3", "bin/python3.13t", "lib/libpython3.13t.so.1.0", "lib/node/x.js", "lib/python3.13t/os.py",
        "share/zoneinfo/UTC",
    ]  # fmt: skip
    assert members(found)["bin/python"].link == b"../.envpack-base/bin/python3.13t"
    assert found.placeholders == [
        (os.fsencode(prefix), b""),
        (os.fsencode(base), b"/.envpack-base"),
        (os.fsencode(tmp_path / "current"), b"/.envpack-base"),
    ]
    assert found.libraries == [b".envpack-base/lib/python3.13t"]
    assert found.python == {"version": [3, 13], "cache_tag": "cpython-313t", "magic": "f30d0d0a"}
    assert found.warnings == []


def test_links_into_a_base_interpreter(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not packed of it is named where it is, as the warning says."""
    base = tmp_path / "base"
    interpreter = a_base(base)
    (prefix / "share").mkdir(exist_ok=True)
    (prefix / "share" / "doc").symlink_to(base / "share" / "doc")
    (prefix / "share" / "zoneinfo").symlink_to(base / "share" / "zoneinfo")
    found = with_base(prefix, monkeypatch, interpreter, f"{base}/bin")
    links = {name: members(found)[f"share/{name}"].link for name in ("doc", "zoneinfo")}
    assert links == {
        "doc": os.fsencode(base / "share" / "doc"),
        "zoneinfo": b"../.envpack-base/share/zoneinfo",
    }
    assert [found.scanner.link(link) for link in links.values()] == [None, None]
    assert found.scanner.link(os.fsencode(prefix / "x")) == ["link", 0]


@pytest.mark.parametrize("with_site", [False, True])
def test_a_base_interpreter_of_the_system(
    with_site: bool, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "usr"
    monkeypatch.setattr("envpack.pack.base_interpreter.SYSTEM_PREFIXES", (str(base),))
    interpreter = a_base(base)
    site = f"{base}/lib/python3/dist-packages"
    if with_site:
        interpreter = Interpreter(**{**vars(interpreter), "site_folders": (site,), "path": (site,)})
    found = with_base(prefix, monkeypatch, interpreter, f"{base}/bin")
    packages = ["lib/python3/dist-packages/yaml.py"] if with_site else []
    assert base_members(found) == ["bin/python3", "bin/python3.13t", "lib/python3.13t/os.py", *packages]
    # What else names /usr stays.
    assert found.placeholders == [
        (os.fsencode(prefix), b""),
        (os.fsencode(base / "bin" / "python3.13t"), b"/.envpack-base/bin/python3.13t"),
        (os.fsencode(base / "bin"), b"/.envpack-base/bin"),
    ]
    assert found.libraries == [
        b".envpack-base/lib/python3.13t",
        *([b".envpack-base/lib/python3/dist-packages"] if with_site else []),
    ]
    assert found.warnings == []


@pytest.mark.parametrize("are_packed", [False, True])
def test_text_that_names_the_base_interpreters_packages(are_packed: bool) -> None:
    scanner = Scanner([(b"/env", b""), (b"/py", b"/.envpack-base")], base_packages=are_packed)
    member = Member(b"lib/python3.11/site-packages/x.pth", FILE, relocation="unknown")
    packages, library = b"/py/lib/python3.11/site-packages", b"/py/lib/python3.11/os.py"
    text = b"%b\n%b/x\n%b-2\n%b\n" % (packages, packages, packages, library)
    places = [text.index(packages + b"-2"), 1, text.index(library), 1]
    if are_packed:
        places = [0, 1, len(packages) + 1, 1, *places]
    assert scanner.record(member, text) == ["text", places, None]


def test_a_prefix_in_its_base_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyenv-virtualenv makes them; this one even in `lib`."""
    base = tmp_path / "base"
    interpreter = a_base(base)
    prefix = base / "lib" / "env"
    (prefix / "bin").mkdir(parents=True)
    found = with_base(prefix, monkeypatch, interpreter, f"{base}/bin")
    assert not [name for name in base_members(found) if "env/" in name]
    assert found.placeholders == [(os.fsencode(prefix), b""), (os.fsencode(base), b"/.envpack-base")]


def test_a_venv_made_from_another_venv(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old versions of virtualenv name the other venv as the home."""
    base = tmp_path / "base"
    (tmp_path / "first" / "bin").mkdir(parents=True)
    (tmp_path / "first" / "bin" / "python3").symlink_to(base / "bin" / "python3")
    found = with_base(prefix, monkeypatch, a_base(base), f"{tmp_path}/first/bin")
    assert found.placeholders == [
        (os.fsencode(prefix), b""),
        (os.fsencode(base), b"/.envpack-base"),
        (os.fsencode(tmp_path / "first/bin/python3.13t"), b"/.envpack-base/bin/python3.13t"),
        (os.fsencode(tmp_path / "first/bin"), b"/.envpack-base/bin"),
    ]
    assert members(found)["bin/python"].link == b"../.envpack-base/bin/python3.13t"


def test_a_base_interpreter_that_conda_has_installed(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    interpreter = a_base(base)
    write_record(base, "python", [{"_path": "lib/libpython3.13t.so.1.0", **BINARY}])
    found = with_base(prefix, monkeypatch, interpreter, f"{base}/bin")
    library = members(found)[".envpack-base/lib/libpython3.13t.so.1.0"]
    assert (library.relocation, library.rooms) == ("binary", (255,))


@pytest.mark.parametrize(
    ("run_path", "is_named"),
    [
        (b"{}/lib", False),
        (b"$ORIGIN/../lib", False),
        (b"/none:${ORIGIN}/../lib", False),
        (b"/none", True),
        (None, True),
    ],
)
def test_a_library_without_a_run_path_to_it(
    run_path: bytes | None, is_named: bool, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where modules are loaded: the base interpreter needs LD_LIBRARY_PATH."""
    base = tmp_path / "base"
    paths = [] if run_path is None else [(0, run_path.replace(b"{}", os.fsencode(base)))]
    library = Library([b"libc.so.6", b"libpython3.13t.so.1.0"], paths, 0)
    monkeypatch.setattr("envpack.pack.collect.read_library", lambda data: library)
    expected = (
        f"{base}/bin/python3.13t needs libpython3.13t.so.1.0, and has no run path to it, so the nodes load it from where "
        "their dynamic linker finds it"
    )
    found = with_base(prefix, monkeypatch, a_base(base), f"{base}/bin")
    assert found.warnings == ([expected] if is_named else [])


# ---- conda's records

HOLDER = "/opt/placeholder".ljust(255, "_")
TEXT = {"prefix_placeholder": HOLDER, "file_mode": "text"}
BINARY = {"prefix_placeholder": HOLDER, "file_mode": "binary"}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def short(*texts: str) -> tuple[bytes, ...]:
    return tuple(sorted(bytes.fromhex(sha256(text))[:16] for text in texts))


def write_record(prefix: Path, name: str, paths: list[dict[str, object]], **more: object) -> None:
    record = {"name": name, "version": "1.0", "paths_data": {"paths": paths}, **more}
    (prefix / "conda-meta").mkdir(exist_ok=True)
    (prefix / "conda-meta" / f"{name}-1.0-0.json").write_text(json.dumps(record))


@pytest.fixture
def conda_prefix(tmp_path: Path) -> Path:
    """A conda environment as pixi makes it: without a history."""
    prefix = tmp_path / ".pixi" / "envs" / "x"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "pixi").write_text(f'{{"manifest_path": "{prefix}"}}')
    for name in "abcdefgh":
        (prefix / name).write_text(name)
    return prefix


def test_what_records_say(conda_prefix: Path) -> None:
    paths: list[dict[str, object]] = [
        {"_path": "a", "sha256": sha256("a"), **TEXT},
        {"_path": "b", "sha256": sha256("b"), "sha256_in_prefix": sha256("b here"), **BINARY},
        {"_path": "c", "sha256": sha256("c")},
        {"_path": "d", "sha256": sha256("d"), "sha256_in_prefix": sha256("d here")},
        {"_path": "e", "path_type": "unix_python_entry_point", "sha256_in_prefix": sha256("e here")},
        {"_path": "bin", "path_type": "directory"},
        {"_path": "lost.pyc", "path_type": "pyc_file"},
    ]
    write_record(conda_prefix, "one", paths, files=["a", "f", "lost.pyc", ".nonadmin"])
    found = collected(conda_prefix, "conda")
    said = {
        name: (member.relocation, member.rooms, member.package_digests)
        for name, member in members(found).items()
        if member.kind == 1 and not name.startswith("bin/")
    }
    assert said == {
        "a": ("text", (255,), ()),
        "b": ("binary", (255,), short("b here")),
        "c": ("managed", (), short("c")),
        "d": ("managed", (), short("d here")),
        "e": ("unknown", (), ()),
        "f": ("unknown", (), ()),
        "g": ("unknown", (), ()),
        "h": ("unknown", (), ()),
        "conda-meta/one-1.0-0.json": ("none", (), ()),
        "conda-meta/pixi": ("unknown", (), ()),
    }
    assert found.warnings == []


def test_two_packages_own_a_path(conda_prefix: Path) -> None:
    shorter = {"prefix_placeholder": HOLDER[:100], "file_mode": "text"}
    write_record(
        conda_prefix,
        "one",
        [
            {"_path": "a", "sha256_in_prefix": sha256("1"), **BINARY},
            {"_path": "b", "sha256_in_prefix": sha256("1")},
            {"_path": "c", "sha256_in_prefix": sha256("1")},
        ],
    )
    write_record(
        conda_prefix,
        "two",
        [
            {"_path": "a", "sha256_in_prefix": sha256("2"), **shorter},
            {"_path": "b", "sha256_in_prefix": sha256("2"), **shorter},
            {"_path": "c"},
        ],
    )
    found = members(collected(conda_prefix, "conda"))
    said = {
        name: (found[name].relocation, found[name].rooms, found[name].package_digests)
        for name in ("a", "b", "c")
    }
    assert said == {
        "a": ("binary", (100, 255), short("1", "2")),
        "b": ("text", (100,), short("1", "2")),
        "c": ("managed", (), ()),
    }


def test_missing_files_are_named(conda_prefix: Path) -> None:
    paths: list[dict[str, object]] = [{"_path": f"lost{n:02}"} for n in range(12)]
    write_record(conda_prefix, "one", [*paths, {"_path": "a"}, {"_path": "lost.pyc"}])
    (conda_prefix / "lost00").symlink_to("dangling")
    found = collected(conda_prefix, "conda", ("a",))
    assert found.warnings == [
        f"11 files of conda packages are missing in {conda_prefix}; it was packed without them: "
        + ", ".join(f"lost{n:02} (one 1.0)" for n in range(1, 11))
        + " and 1 others"
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": "x"}', '{"name": "x", "version": "1", "paths_data": [1]}']
)
def test_a_broken_record(text: str, conda_prefix: Path) -> None:
    (conda_prefix / "conda-meta" / "my-package-1.0-0.json").write_text(text)
    with pytest.raises(BrokenEnvironmentError) as raised:
        collected(conda_prefix, "conda")
    assert str(raised.value).startswith(
        f"cannot pack {conda_prefix}: conda's record {conda_prefix}/conda-meta/my-package-1.0-0.json cannot be read: "
    )
    assert raised.value.remedy == (
        f"Install the package anew: conda install --prefix {conda_prefix} --force-reinstall my-package"
    )


def test_activate_scripts_of_ones_own_stay(conda_prefix: Path) -> None:
    (conda_prefix / "bin" / "activate").write_text("mine\n")
    found = members(collected(conda_prefix, "conda"))
    assert found["bin/activate"].source == os.fsencode(conda_prefix / "bin" / "activate")
    assert (
        b"conda_pack" in found["bin/deactivate"].source and b"conda_pack" in found["bin/activate.fish"].source
    )


# ---- what lies outside


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("outside") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    return prefix


def editable_record(prefix: Path, folder: Path) -> None:
    info = prefix / SITE / f"{folder.name}-1.0.dist-info"
    info.mkdir()
    (info / "direct_url.json").write_text(
        json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}})
    )


def test_editable_installs(venv: Path, tmp_path: Path) -> None:
    """By a path, by a finder module, by an egg-link: each is named once; one inside the prefix is not."""
    for place in (
        tmp_path / "by path" / "src",
        tmp_path / "finder" / "package",
        venv / "src" / "inside",
        tmp_path / "egg",
    ):
        place.mkdir(parents=True)
    editable_record(venv, tmp_path / "by path")
    editable_record(venv, tmp_path / "finder")
    editable_record(venv, venv / "src" / "inside")
    (venv / SITE / "path.pth").write_text(f"{tmp_path}/by path/src\n{venv}/src/inside\n")
    (venv / SITE / "finder.pth").write_text("import finder_hook; finder_hook.install()\n")
    (venv / SITE / "finder_hook.py").write_text(
        f"import sys\nMAPPING = {{'package': '{tmp_path}/finder/package'}}\n"
        "class Finder:\n    @classmethod\n    def find_spec(cls, *_): return None\n"
        "def install(): sys.meta_path.append(Finder)\n"
    )
    (venv / SITE / "old.egg-link").write_text(f"{tmp_path}/egg\n.")
    (warning,) = warnings(venv)
    assert warning == (
        "editable installs are not packed; the nodes read their code from where it is, which is slow, and fails if a "
        f"node does not see that folder: by path ({tmp_path}/by path), finder ({tmp_path}/finder), old ({tmp_path}/egg), "
        f"package ({tmp_path}/finder/package). To pack them, install them without -e"
    )
    for path in (venv / SITE).glob("*.pth"):
        path.unlink()
    for path in [*(venv / SITE).glob("*.dist-info/*"), *(venv / SITE).glob("*.egg-link")]:
        path.unlink()
    for path in (venv / SITE).glob("*.dist-info"):
        path.rmdir()
    assert warnings(venv) == []


def test_folders_that_python_searches(venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = tmp_path / "user" / "lib" / XY / "site-packages"
    for place in (user, tmp_path / "module", tmp_path / "by-pth"):
        place.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/module:{tmp_path}/none:relative:{venv}/{SITE}")
    monkeypatch.setenv("PYTHONUSERBASE", f"{tmp_path}/user")
    settings = (venv / "pyvenv.cfg").read_text()
    (venv / "pyvenv.cfg").write_text(settings.replace("= false", "= true"))
    (venv / SITE / "x.pth").write_text(f"{tmp_path}/by-pth\n")
    try:
        said = warnings(venv)
    finally:
        (venv / "pyvenv.cfg").write_text(settings)
        (venv / SITE / "x.pth").unlink()
    assert said == [
        f"Python finds modules outside of {venv}, which are not packed; the nodes read them from where they are, or "
        f"lack them: {tmp_path}/module (PYTHONPATH), {tmp_path}/by-pth (a .pth file), {user} (your own site-packages). "
        "To pack them, install them into the environment"
    ]


# ---- the interpreter


def test_what_an_interpreter_says(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that would change it, and output of the user's own, do not."""
    (venv / SITE / "noise.pth").write_text("import atexit; print('noise'); atexit.register(print, 'noise')\n")
    for name in ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONVERBOSE"):
        monkeypatch.setenv(name, "/nonexistent")
    try:
        said = ask(venv)
    finally:
        (venv / SITE / "noise.pth").unlink()
    assert said is not None
    assert (said.version, said.cache_tag) == (sys.version_info[:2], sys.implementation.cache_tag)
    assert (said.base_prefix, said.base_executable) == (
        sys.base_prefix,
        os.path.realpath(sys._base_executable),  # type: ignore[attr-defined]
    )
    assert said.stdlib == said.platstdlib == os.path.dirname(os.__file__)  # noqa: PTH120
    assert said.purelib == said.platlib == os.fspath(venv / SITE)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda python: python.unlink(),
        lambda python: python.unlink() or python.symlink_to("/bin/false"),
        lambda python: python.unlink() or python.symlink_to("/bin/true"),
        lambda python: python.unlink() or python.symlink_to("/bin/echo"),
    ],
)
def test_an_interpreter_that_does_not_run(break_it: Callable[[Path], object], venv: Path) -> None:
    """Its base interpreter is packed all the same, from where `pyvenv.cfg` says it is."""
    python = venv / "bin" / "python"
    target = python.readlink()
    break_it(python)
    try:
        assert ask(venv) is None
        found, said = collected(venv), warnings(venv)
    finally:
        python.unlink(missing_ok=True)
        python.symlink_to(target)
    assert found.python is None
    message = f"{python} does not run on this host, so missing and stale .pyc files are not compiled"
    assert message in said
    assert f".envpack-base/lib/{XY}/os.py" in members(found)
