"""Root folders of other Debians, made once with mmdebstrap: their programs run in place of this machine's.

Standard library only; tests/support/newest_python.py uses this module, too. A folder's /usr alone is mounted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import MiniclusterError

BUILD_TIMEOUT_S = 900
MIRROR = "http://deb.debian.org/debian"
# What tests and their users call, beside Slurm.
TOOLS = (
    *("python3", "python3-venv", "curl", "e2fsprogs", "iproute2", "mount", "munge", "openssl", "procps", "socat"),
    *("sshfs", "openssh-sftp-server", "zstd"),
)  # fmt: skip


@dataclass(frozen=True)
class Root:
    """A root folder.

    Attributes
    ----------
    suite : str
        The Debian.
    packages : tuple of str
        Its packages.
    slurm_suite : str
        Another Debian, which its packages of Slurm and PMIx are taken from; empty: the same.
    """

    suite: str
    packages: tuple[str, ...]
    slurm_suite: str = ""


ROOTS = {
    "newest": Root("trixie", (*TOOLS, "slurmctld", "slurmd", "slurm-client", "libpmix2t64")),
    # The test environment's Python needs a newer glibc than bullseye's, and bookworm's runs bullseye's programs.
    "oldest": Root(
        "bookworm",
        (*TOOLS, "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libpmix2"),
        "bullseye",
    ),
}
# Slurm's plugin looks for the library by the name that only PMIx's development package has.
PMIX_LINK = 'for lib in "$1"/usr/lib/*/pmix2/lib; do ln -sf libpmix.so.2 "$lib/libpmix.so"; done'
PINS = "Package: slurm* libslurm* libpmix*\nPin: release n={suite}\nPin-Priority: 1001\n"


def why_not() -> str | None:
    """Return why other roots cannot be mounted here, and what would enable it; None if they can."""
    if os.geteuid() != 0:
        return "it needs root, to mount"
    if not Path("/bin").is_symlink():
        return "this machine's /bin is not a link into /usr"
    if shutil.which("mmdebstrap") is None:
        return "there is no mmdebstrap: apt-get install --no-install-recommends mmdebstrap"
    return None


def cache_folder() -> Path:
    default = Path("~/.cache/mpiboot-tests").expanduser()
    folder = Path(os.environ.get("MPIBOOT_TEST_CACHE") or default) / "roots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mirror() -> str:
    """Return the address from which this machine takes Debian's packages; Debian's own if it is no Debian."""
    if shutil.which("apt-get") is None:
        return MIRROR
    argv = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(REPO_URI)", "Identifier: Packages"]
    rows = [line.split() for line in subprocess.check_output(argv, text=True).splitlines()]
    found = [row[-1] for row in rows if row[0] == "Debian" and "security" not in row[1]]
    return found[0] if found else MIRROR


def root_folder(name: str) -> Path:
    """Return the root folder of this name; made once per description, in a minute or two.

    Raises
    ------
    MiniclusterError
        mmdebstrap failed.
    """
    root = ROOTS[name]
    recipe = repr(build_command(root, Path("folder"), "mirror"))
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{digest}"
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            print(f"making {folder} with mmdebstrap", flush=True)
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            command = build_command(root, partial, mirror())
            if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=BUILD_TIMEOUT_S).returncode:
                raise MiniclusterError(
                    f"the root folder {name} cannot be made: mmdebstrap failed (see above)"
                )
            partial.rename(folder)
    return folder


def build_command(root: Root, folder: Path, mirror: str) -> list[str]:
    """Return the command that makes a root folder."""
    suites = [root.suite, *filter(None, [root.slurm_suite])]
    pins = PINS.format(suite=suites[-1]).replace("\n", "\\n")
    preferences = "$1/etc/apt/preferences.d"
    pin = f"mkdir -p {preferences} && printf '{pins}' > {preferences}/slurm"
    return [
        *("mmdebstrap", "--quiet", "--variant=apt", f"--setup-hook={pin}", f"--customize-hook={PMIX_LINK}"),
        *(f"--include={','.join(root.packages)}", root.suite, str(folder)),
        *(f"deb {mirror} {suite} main" for suite in suites),
    ]
