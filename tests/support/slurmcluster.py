"""The minicluster as tests use it: boot one, run commands on it, break it, read its logs.

Each process of a test run (pytest-xdist starts several) has clusters of its own: their names contain its pid.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from condaenv import copy_user_env

COMMAND = Path(__file__).resolve().parents[1] / "minicluster" / "minicluster"
ENABLE = "sudo tests/minicluster/minicluster deps --install"
JOB_LOGS = (
    "slurm-*.out",
    ".mpiboot/jobs/*/events.jsonl",
    ".mpiboot/jobs/*/boot.log",
    ".mpiboot/jobs/*/ranks.log",
    ".mpiboot/logs/*",
)
TAIL_LINES = 40


def why_no_cluster(site: str = "plain") -> str | None:
    """Return why no cluster of a site can be booted here, and what would enable it; None if it can.

    Fails the test under MPIBOOT_REQUIRE_CLUSTER=1 instead of returning a reason.
    """
    reason: str | None = None
    if os.geteuid() != 0:
        reason = "the cluster needs root: run `sudo make test`"
    else:
        # It may have to make a root folder.
        argv = [str(COMMAND), "deps", *([] if site == "plain" else ["--site", site])]
        deps = subprocess.run(argv, capture_output=True, text=True, timeout=900)
        reason = f"{deps.stdout}{deps.stderr}".strip() + f": run `{ENABLE}`" if deps.returncode else None
    if reason is None:
        argv = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "true"]
        probe = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        reason = (
            f"{probe.stderr.strip()}: run the container with `--privileged`" if probe.returncode else None
        )
    if reason and os.environ.get("MPIBOOT_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"MPIBOOT_REQUIRE_CLUSTER=1, but {reason}", pytrace=False)
    return reason


@dataclass(frozen=True)
class Minicluster:
    """A cluster that is up. `env` is the prefix of alice's environment, once `add_env` has put it there."""

    name: str
    folder: Path
    user: str = "alice"
    uid: int = 61001
    env: Path = Path("/home/alice/env")

    @classmethod
    @contextlib.contextmanager
    def booted(cls, *options: str, suffix: str = "") -> Iterator[Minicluster]:
        """Boot a cluster, and end it with the block; `suffix` distinguishes the clusters of one process."""
        sweep()
        name = cluster_name(suffix)
        cluster = cls(name, Path("/var/lib", f"minicluster-{name}"))
        try:
            cluster._command(["up", *options], timeout_s=90, check=True)
            yield cluster
        finally:
            cluster._command(["down"], timeout_s=120, check=True)

    def _command(
        self, argv: Sequence[str], *, timeout_s: float, check: bool
    ) -> subprocess.CompletedProcess[str]:
        return run([str(COMMAND), "--name", self.name, *argv], timeout_s=timeout_s, check=check)

    @property
    def home(self) -> Path:
        """alice's home, by its path on this machine."""
        return self.folder / "home" / self.user

    def add_env(
        self, name: str, extras: Sequence[str] | None, packages: Sequence[str] = (), *, linked: bool = False
    ) -> Path:
        return copy_user_env(self.home, name, extras, self.user, self.uid, packages, linked=linked)

    def login(
        self, argv: Sequence[str], *, user: str | None = None, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, in the user's home with a clean environment."""
        return self._command(["login", *self._as(user), *argv], timeout_s=timeout_s, check=check)

    def node(
        self,
        k: int,
        argv: Sequence[str],
        *,
        user: str | None = None,
        check: bool = True,
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        return self._command(["node", str(k), *self._as(user), *argv], timeout_s=timeout_s, check=check)

    def _as(self, user: str | None) -> list[str]:
        return ["--user", user or self.user]

    def login_argv(self, argv: Sequence[str], *, user: str | None = None) -> list[str]:
        """Return the command, to be run on this machine, that runs `argv` on the login node."""
        return [str(COMMAND), "--name", self.name, "login", *self._as(user), *argv]

    def kill(self, k: int) -> None:
        self._command(["kill", str(k)], timeout_s=60, check=True)

    def start(self, k: int) -> None:
        self._command(["start", str(k)], timeout_s=90, check=True)

    def cut(self, k: int, *options: str) -> None:
        self._command(["cut", str(k), *options], timeout_s=30, check=True)

    def heal(self, k: int, *options: str) -> None:
        self._command(["heal", str(k), *options], timeout_s=30, check=True)

    def log(self, daemon: str, host: str = "login") -> str:
        """Return a daemon's log: slurmctld's, or slurmd's of some node."""
        return (self.folder / "log" / host / f"{daemon}.log").read_text(errors="replace")


def cluster_name(suffix: str = "") -> str:
    """Return the name of this process's cluster, by which `sweep` finds it; `suffix` is of letters."""
    return f"test{os.getpid()}{suffix}"


def sweep() -> None:
    """End the clusters of test processes that were killed."""
    for folder in Path("/var/lib").glob("minicluster-test*"):
        name = re.fullmatch(r"minicluster-(test(\d+)[a-z]*)", folder.name)
        if name and not Path("/proc", name[2]).exists():
            run([str(COMMAND), "--name", name[1], "down"], timeout_s=120, check=True)


def run(argv: Sequence[str], *, timeout_s: float, check: bool) -> subprocess.CompletedProcess[str]:
    """Run a command in a new session, so that a timeout ends all its processes; a failed check shows its output."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        print(f"{' '.join(argv)} did not end within {timeout_s:g} s; so far:\n{out}{err}")
        raise
    done = subprocess.CompletedProcess(list(argv), process.returncode, out, err)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{out}{err}")
    return done


def report_sections(cluster: Minicluster) -> list[tuple[str, str]]:
    """Return (title, last lines) of each log that can tell why a job on the cluster failed, newest last."""
    logs = sorted(
        {path for pattern in JOB_LOGS for path in cluster.home.glob(pattern) if path.is_file()}, key=_mtime
    )
    sections = [(f"~/{path.relative_to(cluster.home)}", tail(path)) for path in logs[-12:]]
    for log in sorted(cluster.folder.glob("log/*/slurm*.log")):
        sections.append((f"{log.parent.name}: {log.name}", tail(log)))
    return [(title, text) for title, text in sections if text]


def _mtime(path: Path) -> float:
    return path.stat().st_mtime


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
