"""All options of a job, each described once, and the `Config` that holds their values.

The command lines of `submit` and `boot`, the Python signatures, the configuration files and the documentation are
generated from the fields of `Config`, or checked against them. A value on the command line comes before one in the
environment (`DASK_MPIBOOT__...`), before one in a file (`~/.config/dask/*.yaml`, key `mpiboot`), before the default.
Everything above the batch systems may import this module. `boot` starts with it: it imports neither click nor Dask.
"""

import argparse
import difflib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from envpack.common import places
from envpack.common.places import DEFAULT_STAGE_ROOT, HOME_VARIABLE, STAGE_ROOT_VARIABLE
from envpack.errors import MalformedValueError
from mpiboot.errors import UsageError
from mpiboot.kinds import (
    BATCH_SYSTEM,
    COUNT,
    DURATION,
    FLAG,
    MPI,
    ORIGINS,
    PATH,
    PORT,
    PORT_RANGE,
    SIZE,
    TEXT,
    TRANSPORT,
    VARIABLE,
    WALLTIME,
)
from mpiboot.option import (
    BOOT,
    ENVIRONMENT,
    EVERYWHERE,
    FILE,
    JOB,
    LIFE,
    NETWORK,
    PROGRAMS,
    PYTHON,
    SUBMIT,
    WORKERS,
    Kind,
    Option,
)
from mpiboot.protocol.variables import DASK_OPTIONS_PREFIX


def _option(kind: Kind, help: str, default: Any = None, *, group: str, **facts: Any) -> Any:
    """Return a field of `Config` that is an option."""
    if kind.choices:
        facts["metavar"] = "{" + ",".join(kind.choices) + "}"
    return field(default=default, metadata={"option": Option(kind, help, default, group=group, **facts)})


