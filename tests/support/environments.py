"""Real environments of every kind that users have, for the tests of promise 9: what is staged is what the environment is.

Each function of `ENVIRONMENTS` builds one in an empty folder. uv installs what a venv needs, from a cache of the tests'
own; conda environments come from the channels of condachannel.py and hardchannel.py.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
import zipapp
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from condachannel import XY, cache_folder
from condaenv import build_conda_env, cached_env, pip_install
from hardchannel import set_run_path, some_library
from privatemounts import Mount, private

SITE = f"lib/{XY}/site-packages"
SITE_T = f"lib/{XY}t/site-packages"
BASE_PYTHON = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
BASE = Path(sys.base_prefix)
SYSTEM_PYTHON = Path("/usr/bin/python3")
SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")
HEAVY = ("numpy", "pandas", "distributed")
BUILD_TIMEOUT_S = 600
USES = "import ctypes, json, sqlite3, ssl, pygments, psutil"


@dataclass
class Environment:
    """An environment, and what the tests expect of it.

    Attributes
    ----------
    prefix : Path
        Its root folder.
    base : Path or None
        The prefix of a venv's base interpreter.
    base_packages : bool
        It was made with --system-site-packages.
    aliases : tuple[Path, ...]
        Other paths by which its files may name it.
    mounts : tuple[Mount, ...]
        The mounts among which it is used.
    code : str
        What the staged copy must be able to run with everything of `sources()` hidden.
    warned : tuple[str, ...]
        Texts that pack's warnings must hold.
    programs : tuple[str, ...]
        Programs in its `bin` that must run, with `--help`.
    """

    prefix: Path
    base: Path | None = None
    base_packages: bool = False
    aliases: tuple[Path, ...] = ()
    mounts: tuple[Mount, ...] = ()
    code: str = USES
    warned: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    more_sources: tuple[Path, ...] = ()

    def sources(self) -> list[Path]:
        """Return the paths below which nothing may be opened when the staged copy runs."""
        found = [self.prefix, *self.aliases, *self.more_sources]
        if self.base in (Path("/usr"), Path("/usr/local")):
            found += [SYSTEM_PYTHON.resolve(), *self.base.glob("lib/python3*")]
        elif self.base:
            found.append(self.base)
        return list(dict.fromkeys([*found, *(path.resolve() for path in found)]))


def run(*argv: object, **variables: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, argv)), env=clean | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=BUILD_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))} failed:\n{done.stdout}{done.stderr}")


def tool(name: str) -> Path:
    """Return a program of the test group in pyproject.toml."""
    return Path(sys.executable).with_name(name)


def uv_cache() -> Path:
    return cache_folder() / "uv"


def uv(*arguments: object, link_mode: str = "copy") -> list[object]:
    return [
        "env", f"UV_CACHE_DIR={uv_cache()}", f"UV_LINK_MODE={link_mode}", "UV_NO_CONFIG=1", "UV_PYTHON_DOWNLOADS=never",
        tool("uv"), "--quiet", *arguments,
    ]  # fmt: skip


def uv_install(prefix: Path, *requirements: object, link_mode: str = "copy") -> None:
    """Install into a venv; what is not a copy must not be edited, as it belongs to uv's cache."""
    run(*uv("pip", "install", "--python", prefix / "bin/python", *requirements, link_mode=link_mode))


def uv_venv(prefix: Path, python: Path = BASE_PYTHON, *options: str) -> Path:
    run(*uv("venv", "--python", python, *options, prefix))
    return prefix


