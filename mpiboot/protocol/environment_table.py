"""What becomes of each environment variable on its way from the job's first node to ranks, tasks and batch command.

One table, `TABLE`. README.md shows it, and a test compares both. `protocol.rank_environment` follows it.

Boot imports this module; it imports `common.mpi` and `protocol.variables`.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from mpiboot.common.mpi import RANK_UNSET_PREFIXES
from mpiboot.common.patterns import matches
from mpiboot.protocol import variables as names


class Fate(Enum):
    """What becomes of a variable of boot's environment."""

    MADE = "made"  # mpiboot sets it, whatever it was
    DEFAULT = "default"  # mpiboot sets it unless the user has
    KEPT = "kept"  # as it is
    RELOCATED = "relocated"  # as it is, but a path into the source prefix leads to the staged one
    PER_NODE = "per node"  # what the batch system has set on each node
    LEFT_OUT = "left out"


class Rule(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    patterns : tuple of str
        Names; with `*` at its end, all names that begin so.
    fate : Fate
        What becomes of these variables.
    why : str
        The reason.
    """

    patterns: tuple[str, ...]
    fate: Fate
    why: str


def prefixed(prefixes: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}*" for prefix in prefixes)


# The first row that matches counts.
TABLE = (
    Rule(names.USER_VARIABLES, Fate.KEPT, "the user's settings of mpiboot"),
    Rule(names.JOB_VARIABLES, Fate.MADE, "what the job's processes tell each other"),
    Rule(("TMPDIR",), Fate.MADE, "the job's folder on each node, removed with the job"),
    Rule(names.ACTIVE_ENVIRONMENT, Fate.MADE, "the staged prefix is the active environment"),
    Rule(
        (*prefixed([names.DASK_TLS_PREFIX]), names.DASK_REQUIRE_ENCRYPTION),
        Fate.MADE,
        "the job's own TLS files",
    ),
    Rule((names.MPI4PY_FINALIZE,), Fate.MADE, "a lost rank must not hold up the others' end"),
    Rule(
        (names.UCX_TRANSPORTS, names.UCX_DEVICES),
        Fate.DEFAULT,
        "TCP on the job's interface is enough for MPI",
    ),
    Rule(names.DEVICES, Fate.PER_NODE, "numbers of one node's devices"),
    Rule(names.NODE_FILES, Fate.PER_NODE, "paths and CPUs that one node has, set by a site's prolog"),
    Rule(
        prefixed(RANK_UNSET_PREFIXES),
        Fate.LEFT_OUT,
        "of one run of MPI; the launcher sets its own for the ranks, and tasks do not get them",
    ),
    Rule(
        (*names.HOST_VARIABLES, *prefixed(names.HOST_PREFIXES)), Fate.LEFT_OUT, "of one host or login session"
    ),
    Rule((names.MPI4PY_INITIALIZE,), Fate.LEFT_OUT, "the ranks need MPI, whatever a login node allows"),
    Rule((names.TLS_KEY_LOG,), Fate.LEFT_OUT, "a file with the keys of all connections, on every node"),
    Rule(names.SERVICE_VARIABLES, Fate.LEFT_OUT, "of one process of a service manager"),
    Rule(names.PYTHON_VARIABLES, Fate.LEFT_OUT, "they change where Python finds its own files"),
    Rule(
        (*names.CONDA_SHELL, *prefixed(names.CONDA_SHELL_PREFIXES)), Fate.LEFT_OUT, "the state of one shell"
    ),
    Rule(
        (names.DASK_SCHEDULER_ADDRESS,),
        Fate.LEFT_OUT,
        "another cluster's; the batch command gets this cluster's",
    ),
    Rule(("PATH",), Fate.RELOCATED, "the staged prefix's `bin` comes first"),
    Rule(("*",), Fate.RELOCATED, "everything else, Dask's settings included"),
)


class EnvironmentTable:
    """The table, with the rows of the batch systems' variables.

    Parameters
    ----------
    batch_prefixes : sequence of str
        Prefixes of the variables that batch systems set in a job.
    batch_kept : sequence of str
        Those among them that belong to the user or the site.
    """

    def __init__(self, batch_prefixes: Iterable[str], batch_kept: Iterable[str]) -> None:
        self.rules = (
            Rule(tuple(batch_kept), Fate.KEPT, "the site's settings of the batch system"),
            Rule(
                prefixed(batch_prefixes),
                Fate.PER_NODE,
                "the batch system's own; tasks do not get those of one step",
            ),
            *TABLE,
        )

    def fate(self, name: str) -> Fate:
        """Return what becomes of a variable."""
        return next(rule.fate for rule in self.rules if matches(name, rule.patterns))

    def not_of_launcher(self) -> list[str]:
        """Return the patterns of the variables that ranks must not inherit from a launcher: all left out but MPI's."""
        patterns = [p for rule in self.rules if rule.fate is Fate.LEFT_OUT for p in rule.patterns]
        return [pattern for pattern in patterns if pattern not in prefixed(RANK_UNSET_PREFIXES)]
