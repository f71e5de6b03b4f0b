"""`Facts`: the description of a batch system, available before any of its code is imported."""

from typing import NamedTuple


class Facts(NamedTuple):
    """The description of a batch system, in the `__init__.py` of its folder.

    Attributes
    ----------
    name : str
        The folder's name, and the word for `--batch-system`.
    title : str
        The name for messages, such as `Grid Engine`.
    command : str or None
        The command that submits a job; a machine has the batch system if this is on the PATH. None: every machine has it.
    job_variable : str or None
        An environment variable that exists in every job, and only there; None: no variable identifies a job.
    variables : tuple of str
        Prefixes of the variables that it sets in a job. They describe that one job, so another job must not inherit
        them.
    kept_variables : tuple of str
        Variables that match `variables` but belong to the user or the site, such as the path of a configuration file.
    step_variables : tuple of str
        Those that describe one step of a job, or one process in it; with `*` at its end, all names that begin so. Tasks
        do not get them: a command of the batch system would take them for wishes.
    device_variables : tuple of str
        Variables that a job has if it was given devices, which each node numbers for itself.
    launcher : str or None
        Its own launcher of MPI ranks, as named in `--mpi`; None if it has none.
    transport : str or None
        Its own command that copies a file to all nodes, as named in `--transport`; None if it has none.
    """

    name: str
    title: str
    command: str | None = None
    job_variable: str | None = None
    variables: tuple[str, ...] = ()
    kept_variables: tuple[str, ...] = ()
    step_variables: tuple[str, ...] = ()
    device_variables: tuple[str, ...] = ()
    launcher: str | None = None
    transport: str | None = None

    @property
    def job_script(self) -> str:
        """The file name of its job script in `jobscripts/`."""
        return f"{self.name}.sh"