def wheel(folder: Path, name: str, version: str, code: str) -> Path:
    """Write a wheel with one module and a program of the same name that prints `code`'s VALUE."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"{code}\n\ndef main():\n    print(VALUE)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name.replace('_', '-')} = {name}:main\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, text)
    return path


def replace(path: Path, old: str, new: str) -> None:
    """Edit a text file as an editor does: a new file takes its name."""
    text = path.read_text()
    assert old in text, path
    other = path.with_name(f"{path.name}.new")
    other.write_text(text.replace(old, new, 1))
    other.chmod(path.stat().st_mode & 0o777)
    other.replace(path)


def add_odd_files(prefix: Path) -> tuple[str, ...]:
    """Put files into an environment that are hard to copy; return what pack must warn of."""
    outside = prefix.parent / "outside"
    (outside / "data").mkdir(parents=True)
    (outside / "data" / "file").write_text("outside\n")
    (outside / "module.py").write_text("VALUE = 'outside'\n")
    site = prefix / SITE
    odd = prefix / "share" / "odd"
    (odd / "empty").mkdir(parents=True)
    name = prefix
    (odd / "names.txt").write_text(
        f"{name}\n{name}/bin:{name}\n/usr{name}/bin {name}-other {name}.d {name}s x{name} -L{name}/lib file://{name}/x\n"
    )
    (odd / "latin.txt").write_bytes(f"\u00e9 {name}\n".encode("latin-1"))
    (odd / "binary").write_bytes(b"\xff\0" + os.fsencode(name) + b"/share\0\1")
    (odd / "read-only").write_text(f"{name}\n")
    (odd / "read-only").chmod(0o444)
    (odd / "private").write_text("private\n")
    (odd / "private").chmod(0o600)
    for text in (b"with blank \xe2\x98\x83 'quote'", b"new\nline", b"not-utf8-\xff", b"-dash"):
        Path(os.fsdecode(os.fsencode(odd) + b"/" + text)).write_bytes(text)
    os.link(odd / "private", odd / "second-name")
    os.link(odd / "names.txt", odd / "second-names.txt")
    os.mkfifo(odd / "fifo")
    # Larger than a frame, with names where the frames are cut.
    (odd / "large.txt").write_text(f"{name}/x " * (20_000_000 // len(f"{name}/x ")))
    for text, mtime_ns in {
        "at-the-epoch.py": 0,
        "before-it.py": -5_000_000_000,
        "later.py": 5_000_000_000 * 10**9 + 7,
    }.items():
        (site / text).write_text("VALUE = 1\n")
        os.utime(site / text, ns=(mtime_ns, mtime_ns))
    (odd / "absolute").symlink_to(odd / "names.txt")
    (odd / "relative").symlink_to("../odd/read-only")
    (odd / "dangling").symlink_to("nowhere")
    (odd / "dangling-absolute").symlink_to("/nowhere/at/all")
    (odd / "folder").symlink_to("empty")
    (odd / "outside-folder").symlink_to(outside / "data")
    (odd / "outside-file").symlink_to(outside / "data" / "file")
    (site / "linked_module.py").symlink_to(outside / "module.py")
    (site / "linked_relative.py").symlink_to(os.path.relpath(outside / "module.py", site))
    (site / "linked_package").symlink_to(outside / "data")
    stale = site / "stale_module.py"
    stale.write_text("VALUE = 1\n")
    py_compile.compile(str(stale), doraise=True)
    stale.write_text("VALUE = 'changed'\n")
    hashed = site / "hashed_module.py"
    hashed.write_text(f"VALUE = {str(name)!r}\n")
    py_compile.compile(str(hashed), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    shutil.copy2(some_library(), site / "with_run_path.so")
    set_run_path(site / "with_run_path.so", f"/nowhere:{name}/lib")
    code = prefix.parent / "zipapp"
    code.mkdir()
    (code / "__main__.py").write_text("print('zip application')\n")
    zipapp.create_archive(code, prefix / "bin" / "zip-application", f"{name}/bin/python")
    return ("share/odd/outside-folder", "share/odd/fifo")


ODD_USES = (
    f"{USES}, linked_module, linked_relative, stale_module, hashed_module; "
    "assert (linked_module.VALUE, stale_module.VALUE, hashed_module.VALUE) == ('outside', 'changed', sys.prefix)"
)


# ---- conda


def conda(folder: Path) -> Environment:
    """Several placeholders of different lengths, a noarch package, clobbered files, a library with a run path."""
    prefix = build_conda_env(folder / "env", packages=["pygments", "psutil"], hard=True)
    return Environment(
        prefix,
        code=f"{USES}, mpiboot_noarch, mpiboot_placeholder; assert mpiboot_placeholder.PREFIX == sys.prefix",
        programs=("mpiboot-noarch", "mpiboot-noarch-script", "mpiboot-placeholder", "pygmentize"),
        more_sources=(folder / "env-pkgs",),
    )


def conda_odd(folder: Path) -> Environment:
    """conda, and odd files of the user's."""
    environment = conda(folder)
    environment.warned = add_odd_files(environment.prefix)
    environment.code = ODD_USES
    environment.programs = ("zip-application",)
    environment.more_sources += (folder / "outside",)
    return environment


