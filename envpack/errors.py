"""Every error that envpack raises on purpose. Every module may import this one; it imports nothing.

ExplainedError                 mpiboot's errors derive from it, too
├── MalformedValueError        also a ValueError
└── EnvpackError
    ├── NotAnEnvironmentError
    ├── BrokenEnvironmentError
    ├── PackFailedError
    ├── ArchiveError
    │   ├── NotAnArchiveError
    │   ├── ArchiveVersionError
    │   ├── CorruptArchiveError
    │   ├── HostileArchiveError
    │   └── WrongArchiveError
    ├── StageRootError
    ├── NoSpaceError
    ├── PrefixTooLongError
    └── StageFailedError
"""


class ExplainedError(Exception):
    """Something failed that can be explained: the base of envpack's and mpiboot's errors.

    Parameters
    ----------
    problem : str
        What failed, with its path and, on a node, the host; and why.
    remedy : str
        What the user does next: a sentence without a full stop, or with a command at its end. It ends the message, on a
        line of its own if the problem has several lines.

    Attributes
    ----------
    problem, remedy : str
        The parameters, for an error that wraps this one.
    exit_status : int
        The exit status of a command that ends with this error.
    """

    exit_status = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return ("\n" if "\n" in self.problem else ". ").join(filter(None, [self.problem, self.remedy]))


class MalformedValueError(ExplainedError, ValueError):
    """A text is not a size, a time, a path or the like. Whoever knows the option adds its name. Exit status 2."""

    exit_status = 2


class EnvpackError(ExplainedError):
    """Something failed that envpack can explain."""


class NotAnEnvironmentError(EnvpackError):
    """The prefix is neither a conda environment nor a venv, or no environment is active.

    Name the root folder of an environment with `--prefix`.
    """


class BrokenEnvironmentError(EnvpackError):
    """The environment cannot be packed: files are missing or unreadable, or changed while they were packed.

    Repair what the message names, or wait until nothing writes to the environment, and pack it again.
    """


class PackFailedError(EnvpackError):
    """The archive cannot be written, or another process that packs the environment does not finish.

    The message names the folder or the process, and the host.
    """


class ArchiveError(EnvpackError):
    """The archive cannot be used; one of the classes below says why."""


class NotAnArchiveError(ArchiveError):
    """The file cannot be opened, or has no index at its end: it is something else, or was cut short.

    Check the path, or pack the environment again.
    """


class ArchiveVersionError(ArchiveError):
    """Another version of envpack made the archive, in a format that this one does not read.

    Pack the environment again.
    """


class CorruptArchiveError(ArchiveError):
    """The archive's content differs from its checksums, or its index contradicts itself; names the member if it can.

    Remove the archive and pack the environment again.
    """


class HostileArchiveError(ArchiveError):
    """A member would be written outside of the staged prefix, or is something that envpack never packs.

    Do not use the archive. Pack the environment yourself.
    """


class WrongArchiveError(ArchiveError):
    """Another archive has taken the path of the one that was asked for.

    Submit the job again.
    """


class StageRootError(EnvpackError):
    """The staging root is missing, not safe from other users, read-only, or cannot run programs.

    Choose a folder that is local to the nodes with `--root` or `MPIBOOT_STAGE_ROOT`.
    """


class NoSpaceError(EnvpackError):
    """There are not enough free bytes or inodes for a copy on a node, or for an archive; or a quota is used up.

    Remove unused copies with `envpack gc`, unused archives with `envpack gc --packs`, or choose another place.
    """


class PrefixTooLongError(EnvpackError):
    """The path of the staged prefix is longer than the room that a binary of the environment has for it.

    Choose a staging root with a shorter path.
    """


class StageFailedError(EnvpackError):
    """The environment could not be staged for another reason, or a staged prefix is damaged.

    The message names the file and the host.
    """
