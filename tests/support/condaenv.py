"""Real conda environments on a machine that reaches no channel: made of the running interpreter, filled by pip.

Fixtures and `Minicluster.add_env` use it. What is built once lies in `~/.cache/mpiboot-tests` (MPIBOOT_TEST_CACHE), for
all processes of a test run and for all checkouts; locks let one process build while the others wait.

A `.conda` package is made of the interpreter's own base, and one of a few files that have what relocation must get
right (a text prefix in an activate.d script and in an entry script, a binary prefix). They are indexed, solved and
installed by py-rattler from a `file://` channel, so every record that conda-pack reads is a real one.

    python tests/support/condaenv.py PREFIX [--extras openmpi,demo] [--into HOME] [PACKAGE ...]
"""

from __future__ import annotations

import argparse
import asyncio
import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from condachannel import SUBDIR, cache_folder, channel, digest
from filelock import FileLock
from hardchannel import PACKAGES, hard_channel

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S = 1500


def build_conda_env(
    prefix: Path,
    extras: Sequence[str] | None = None,
    packages: Sequence[str] = (),
    *,
    pkgs_folder: Path | None = None,
    hard: bool = False,
) -> Path:
    """Install a conda environment, then let pip add to it, as users do.

    Parameters
    ----------
    prefix
        The prefix, which must not exist yet; its absolute path is written into its files.
    extras
        Install mpiboot of this checkout, not editable, with these extras. None: without mpiboot.
    packages
        More requirements for pip.
    pkgs_folder
        conda's package cache, which conda-pack reads too; default: `<prefix>-pkgs` beside the prefix. Not shared:
        files are hard-linked into the prefix, and a test may change them in place.
    hard
        With the packages of hardchannel.py.

    Returns
    -------
    The prefix.
    """
    pkgs_folder = pkgs_folder or prefix.with_name(f"{prefix.name}-pkgs")
    channels = {channel(): ["python", "mpiboot-fixture"]} | ({hard_channel(): [*PACKAGES]} if hard else {})
    asyncio.run(_install(channels, prefix, pkgs_folder))
    requirements = list(packages)
    if extras is not None:
        requirements.append(mpiboot_requirement(extras))
    if requirements:
        pip_install(prefix, requirements)
    return prefix


async def _install(channels: dict[Path, list[str]], prefix: Path, pkgs_folder: Path) -> None:
    from rattler import Channel, Gateway, install, solve

    with tempfile.TemporaryDirectory() as repodata:
        records = await solve(
            [Channel(folder.as_uri()) for folder in channels],
            [name for names in channels.values() for name in names],
            gateway=Gateway(cache_dir=Path(repodata)),
            platforms=[SUBDIR, "noarch"],  # type: ignore[list-item]
        )
    pkgs_folder.mkdir(parents=True, exist_ok=True)
    await install(records, prefix, cache_dir=pkgs_folder, show_progress=False)


def pip_install(prefix: Path, requirements: Sequence[str], *options: str) -> None:
    pip("--python", str(prefix / "bin" / "python"), "install", *options, *requirements)


def pip(*arguments: str) -> None:
    """Run the pip of this interpreter; `--python` lets it install into another one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    quiet = {
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_WARN_SCRIPT_LOCATION": "1",
    }
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    done = subprocess.run(
        command,
        env=kept | quiet,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def sources_digest() -> str:
    """Return a digest of the files that go into mpiboot's wheel."""
    names = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    for room in ("envpack", "jobscripts", "mpiboot"):
        names += [
            str(path.relative_to(CHECKOUT))
            for path in sorted((CHECKOUT / room).rglob("*"))
            if is_source(path)
        ]
    return digest(part for name in names for part in (name, (CHECKOUT / name).read_bytes()))


def is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def mpiboot_wheel() -> Path:
    """Return a wheel of this checkout; built from a copy, since setuptools writes into the tree that it builds."""
    folder = cache_folder() / "wheels" / sources_digest()
    with FileLock(f"{cache_folder() / 'wheels'}.lock"):
        if not list(folder.glob("*.whl")):
            with tempfile.TemporaryDirectory(dir=cache_folder()) as copy:
                for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
                    shutil.copy2(CHECKOUT / name, copy)
                for room in ("envpack", "jobscripts", "mpiboot"):
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(CHECKOUT / room, Path(copy, room), ignore=ignore)
                pip("wheel", "--no-deps", "--wheel-dir", str(folder), copy)
    return next(folder.glob("*.whl"))


def mpiboot_requirement(extras: Sequence[str]) -> str:
    return f"mpiboot[{','.join(extras)}] @ {mpiboot_wheel().as_uri()}"


def requirements_digest() -> str:
    """Return a digest of the requirements in setup.cfg; an environment is built anew when they change."""
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    return digest([setup["options"]["install_requires"], json.dumps(dict(setup["options.extras_require"]))])


# ---- environments that are built once