def conda_edited(folder: Path) -> Environment:
    """Files that conda manages are edited, of equal size too, deleted, and overwritten by pip."""
    environment = conda(folder)
    prefix = environment.prefix
    library = prefix / "lib" / XY
    replace(prefix / "share/placeholders/255.txt", "at the start", "at the START")
    replace(prefix / "etc/conda/activate.d/mpiboot-fixture.sh", "export", "export EDITED=1; export")
    replace(library / "json/decoder.py", "Implementation of", "My implementation of")
    replace(library / "colorsys.py", "Conversion", "conversion")
    replace(library / "site-packages/mpiboot_placeholder.py", "PREFIX", "EDITED = 1; PREFIX")
    replace(prefix / "bin/mpiboot-fixture", "print(", "print('edited', ")
    binary = prefix / "share/placeholders/160.bin"
    before = binary.stat()
    binary.write_bytes(binary.read_bytes().replace(b"\3", b"\4", 1))
    os.utime(binary, ns=(before.st_atime_ns, before.st_mtime_ns))
    (prefix / "share/placeholders/110.txt").unlink()
    (library / "this.py").unlink()
    (prefix / "share/clobber/text.txt").chmod(0o640)
    pip_install(prefix, [str(wheel(folder, "mpiboot_noarch", "2.0", "VALUE = 'noarch 2.0'"))])
    environment.code = (
        f"{USES}, mpiboot_noarch, mpiboot_placeholder; "
        "assert (mpiboot_noarch.VALUE, mpiboot_placeholder.EDITED) == ('noarch 2.0', 1)"
    )
    environment.warned = (
        "share/placeholders/255.txt", "etc/conda/activate.d/mpiboot-fixture.sh", "json/decoder.py", "colorsys.py",
        "mpiboot_placeholder.py", "bin/mpiboot-fixture", "share/placeholders/160.bin",
        "share/placeholders/110.txt", "this.py", "mpiboot_noarch/__init__.py",
    )  # fmt: skip
    return environment


def conda_cleaned(folder: Path) -> Environment:
    """The package cache was cleaned."""
    environment = conda(folder)
    shutil.rmtree(folder / "env-pkgs")
    return environment


def conda_short(folder: Path) -> Environment:
    """The prefix is `/env`, which also stands in `#!/usr/bin/env python`. A library has no room for another run path."""
    prefix = Path("/env")
    (folder / "env").mkdir()
    mount = Mount(folder / "env", prefix)
    build = [sys.executable, Path(__file__).with_name("condaenv.py"), "--hard", prefix, "pygments", "psutil"]
    (folder / "pkgs").mkdir()
    cache = Mount(folder / "pkgs", Path("/env-pkgs"))
    try:
        run(*private([mount, cache], build))
    finally:
        cache.target.rmdir()
    library = folder / "env" / SITE / "deep" / "in" / "it" / "roomless.so"
    library.parent.mkdir(parents=True)
    shutil.copy2(some_library(), library)
    set_run_path(library, "/env/lib")
    return Environment(
        prefix,
        mounts=(mount,),
        code=f"{USES}, mpiboot_placeholder; assert mpiboot_placeholder.PREFIX == sys.prefix",
        programs=("mpiboot-noarch", "mpiboot-placeholder", "pygmentize"),
        warned=(f"{SITE}/deep/in/it/roomless.so",),
    )


