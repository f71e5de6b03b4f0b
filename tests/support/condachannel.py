"""A local conda channel: the running interpreter as a `.conda` package, and a small package that tests relocation.

The interpreter lacks what conda-forge's lacks, because that is built against an old glibc (oldglibc.py).

For condaenv.py, which installs environments from it. No network is needed.
"""

from __future__ import annotations

import asyncio
import compileall
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import oldglibc
from filelock import FileLock

PLACEHOLDER = ("/opt/build/env" + "_placehold" * 25)[:255]  # 255 bytes, as in conda: no prefix may be longer
XY = f"python{sys.version_info.major}.{sys.version_info.minor}"
SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64", "ppc64le": "linux-ppc64le"}[platform.machine()]
NOT_PACKED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "__pycache__")


def cache_folder() -> Path:
    default = Path("~/.cache/mpiboot-tests").expanduser()
    folder = Path(os.environ.get("MPIBOOT_TEST_CACHE") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(parts: Iterable[str | bytes]) -> str:
    """Return a short name for some content."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:16]


def channel() -> Path:
    """Return the folder of a conda channel with this interpreter as `python`; made once per interpreter."""
    sources = [Path(module).read_bytes() for module in (__file__, oldglibc.__file__)]
    recipe = digest([*sources, sys.version, sys.base_prefix])
    return made_once(cache_folder() / f"channel-{recipe}", write_packages)


def made_once(folder: Path, write: Callable[[Path, Path], None]) -> Path:
    """Make a channel's folder, unless it is there; `write(stage, folder)` writes its packages. Return the folder."""
    with FileLock(f"{folder}.lock"):
        if not (folder / "noarch" / "repodata.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for subdir in (SUBDIR, "noarch"):
                (folder / subdir).mkdir(parents=True)
            with tempfile.TemporaryDirectory(dir=folder) as stage:
                write(Path(stage), folder)
            index(folder)
    return folder


def write_packages(stage: Path, folder: Path) -> None:
    base = Path(sys.base_prefix)
    stage_interpreter(base, stage / "python")
    text_only = base in (Path("/usr"), Path("/"))  # "/usr" is no prefix of the interpreter's own
    replace_base(stage / "python", None if text_only else base)
    write_package(stage / "python", "python", platform.python_version(), [], folder)
    stage_fixture(stage / "fixture")
    write_package(stage / "fixture", "mpiboot-fixture", "1.0", ["python"], folder)


def stage_interpreter(base: Path, stage: Path) -> None:
    """Copy what a conda package of Python holds: the executable, its library, headers, and the standard library."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    ignore = shutil.ignore_patterns(*NOT_PACKED, "*.a", "EXTERNALLY-MANAGED", "sitecustomize.py")
    shutil.copytree(stdlib, stage / "lib" / XY, ignore=ignore)
    undo_debian(stage / "lib" / XY)
    (stage / "lib" / XY / "site-packages").mkdir()
    (stage / "lib" / XY / "site-packages" / "README.txt").write_text("Packages are installed here.\n")
    (stage / "bin").mkdir()
    shutil.copy2(Path(sys._base_executable).resolve(), stage / "bin" / XY)  # type: ignore[attr-defined]
    for link in ("python3", "python"):
        (stage / "bin" / link).symlink_to(XY)
    for path in [
        *base.glob("lib/libpython3*.so*"),
        *base.glob(f"include/{XY}"),
        *base.glob(f"bin/{XY}-config"),
    ]:
        target = stage / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy2(path, target, follow_symlinks=False)
    for path in list(files_below(stage)):
        if not path.exists():  # a link to a file that was not copied
            path.unlink()
        elif not path.is_symlink():
            if path.name == XY or ".so" in path.suffixes:
                oldglibc.take_out(path)
            path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
            whole_s = int(
                path.stat().st_mtime
            )  # a package stores whole seconds, and a .pyc must match its source
            os.utime(path, (whole_s, whole_s))


def undo_debian(stdlib: Path) -> None:
    """Let Debian's Python use site-packages, as every other Python does, instead of Debian's own folders."""
    package = stdlib / "sysconfig/__init__.py"  # since 3.13
    module = package if package.exists() else stdlib / "sysconfig.py"
    debian = "prefix_scheme = 'posix_local'"
    if debian in module.read_text():
        module.write_text(module.read_text().replace(debian, "prefix_scheme = 'posix_prefix'"))
        # Its `site` is frozen into the interpreter.
        add = f'site.addsitedir(f"{{sys.prefix}}/lib/{XY}/site-packages")'
        (stdlib / "sitecustomize.py").write_text(f"import site\nimport sys\n\n{add}\n")


def replace_base(stage: Path, base: Path | None) -> None:
    """Replace the interpreter's old prefix: with the placeholder in text, with a relative run path in binaries."""
    prefixed = []
    for path in files_below(stage):
        data = path.read_bytes() if base and not path.is_symlink() else b""
        if str(base).encode() not in data:
            continue
        old = str(base).encode()
        modified_s = path.stat().st_mtime
        if b"\0" in data:
            # Like conda's own packages: the run path is relative to the file.
            up = os.path.relpath(stage, path.parent)
            data = data.replace(old + b"/lib\0", same_length(f"$ORIGIN/{up}", old + b"/lib") + b"\0")
            data = data.replace(old, same_length("/nowhere", old))
        else:
            data = data.replace(old, PLACEHOLDER.encode())
            prefixed.append(re.escape(str(path)))
        path.write_bytes(data)
        os.utime(path, (modified_s, modified_s))
    # Python files with a prefix change when they are installed, and a .pyc must be as old as its source.
    skip = re.compile("|".join(prefixed) or "$^")
    compileall.compile_dir(stage / "lib" / XY, quiet=2, stripdir=str(stage), rx=skip, workers=2)


def same_length(folder: str, old: bytes) -> bytes:
    """Return `old` in another folder, padded with slashes to the same length; `old` itself if that is too long.

    Linkers let strings share their tails: 3.11.7 may be the end of /home/me/versions/3.11.7, and must stay.
    """
    tail = old.rpartition(b"/")[2]
    room = len(old) - len(tail)
    return folder.encode().ljust(room, b"/") + tail if len(folder) < room else old


def stage_fixture(stage: Path) -> None:
    """Write the files whose relocation can be seen: `$MPIBOOT_FIXTURE_PREFIX`, `bin/mpiboot-fixture`, a binary."""
    files = {
        "etc/conda/activate.d/mpiboot-fixture.sh": f'export MPIBOOT_FIXTURE_PREFIX="{PLACEHOLDER}"\n',
        "etc/conda/deactivate.d/mpiboot-fixture.sh": "unset MPIBOOT_FIXTURE_PREFIX\n",
        "bin/mpiboot-fixture": f"#!{PLACEHOLDER}/bin/python\nimport sys\n\nprint(sys.prefix)\n",
        "share/mpiboot-fixture/prefix.bin": f"\0\1{PLACEHOLDER}/share\0{PLACEHOLDER}\0\2",
    }
    for name, text in files.items():
        path = stage / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755 if name.startswith("bin/") else 0o644)


def write_package(
    stage: Path,
    name: str,
    version: str,
    depends: list[str],
    folder: Path,
    *,
    placeholders: Sequence[str] = (PLACEHOLDER,),
    entry_points: Sequence[str] = (),
    noarch: bool = False,
) -> None:
    """Write `info/` and the `.conda` file (conda's package specification: index.json, paths.json, link.json)."""
    from conda_package_handling import api

    paths = [path_record(path, stage, placeholders) for path in sorted(files_below(stage))]
    subdir = "noarch" if noarch else SUBDIR
    record: dict[str, object] = {
        "name": name,
        "version": version,
        "build": "0",
        "build_number": 0,
        "depends": depends,
        "subdir": subdir,
        "license": "PSF-2.0",
    }
    record |= {"noarch": "python"} if noarch else {"arch": platform.machine(), "platform": "linux"}
    info = stage / "info"
    info.mkdir()
    (info / "index.json").write_text(json.dumps(record, indent=2))
    (info / "paths.json").write_text(json.dumps({"paths": paths, "paths_version": 1}, indent=2))
    (info / "files").write_text("".join(f"{entry['_path']}\n" for entry in paths))
    (info / "about.json").write_text("{}")
    if noarch:
        link = {"noarch": {"type": "python", "entry_points": list(entry_points)}}
        (info / "link.json").write_text(json.dumps(link | {"package_metadata_version": 1}, indent=2))
    listed = [str(path.relative_to(stage)) for path in files_below(stage)]
    api.create(str(stage), listed, str(folder / subdir / f"{name}-{version}-0.conda"), compression_level=1)


def path_record(path: Path, stage: Path, placeholders: Sequence[str]) -> dict[str, object]:
    data = path.read_bytes() if path.is_file() else b""  # a link may lead to a folder, or nowhere
    record: dict[str, object] = {
        "_path": str(path.relative_to(stage)),
        "path_type": "softlink" if path.is_symlink() else "hardlink",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_in_bytes": len(data),
    }
    found = [value for value in placeholders if value.encode() in data]
    if found and not path.is_symlink():
        mode = "binary" if b"\0" in data else "text"
        record |= {"prefix_placeholder": max(found, key=len), "file_mode": mode}
    return record


def files_below(folder: Path) -> Iterator[Path]:
    """Yield files and links."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root, name) for name in names)
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())


def index(folder: Path) -> None:
    from rattler.index import index_fs

    asyncio.run(index_fs(folder))