def cached_env(packages: Sequence[str] = (), extras: Sequence[str] | None = None) -> Path:
    """Return an environment that is built once per machine. Tests must not change it."""
    prefix = _cached("plain", packages, extras) / "env"
    with FileLock(f"{prefix.parent}.lock"):
        _build_once(
            prefix.parent,
            extras,
            build=lambda: build_conda_env(prefix, extras, packages),
            reinstall=lambda: reinstall_mpiboot(prefix),
        )
    return prefix


def copy_user_env(
    home: Path,
    name: str,
    extras: Sequence[str] | None,
    user: str = "alice",
    uid: int = 61001,
    packages: Sequence[str] = (),
    *,
    linked: bool = False,
) -> Path:
    """Give a user of a minicluster an environment; return its prefix as the cluster sees it.

    It has mpiboot with `extras`, unless they are None. `linked`: its files are hard links, four seconds sooner there,
    for tests that never write into one.

    Built once per machine, where it will be used: in a mount namespace in which a cached folder is /home/USER. That
    folder's content (the environment, and conda's package cache) is then copied into `home`. Needs root.
    """
    folder = _cached("homes", name, extras, user, str(uid), *packages)
    prefix = Path("/home", user, name)

    def at_home(*options: str) -> None:
        (folder / user).mkdir(parents=True, exist_ok=True)
        # If the test run is killed, this process dies too: otherwise it would still write into the next run's folder.
        unshare = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private"]
        unshare += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        asked = [str(prefix), *packages, *([] if extras is None else ["--extras", ",".join(extras)])]
        script = [sys.executable, str(Path(__file__).resolve()), *asked]
        run([*unshare, *script, "--home", str(folder / user), *options])
        run(["chown", "-R", f"{uid}:{uid}", str(folder / user)])

    with FileLock(f"{folder}.lock"):
        _build_once(folder, extras, build=at_home, reinstall=lambda: at_home("--reinstall"))
        (folder / user).chmod(0o700)  # `cp -a` gives the home its mode, too
        run(["cp", "-al" if linked else "-a", f"{folder / user}/.", str(home)])
    return prefix


def _cached(kind: str, *parts: object) -> Path:
    folder = cache_folder() / kind / digest([channel().name, requirements_digest(), repr(parts)])
    folder.parent.mkdir(mode=0o700, exist_ok=True)  # users reach an environment only by its own prefix
    return folder


def _build_once(
    folder: Path, extras: Sequence[str] | None, build: Callable[[], object], reinstall: Callable[[], object]
) -> None:
    """Build, only reinstall mpiboot, or do nothing. The marker file exists only while the folder is complete."""
    marker = folder / "built"
    wanted = "" if extras is None else sources_digest()
    built = marker.read_text() if marker.exists() else None
    if built == wanted:
        return
    if built is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        build()
    else:
        marker.unlink()
        reinstall()
    marker.write_text(wanted)


def reinstall_mpiboot(prefix: Path) -> None:
    pip_install(prefix, [mpiboot_requirement(())], "--no-deps", "--force-reinstall")


def mount_home(folder: Path, home: Path) -> None:
    """Mount `folder` at `home` in this mount namespace; the rest of /home stays as it was."""

    def mount(*arguments: str) -> None:
        run(["mount", *arguments])

    kept = [path for path in home.parent.iterdir() if path.is_dir() and path != home]
    # Reached by descriptor: mounting hides their paths.
    sources = {path: f"/proc/{os.getpid()}/fd/{os.open(path, os.O_PATH)}" for path in [*kept, folder]}
    mount("-t", "tmpfs", "tmpfs", str(home.parent))
    for path, source in [*((path, sources[path]) for path in kept), (home, sources[folder])]:
        path.mkdir()
        mount("--rbind", source, str(path))


def run(argv: list[str]) -> None:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", type=Path)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE")
    parser.add_argument("--extras", help="install mpiboot too, with these extras (openmpi,demo)")
    parser.add_argument(
        "--into", type=Path, metavar="HOME", help="a minicluster's home; PREFIX: /home/USER/NAME"
    )
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)  # mount it at the prefix's parent
    parser.add_argument("--hard", action="store_true", help="with the packages of hardchannel.py")
    parser.add_argument("--reinstall", action="store_true", help=argparse.SUPPRESS)  # only mpiboot
    options = parser.parse_args()
    prefix = options.prefix.absolute()
    extras = None if options.extras is None else [word for word in options.extras.split(",") if word]
    if options.into:
        uid = options.into.stat().st_uid
        copy_user_env(options.into, prefix.name, extras or (), prefix.parent.name, uid, options.packages)
        return
    if options.home:
        mount_home(options.home, prefix.parent)
    if options.reinstall:
        reinstall_mpiboot(prefix)
    else:
        pkgs_folder = prefix.parent / ".conda" / f"{prefix.name}-pkgs" if options.home else None
        build_conda_env(prefix, extras, options.packages, pkgs_folder=pkgs_folder, hard=options.hard)
    print(prefix)


if __name__ == "__main__":
    main()