def pixi(folder: Path) -> Environment:
    """As pixi makes it: `.pixi/envs/NAME`, without conda's history."""
    prefix = build_conda_env(folder / "project/.pixi/envs/x", packages=["pygments", "psutil"], hard=True)
    (prefix / "conda-meta/history").unlink(missing_ok=True)
    (prefix / "conda-meta/pixi").write_text(
        '{"manifest_path": "/project/pixi.toml", "environment_name": "x"}'
    )
    (prefix / "conda-meta/pixi_env_prefix").write_text(str(prefix))
    return Environment(prefix, programs=("mpiboot-noarch", "pygmentize"))


# ---- venvs


def venv(folder: Path) -> Environment:
    """By `python -m venv`, with odd files of the user's."""
    prefix = folder / "env"
    run(BASE_PYTHON, "-m", "venv", "--without-pip", prefix)
    uv_install(prefix, "pygments", "psutil")
    return Environment(
        prefix, BASE, code=ODD_USES, warned=add_odd_files(prefix), programs=("pygmentize", "zip-application"),
        more_sources=(folder / "outside",),
    )  # fmt: skip


def venv_copies(folder: Path) -> Environment:
    """By `python -m venv --copies`."""
    prefix = folder / "env"
    run(BASE_PYTHON, "-m", "venv", "--without-pip", "--copies", prefix)
    uv_install(prefix, "pygments", "psutil")
    return Environment(prefix, BASE, programs=("pygmentize",))


def virtualenv(folder: Path) -> Environment:
    """By virtualenv, whose site-packages are links into its own cache."""
    prefix = folder / "env"
    cache = cache_folder() / "virtualenv"
    made = [tool("virtualenv"), "--quiet", "--symlink-app-data", "--python", BASE_PYTHON, prefix]
    run(*made, VIRTUALENV_OVERRIDE_APP_DATA=str(cache))
    uv_install(prefix, "pygments", "psutil")
    return Environment(
        prefix, BASE, code=f"{USES}, pip", programs=("pygmentize", "pip"), more_sources=(cache,)
    )


def _uv(folder: Path, link_mode: str) -> Environment:
    prefix = uv_venv(folder / "env")
    uv_install(prefix, "pygments", "psutil", link_mode=link_mode)
    return Environment(prefix, BASE, programs=("pygmentize",), more_sources=(uv_cache(),))


def uv_clone(folder: Path) -> Environment:
    """By uv, link mode clone (where a file system has no reflinks, uv copies)."""
    return _uv(folder, "clone")


def uv_copy(folder: Path) -> Environment:
    return _uv(folder, "copy")


def uv_hardlink(folder: Path) -> Environment:
    return _uv(folder, "hardlink")


def uv_symlink(folder: Path) -> Environment:
    """By uv, link mode symlink: all of site-packages is links into uv's cache."""
    return _uv(folder, "symlink")


def _conda_base(folder: Path) -> Path:
    return build_conda_env(folder / "home/miniconda", packages=["pygments", "psutil"])


def venv_of_conda(folder: Path) -> Environment:
    """A venv whose base interpreter is a conda environment in the home."""
    base = _conda_base(folder)
    prefix = folder / "env"
    run(base / "bin/python", "-m", "venv", "--without-pip", prefix)
    uv_install(prefix, "pygments", "psutil")
    return Environment(prefix, base, programs=("pygmentize",))


def system_site_of_conda(folder: Path) -> Environment:
    """A venv with --system-site-packages over a conda environment: it has no packages of its own."""
    base = _conda_base(folder)
    prefix = folder / "env"
    run(base / "bin/python", "-m", "venv", "--without-pip", "--system-site-packages", prefix)
    return Environment(prefix, base, base_packages=True)


def system_site_of_system(folder: Path) -> Environment:
    """A venv with --system-site-packages over the system's Python, where there is one."""
    python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else BASE_PYTHON
    prefix = uv_venv(folder / "env", python, "--system-site-packages")
    uv_install(prefix, "pygments", "psutil")
    code = USES
    if (SYSTEM_PACKAGES / "yaml").is_dir():
        code += ", yaml"
    return Environment(
        prefix, Path("/usr") if python == SYSTEM_PYTHON else BASE, base_packages=True, code=code
    )


