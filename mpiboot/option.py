"""What an option is: `Option` holds every fact about one but its value, and a `Kind` reads and writes its values.

`mpiboot.kinds` has the kinds, and `mpiboot.config` describes the options of a job with these; the command lines and the
Python signatures read them. Boot starts with this module: it imports neither click nor Dask.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from envpack.errors import MalformedValueError
from mpiboot.errors import UsageError

# The places where an option may be set.
SUBMIT = "the command line of submit"
BOOT = "the command line of boot"
PYTHON = "a Python call"
FILE = "a configuration file"
ENVIRONMENT = "the environment"
EVERYWHERE = frozenset((SUBMIT, BOOT, PYTHON, FILE, ENVIRONMENT))

# The headings of a command line's help, in their order.
JOB = "The job"
WORKERS = "Its size"
PROGRAMS = "Its environment"
NETWORK = "Network and security"
LIFE = "The job's life"
GROUPS = (JOB, WORKERS, PROGRAMS, NETWORK, LIFE)


@dataclass(frozen=True, eq=False)
class Kind:
    """How the values of some options are read and written.

    Parameters
    ----------
    parse : callable
        Parses a value that a user typed or a file contains; raises MalformedValueError.
    place : callable
        Returns what a parsed value means in one of the places above; raises MalformedValueError.
    write : callable
        Returns the argument of `boot` that `parse` turns into the same value.
    show : callable
        Returns a default value as text for the user.
    units : str
        A sentence about the units of a value, for the documentation.
    choices : tuple of str
        The allowed values; empty: all that `parse` accepts.
    """

    parse: Callable[[Any], Any]
    place: Callable[[Any, str], Any] = lambda value, place: value
    write: Callable[[Any], str] = str
    show: Callable[[Any], str] = str
    units: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """The description of one option; `Config` holds its value.

    Parameters
    ----------
    kind : Kind
        How its values are read and written.
    help : str
        Its meaning, in a few words.
    default : object
        Its default value; None if that depends on the environment or on the job.
    metavar : str
        The placeholder for the value in a command line's help.
    default_words : str
        Describes the default if it is not a fixed value.
    allowed_in : collection of str
        The places where it may be set.
    elsewhere : str
        The remedy of the error if it is set in another place.
    repeatable : bool
        Whether it may be given several times; its value is then a tuple.
    group : str
        The heading that it stands under in a command line's help.
    short : str
        Its short form on a command line, such as `-N`.
    same_as : str
        The option of another program, such as dask-mpi, with the same meaning.
    variable : str
        Another environment variable that sets it, besides `DASK_MPIBOOT__NAME`.
    name : str
        Its name in Python and in files; set by `OPTIONS`.
    """

    kind: Kind
    help: str
    default: Any
    metavar: str = ""
    default_words: str = ""
    allowed_in: Collection[str] = EVERYWHERE
    elsewhere: str = ""
    repeatable: bool = False
    group: str = ""
    short: str = ""
    same_as: str = ""
    variable: str = ""
    name: str = ""

    @property
    def flag(self) -> str:
        """The option's name on a command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def full_help(self) -> str:
        """The help with the default value, for a command line."""
        default = self.default_words or ("" if self.default in (None, False, ()) else self.show_default())
        notes = [f"default: {default}"] if default else []
        notes += ["repeatable"] if self.repeatable else []
        return f"{self.help} [{'; '.join(notes)}]" if notes else self.help

    def show_default(self) -> str:
        return self.kind.show(self.default)

    def parse(self, value: Any, place: str = SUBMIT, label: str = "") -> Any:
        """Parse a value that a user typed or a file contains.

        Parameters
        ----------
        value : object
            A text, or what YAML or Python made of it.
        place : str
            Where the value stands, such as `SUBMIT`.
        label : str
            The option's name there, for errors (default: its flag, or its name).

        Raises
        ------
        UsageError
            `value` is not a value of this option; the message says which values are.
        """
        try:
            if not self.repeatable:
                return self.kind.place(self.kind.parse(value), place)
            if not isinstance(value, str | list | tuple):
                raise MalformedValueError(f"{shown(value)} is not a list", "Write a list of texts")
            items = [value] if isinstance(value, str) else value
            return tuple(self.kind.place(self.kind.parse(item), place) for item in items)
        except MalformedValueError as error:
            label = label or (self.flag if place in (SUBMIT, BOOT) else self.name)
            raise UsageError(f"{label}: {error.problem}", error.remedy) from error


def shown(value: Any) -> str:
    """Return a value for a message; not the values of a mapping, which may be variables with secrets."""
    return "a mapping" if isinstance(value, Mapping) else repr(value)