@dataclass(frozen=True)
class Config:
    """The options of one job, and the command of batch mode. Times are in seconds and sizes in bytes."""

    batch_system: str = _option(
        BATCH_SYSTEM,
        "batch system that runs the job; auto: the first that this machine has",
        "auto",
        group=JOB,
    )
    env: str | None = _option(
        PATH, "prefix of the environment", metavar="PREFIX", default_words="the active one", group=PROGRAMS
    )
    nodes: int = _option(
        COUNT,
        "nodes of the job",
        1,
        metavar="N",
        same_as="sbatch --nodes",
        allowed_in=EVERYWHERE - {BOOT},
        group=WORKERS,
        short="-N",
    )
    workers_per_node: int | None = _option(
        COUNT,
        "workers on each node",
        metavar="N",
        default_words="one per 4 CPUs, or per cpus-per-worker",
        same_as="sbatch --ntasks-per-node",
        group=WORKERS,
    )
    cpus_per_worker: int | None = _option(
        COUNT,
        "CPUs, and threads, of each worker",
        metavar="N",
        default_words="the node's, divided among its workers",
        same_as="sbatch --cpus-per-task",
        group=WORKERS,
    )
    mem: int | None = _option(
        SIZE,
        "memory of each node; 0: all of it",
        metavar="SIZE",
        default_words="the batch system's",
        same_as="sbatch --mem",
        group=WORKERS,
    )
    time: str | None = _option(
        WALLTIME,
        "walltime",
        metavar="T",
        default_words="the batch system's",
        same_as="sbatch --time",
        group=JOB,
        short="-t",
    )
    partition: str | None = _option(
        TEXT,
        "partition of the batch system",
        metavar="P",
        default_words="the batch system's",
        same_as="sbatch --partition",
        allowed_in=EVERYWHERE - {BOOT},
        group=JOB,
        short="-p",
    )
    account: str | None = _option(
        TEXT,
        "account to charge",
        metavar="A",
        default_words="the batch system's",
        same_as="sbatch --account",
        allowed_in=EVERYWHERE - {BOOT},
        group=JOB,
        short="-A",
    )
    job_name: str = _option(
        TEXT,
        "name of the job",
        "mpiboot",
        metavar="S",
        same_as="sbatch --job-name",
        group=JOB,
        short="-J",
    )
    interface: str = _option(
        TEXT,
        "network interface of the workers, such as ib0, or its network, such as 10.0.0.0/24",
        "auto",
        metavar="IF",
        same_as="dask-mpi --interface",
        group=NETWORK,
    )
    scheduler_port: int | None = _option(
        PORT,
        "port of the scheduler",
        metavar="P",
        default_words="any, or one of worker-port",
        same_as="dask-mpi --scheduler-port",
        group=NETWORK,
    )
    worker_port: str | None = _option(
        PORT_RANGE,
        "the ports on which the nodes may talk: of workers, nannies, and all else without an option of its own",
        metavar="LOW:HIGH",
        default_words="any",
        same_as="dask worker --worker-port",
        group=NETWORK,
    )
    dashboard_port: int | None = _option(
        PORT, "port of the dashboard", metavar="P", default_words="any, or one of worker-port", group=NETWORK
    )
    mpi: str = _option(MPI, "MPI whose launcher starts the ranks", "auto", group=NETWORK)
    transport: str = _option(TRANSPORT, "how the archive reaches the nodes", "auto", group=PROGRAMS)
    no_stage: bool = _option(
        FLAG, "run from the environment where it lies, without node-local copies", False, group=PROGRAMS
    )
    pack_exclude: tuple[str, ...] = _option(
        TEXT,
        "files of the environment that are not packed, such as lib/*.a",
        (),
        metavar="GLOB",
        repeatable=True,
        same_as="envpack pack --exclude",
        allowed_in=EVERYWHERE - {ENVIRONMENT},
        group=PROGRAMS,
    )
    idle_timeout: float = _option(
        DURATION, "end the job after this long without a client or a task", 1800.0, metavar="T", group=LIFE
    )
    min_workers: int = _option(COUNT, "end the job when fewer workers are left", 1, metavar="N", group=LIFE)
    warn_before: float = _option(
        DURATION, "warn the clients this long before the walltime ends", 120.0, metavar="T", group=LIFE
    )
    env_var: tuple[str, ...] = _option(
        VARIABLE,
        "NAME or NAME=VALUE for workers and command",
        (),
        metavar="NAME",
        repeatable=True,
        allowed_in=EVERYWHERE - {ENVIRONMENT},
        group=PROGRAMS,
    )
    batch_arg: tuple[str, ...] = _option(
        TEXT,
        "argument for the batch system's submit command",
        (),
        metavar="ARG",
        repeatable=True,
        allowed_in=EVERYWHERE - {BOOT, ENVIRONMENT},
        group=JOB,
    )
    # The user must type it each time: neither a file nor the environment may turn encryption off silently.
    insecure: bool = _option(
        FLAG,
        "no TLS and no token: for closed test networks only",
        False,
        allowed_in=EVERYWHERE - {FILE, ENVIRONMENT},
        elsewhere="Type --insecure each time, or pass insecure=True",
        group=NETWORK,
    )
    dashboard_tls: bool = _option(
        FLAG, "serve the dashboard over https, with the job's own certificate", False, group=NETWORK
    )
    dashboard_origins: str | None = _option(
        ORIGINS,
        "origins whose pages may show the dashboard, besides its own: a portal that rewrites Host",
        metavar="ORIGIN",
        default_words="none",
        group=NETWORK,
    )
    stage_root: str = _option(
        PATH,
        "node-local folder for staged environments",
        DEFAULT_STAGE_ROOT,
        metavar="DIR",
        variable=STAGE_ROOT_VARIABLE,
        allowed_in=EVERYWHERE - {SUBMIT},
        group=PROGRAMS,
    )
    home: str | None = _option(
        PATH,
        "mpiboot's folder on the shared file system",
        metavar="DIR",
        default_words="~/.mpiboot",
        allowed_in=frozenset((BOOT,)),
        elsewhere=f"Set {HOME_VARIABLE}",
        group=PROGRAMS,
    )
    archive: str | None = _option(
        PATH,
        "the packed environment",
        metavar="FILE",
        default_words="packed if needed",
        allowed_in=frozenset((BOOT,)),
        elsewhere="Leave it out: the environment is packed if needed",
        group=PROGRAMS,
    )
    client_networks: tuple[str, ...] = _option(
        TEXT,
        "networks of the submitting host, such as 10.0.0.0/24; interface auto prefers one that lies in them",
        (),
        metavar="NETWORK",
        repeatable=True,
        allowed_in=frozenset((BOOT,)),
        elsewhere="Leave it out: submit knows the networks of its host",
        group=NETWORK,
    )
    start_timeout: float = _option(
        DURATION,
        "give up if the workers have not started by then",
        600.0,
        metavar="T",
        allowed_in=EVERYWHERE - {SUBMIT},
        group=LIFE,
    )
    setup: tuple[str, ...] = _option(
        TEXT,
        "lines of bash that the job runs first, such as module load openmpi",
        (),
        repeatable=True,
        allowed_in=frozenset((FILE, PYTHON)),
        group=PROGRAMS,
    )
    job_script: str | None = _option(
        PATH,
        "job script to submit",
        default_words="that of mpiboot jobscript",
        allowed_in=frozenset((FILE, PYTHON, ENVIRONMENT)),
        group=PROGRAMS,
    )
    ssh_host: str | None = _option(
        TEXT,
        "host that you reach by ssh from home",
        default_words="this machine",
        allowed_in=frozenset((FILE, PYTHON, ENVIRONMENT)),
        group=NETWORK,
    )
    command: tuple[str, ...] = ()