def editable(folder: Path) -> Environment:
    """Editable installs inside and outside of the prefix, by a path and by a finder module."""
    prefix = uv_venv(folder / "env")
    places = {"inside": prefix / "projects", "outside": folder / "projects"}
    for where, place in places.items():
        for layout, sources in {"flat": "", "src": "src"}.items():
            name = f"{where}_{layout}"
            package = place / name / sources / name
            package.mkdir(parents=True)
            (package / "__init__.py").write_text(f"VALUE = {name!r}\n")
            (place / name / "pyproject.toml").write_text(
                f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n[project]\n'
                f'name = "{name}"\nversion = "1.0"\n'
            )
    uv_install(
        prefix, "pygments", "psutil", *(word for place in places.values() for path in sorted(place.iterdir())
        for word in ("-e", path)),
    )  # fmt: skip
    inside = "inside_flat, inside_src"
    code = f"{USES}, {inside}; assert all(m.__file__.startswith(sys.prefix) for m in ({inside}))"
    warned = tuple(str(path) for path in sorted(places["outside"].iterdir()))
    return Environment(prefix, BASE, code=code, warned=("outside_flat", "outside_src", *warned))


def uv_minor_version(folder: Path) -> Environment:
    """As uv makes it with a Python of its own: the base is reached through a link that names its minor version."""
    link = folder / "cpython-3.11-linux"
    link.symlink_to(BASE)
    prefix = uv_venv(folder / "env", link / "bin" / XY)
    uv_install(prefix, "pygments", "psutil")
    (prefix / "pyvenv.cfg").write_text(
        (prefix / "pyvenv.cfg").read_text().replace(f"home = {BASE}/", f"home = {link}/")
    )
    (prefix / "bin/python").unlink()
    (prefix / "bin/python").symlink_to(link / "bin" / XY)
    return Environment(prefix, BASE, programs=("pygmentize",), more_sources=(link,))


def blank(folder: Path) -> Environment:
    """A prefix with a blank and a quote in its name, which a first line cannot hold."""
    prefix = uv_venv(folder / "it's my environment")
    uv_install(prefix, "pygments", "psutil")
    return Environment(prefix, BASE, programs=("pygmentize",))


def by_a_link(folder: Path) -> Environment:
    """Named by a link to its folder, as through a home that is a link."""
    (folder / "disk").mkdir()
    (folder / "home").symlink_to("disk")
    uv_venv(folder / "disk/env")
    uv_install(folder / "home/env", "pygments", "psutil")
    return Environment(folder / "home/env", BASE, aliases=(folder / "disk/env",), programs=("pygmentize",))


def site_packages_elsewhere(folder: Path) -> Environment:
    """`site-packages` is a link to a folder outside of the prefix."""
    prefix = uv_venv(folder / "env")
    uv_install(prefix, "pygments", "psutil")
    (prefix / SITE).rename(folder / "elsewhere")
    (prefix / SITE).symlink_to(folder / "elsewhere")
    return Environment(prefix, BASE, programs=("pygmentize",), more_sources=(folder / "elsewhere",))


def view(folder: Path) -> Environment:
    """A view as Spack makes it: real folders, and links into a store; programs are copied."""
    store = uv_venv(folder / "store/env")
    uv_install(store, "pygments", "psutil")
    prefix = folder / "env"
    for root, _, names in os.walk(store):
        place = prefix / Path(root).relative_to(store)
        place.mkdir()
        for name in names:
            source = Path(root, name)
            if source.is_symlink():
                (place / name).symlink_to(source.readlink())
            elif place == prefix / "bin":
                (place / name).write_text(source.read_text().replace(str(store), str(prefix)))
                (place / name).chmod(source.stat().st_mode & 0o777)
            else:
                (place / name).symlink_to(source)
    (prefix / "lib64").unlink(missing_ok=True)
    return Environment(prefix, BASE, programs=("pygmentize",), more_sources=(folder / "store",))


