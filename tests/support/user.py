"""A user of the minicluster: what they type, on which host, and the files of their home.

The tests of tests/cluster and tests/soak use a cluster through this class; only what a user cannot do (kill a node, cut a
cable, look as root) goes through `Minicluster` itself.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from slurmcluster import Minicluster
from waiting import wait_until


class User:
    """A user at a keyboard of the cluster.

    Parameters
    ----------
    cluster
        It must be up.
    name
        `alice`, whose environment is `cluster.env`, or `second`, another user.
    activated
        Whether `cluster.env` is on their PATH.
    """

    def __init__(self, cluster: Minicluster, name: str = "alice", *, activated: bool = True) -> None:
        self.cluster, self.name, self._activated = cluster, name, activated

    @property
    def home(self) -> Path:
        """The user's home, by its path on this machine."""
        return self.cluster.folder / "home" / self.name

    @property
    def uid(self) -> int:
        return self.home.stat().st_uid

    @property
    def bin(self) -> Path:
        """The programs of the user's environment, by the path on the cluster."""
        return self.cluster.env / "bin"

    def jobs(self) -> Path:
        """Return the folder of the user's job directories, by its path on this machine."""
        return self.home / ".mpiboot/jobs"

    def job_directory(self, job_id: str) -> Path:
        return self.jobs() / f"slurm-{self.cluster.name}-{job_id}"

    def types(
        self,
        *command: object,
        node: int | None = None,
        check: bool = True,
        timeout_s: float = 120,
        **variables: object,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, or on node number `node`, with these variables set."""
        argv = self._with_variables(command, variables)
        if node is None:
            return self.cluster.login(argv, user=self.name, check=check, timeout_s=timeout_s)
        return self.cluster.node(node, argv, user=self.name, check=check, timeout_s=timeout_s)

    def begins(self, *command: object, **pipes: Any) -> subprocess.Popen[str]:
        """Start a command on the login node; `pipes` are Popen's stdin, stdout and stderr."""
        argv = self.cluster.login_argv(self._with_variables(command, {}), user=self.name)
        return subprocess.Popen(argv, text=True, **pipes)

    def _with_variables(self, command: tuple[object, ...], variables: dict[str, object]) -> list[str]:
        path = {"PATH": f"{self.bin}:/usr/bin:/bin"} if self._activated else {}
        return ["env", *(f"{key}={value}" for key, value in (path | variables).items()), *map(str, command)]

    def runs_python(self, code: str, *arguments: object, **options: Any) -> str:
        """Run a program on the login node and return what it prints."""
        return self.types(self.bin / "python", "-uc", code, *arguments, **options).stdout

    def writes(self, name: str, text: str) -> str:
        """Write a file in the user's home, and return its name."""
        self.types("sh", "-c", 'mkdir -p "$(dirname "$0")"; printf %s "$1" > "$0"', name, text)
        return name

    def submits(self, *options: object, **variables: object) -> str:
        """Return the job id, which is all that submit prints on stdout."""
        return self.types(self.bin / "mpiboot", "submit", *options, **variables).stdout.strip()

    def stops(self, job_id: str) -> None:
        self.types(self.bin / "mpiboot", "stop", job_id)

    def cancels_all(self) -> None:
        """End all of the user's jobs, in any state, and wait until Slurm has released the nodes."""
        self.types("scancel", "--user", self.name)  # Slurm 20.11 has no --me
        queue = ("squeue", "--noheader", "--me")
        wait_until(
            lambda: not self.types(*queue).stdout,
            "end of all jobs",
            90,
            lambda: self.types(*queue).stdout,
        )