OPTIONS: dict[str, Option] = {
    each.name: replace(each.metadata["option"], name=each.name)
    for each in fields(Config)
    if "option" in each.metadata
}


def options_in(place: str) -> list[Option]:
    """Return the options that may be set in `place`."""
    return [option for option in OPTIONS.values() if place in option.allowed_in]


def check_names(names: Iterable[str], place: str) -> None:
    """Refuse names that are no options, or options that may not be set in `place`.

    Raises
    ------
    UsageError
        A name is refused; the message lists the options that may be set there.
    """
    valid = [option.name for option in options_in(place)]
    for name in names:
        if name in OPTIONS and name not in valid:
            elsewhere = (
                OPTIONS[name].elsewhere or f"Set it in {' or '.join(sorted(OPTIONS[name].allowed_in))}"
            )
            raise UsageError(f"{name} cannot be set in {place}", elsewhere)
        if name not in valid:
            near = difflib.get_close_matches(name.lower(), valid, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise UsageError(f"unknown option {name!r}{meant}", f"Use one of: {', '.join(valid)}")


def parse_layer(layer: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the parsed values of a layer, without those that are None: not given.

    Parameters
    ----------
    layer : mapping
        Values by option name, as typed.
    place : str
        Where they stand, such as `option.FILE`.

    Raises
    ------
    UsageError
        A value does not fit its option.
    """
    return {name: OPTIONS[name].parse(value, place) for name, value in drop_none(layer).items()}


def drop_none(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer without the options that are None: not given."""
    return {name: value for name, value in layer.items() if value is not None}


def make_config(*layers: Mapping[str, Any], command: Sequence[str] = ()) -> Config:
    """Make a Config of several layers of parsed values; later layers have precedence.

    Parameters
    ----------
    *layers : mapping
        Values by option name.
    command : sequence of str
        The command of batch mode.
    """
    return replace(Config(command=tuple(command)), **{k: v for layer in layers for k, v in layer.items()})


def merge(*layers: Mapping[str, Any], command: Sequence[str] = ()) -> Config:
    """Make a Config of several layers of values as typed on a command line; later layers have precedence.

    Raises
    ------
    UsageError
        A value does not fit its option.
    """
    return make_config(*(parse_layer(layer, SUBMIT) for layer in layers), command=command)


def option_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that set options, by the name of the option; without empty ones."""
    in_dask = dask_variables(environ)
    found: dict[str, str] = {}
    for option in options_in(ENVIRONMENT):
        for variable in (option.variable, in_dask.get(option.name, "")):
            if environ.get(variable):
                found.setdefault(option.name, variable)
    return found


def dask_variables(environ: Iterable[str]) -> dict[str, str]:
    """Return which of these variables are Dask's `DASK_MPIBOOT__...`, by the name of the option that they mean.

    Dask reads names in upper and lower case after `DASK_` (`dask.config.collect_env`).
    """
    prefix, end = DASK_OPTIONS_PREFIX.partition("_")[0] + "_", len(DASK_OPTIONS_PREFIX)
    return {
        variable[end:].lower(): variable
        for variable in environ
        if variable.startswith(prefix) and variable[:end].upper() == DASK_OPTIONS_PREFIX
    }


def environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the parsed values of the options that environment variables set.

    Raises
    ------
    UsageError
        A value does not fit its option; the message names the variable.
    """
    layer = {}
    for name, variable in option_variables(environ).items():
        layer[name] = OPTIONS[name].parse(environ[variable], ENVIRONMENT, label=variable)
    return layer


def home(environ: Mapping[str, str], override: str | None = None) -> Path:
    """Return mpiboot's folder on the shared file system: `--home`, else `MPIBOOT_HOME`, else `~/.mpiboot`.

    Raises
    ------
    UsageError
        `MPIBOOT_HOME` holds no absolute path, or the user has no home folder.
    """
    try:
        chosen = override or places.default_home(environ)
    except MalformedValueError as error:
        raise UsageError(error.problem, f"Set {HOME_VARIABLE} to an absolute path") from error
    return Path(os.path.abspath(chosen))  # noqa: PTH100 - not resolve(): a link is the user's choice of name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"mpiboot boot: {message}", "See: mpiboot boot --help")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Before Python 3.13, argparse drops a value that is `--`.
        return "--" if arg_strings == ["--"] else super()._get_values(action, arg_strings)


def parse_boot_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Read the arguments of a job script: `mpiboot boot [options] [-- COMMAND ARG...]`.

    Raises
    ------
    UsageError
        An option is unknown, or a value does not fit its option.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = _Parser(
        prog="mpiboot boot", allow_abbrev=False, description="Runs inside a job: the job script calls it."
    )
    for option in options_in(BOOT):
        settings: dict[str, Any] = {"default": None, "help": option.full_help, "dest": option.name}
        if option.kind is FLAG:
            settings["action"] = "store_true"
        else:
            settings["metavar"] = option.metavar
            settings["action"] = "append" if option.repeatable else "store"
        parser.add_argument(option.flag, **settings)
    given = vars(parser.parse_args(arguments[:end]))
    return make_config(environment_layer(environ), parse_layer(given, BOOT), command=arguments[end + 1 :])


def boot_arguments(
    config: Config, leave_out: Collection[str] = (), environ: Mapping[str, str] | None = None
) -> list[str]:
    """Return the arguments that `parse_boot_arguments` turns into the same `config`, without values of variables.

    Parameters
    ----------
    config : Config
        The options.
    leave_out : collection of str
        Names of options that boot learns from the batch system.
    environ : mapping, optional
        The job's environment: an option with a variable there is written, too, if it has its default value.
    """
    arguments = []
    in_environment = option_variables(environ or {})
    for option in options_in(BOOT):
        value = getattr(config, option.name)
        if option.name in leave_out or (value == option.default and option.name not in in_environment):
            continue
        if option.kind is FLAG:
            arguments += [option.flag] if value else []
        elif value is not None:
            values = value if option.repeatable else [value]
            # A single argument `--name=value`, since a value may begin with a dash.
            arguments += [f"{option.flag}={option.kind.write(item)}" for item in values]
    return arguments + (["--", *config.command] if config.command else [])