def alias(folder: Path) -> Environment:
    """Another mount of the same prefix, whose path stands only in a program that pip wrote with `'''exec'`."""
    prefix = uv_venv(folder / "env")
    uv_install(prefix, "psutil", "pip")
    other = folder / "another name"
    other.mkdir()
    mount = Mount(prefix, other)
    install = [
        other / "bin/python",
        "-m",
        "pip",
        "--quiet",
        "install",
        "--disable-pip-version-check",
        "pygments",
    ]
    run(*private([mount], install))
    assert str(other) in (prefix / "bin/pygmentize").read_text()
    assert (prefix / "bin/pygmentize").read_text().startswith("#!/bin/sh")
    return Environment(prefix, BASE, mounts=(mount,), aliases=(other,), programs=("pygmentize",))


FREE_THREADED = f"""
import sys, sysconfig

# As a free-threaded build: its library folders are called {XY}t.
for scheme in sysconfig._INSTALL_SCHEMES.values():
    for key in ("stdlib", "platstdlib", "purelib", "platlib"):
        scheme[key] = (scheme[key] + "/").replace("short}}/", "short}}t/").rstrip("/")
sys.path[:] = [path.replace("/{XY}", "/{XY}t") for path in sys.path]
"""


def free_threaded_names(folder: Path) -> Environment:
    """Library folders called `python3.11t`, of a venv and of its base.

    No free-threaded interpreter is at hand, so this is not one: it names its folders so, and finds them through links.
    """
    base = _conda_base(folder)
    library = base / "lib" / XY
    library.rename(base / f"lib/{XY}t")
    library.symlink_to(f"{XY}t")
    (library / "sitecustomize.py").write_text(FREE_THREADED)
    prefix = folder / "env"
    run(base / "bin/python", "-m", "venv", "--without-pip", prefix)
    (prefix / "lib" / XY).symlink_to(f"{XY}t")
    uv_install(prefix, "pygments", "psutil")
    assert (prefix / SITE_T / "pygments").is_dir()
    for place in (base, prefix):
        for compiled in list(place.glob(f"lib/{XY}t/**/__pycache__")):
            shutil.rmtree(compiled)
    names = f"assert all('/lib/{XY}t/' in m.__file__ and m.__cached__ for m in (json, pygments))"
    return Environment(prefix, base, code=f"{USES}; {names}", programs=("pygmentize",))


# ---- with what users compute with


def heavy_conda(folder: Path) -> Environment:
    return Environment(cached_env(HEAVY), code="import numpy, pandas, distributed")


def heavy_venv(folder: Path) -> Environment:
    prefix = uv_venv(folder / "env")
    uv_install(prefix, *HEAVY, link_mode="hardlink")
    return Environment(prefix, BASE, code="import numpy, pandas, distributed", programs=("dask",))


def heavy_uv_symlink(folder: Path) -> Environment:
    prefix = uv_venv(folder / "env")
    uv_install(prefix, *HEAVY, link_mode="symlink")
    code = "import numpy, pandas, distributed"
    return Environment(prefix, BASE, code=code, programs=("dask",), more_sources=(uv_cache(),))


def heavy_system_site(folder: Path) -> Environment:
    base = cached_env(HEAVY)
    prefix = folder / "env"
    run(base / "bin/python", "-m", "venv", "--without-pip", "--system-site-packages", prefix)
    return Environment(prefix, base, base_packages=True, code="import numpy, pandas, distributed")


ENVIRONMENTS: Sequence[Callable[[Path], Environment]] = (
    conda, conda_odd, conda_edited, conda_cleaned, conda_short, pixi, venv, venv_copies, virtualenv, uv_clone, uv_copy,
    uv_hardlink, uv_symlink, venv_of_conda, system_site_of_conda, system_site_of_system, editable,
    site_packages_elsewhere, view, alias, uv_minor_version, blank, by_a_link,
    free_threaded_names,
    heavy_conda, heavy_venv, heavy_uv_symlink, heavy_system_site,
)  # fmt: skip
