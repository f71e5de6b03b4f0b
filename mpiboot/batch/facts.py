"""`Facts`: what has to be known of a batch system before any of its code is imported."""

from typing import NamedTuple


class Facts(NamedTuple):
    """What a batch system's folder says of itself in its `__init__.py`.

    Attributes
    ----------
    name : str
        The folder's name, and the word for `--batch-system`.
    title : str
        The name for messages, such as `Grid Engine`.
    command : str or None
        The command that submits a job; a machine has the batch system if this is on the PATH. None: every machine has it.
    job_variable : str or None
        The environment variable that every job has and nothing else; None: its jobs cannot be told by a variable.
    variables : tuple of str
        How the names of its variables in a job start. They describe that one job, so another job must not inherit them.
    kept_variables : tuple of str
        Variables that match `variables` but belong to the user or the site, such as the path of a configuration file.
    launcher : str or None
        Its own launcher of MPI ranks, a word for `--mpi`.
    transport : str or None
        Its own way to carry a file to all nodes, a word for `--transport`.
    """

    name: str
    title: str
    command: str | None = None
    job_variable: str | None = None
    variables: tuple[str, ...] = ()
    kept_variables: tuple[str, ...] = ()
    launcher: str | None = None
    transport: str | None = None

    @property
    def job_script(self) -> str:
        """The file name of its job script in `jobscripts/`."""
        return f"{self.name}.sh"
