"""All options of a job: one frozen object, merged once.

Command line before environment (`DASK_MPIBOOT__…`) before file (`~/.config/dask/*.yaml`, key `mpiboot`) before
default. The fields below are the only list of options: the command lines of `submit` and `boot`, the Python calls
and the configuration files are all read from it. Standard library only, since `boot` starts with it.
"""

import argparse
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from envpack.common import places
from envpack.common.places import STAGE_ROOT_VARIABLE
from mpiboot.common.units import parse_duration_s, parse_size_bytes, parse_walltime_s
from mpiboot.errors import UsageError

BATCH_SYSTEMS = ("auto", "slurm", "local")
MPIS = ("auto", "openmpi", "mpich", "intelmpi", "srun")
TRANSPORTS = ("auto", "direct", "sbcast", "mpi")


def count(text: str | int) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{text!r} is not a count; write a whole number of at least 1")
    return number


def walltime(text: str | int) -> str:
    """sbatch's own form, checked and kept as it is."""
    parse_walltime_s(str(text))
    return str(text)


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def flag(value: str | bool) -> bool:
    if isinstance(value, bool) or str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ValueError(f"{value!r} is neither true nor false")


def _option(
    parse: Callable[[Any], Any],
    help: str,
    default: Any = None,
    *,
    metavar: str | None = None,
    where: str = "both",
) -> Any:
    """A field that is an option. `where`: `submit` and `boot` both take it, or one of them alone.

    `file` options belong to a site: configuration files, environment and Python calls have them, command lines do not.
    """
    return field(default=default, metadata={"parse": parse, "help": help, "metavar": metavar, "where": where})


@dataclass(frozen=True)
class Config:
    """What a job is asked to be. Times in seconds, sizes in bytes, unless the name says otherwise."""

    batch_system: str = _option(
        one_of(BATCH_SYSTEMS), "who runs the job", "auto", metavar="{slurm,local,auto}"
    )
    env: str | None = _option(str, "the environment's prefix [the active one]", metavar="PREFIX")
    nodes: int = _option(count, "nodes of the job", 1, metavar="N", where="submit")
    workers_per_node: int | None = _option(count, "workers on each node [one per 4 CPUs]", metavar="N")
    cpus_per_worker: int | None = _option(count, "CPUs, and threads, of each worker", metavar="N")
    mem: int | None = _option(parse_size_bytes, "memory per node, such as 64G", metavar="SIZE")
    time: str | None = _option(walltime, "walltime, as for sbatch", metavar="T")
    partition: str | None = _option(str, "the batch system's partition", metavar="P", where="submit")
    account: str | None = _option(str, "the account to charge", metavar="A", where="submit")
    job_name: str = _option(str, "the job's name", "mpiboot", metavar="S", where="submit")
    interface: str = _option(str, "network interface such as ib0, or auto", "auto", metavar="IF")
    mpi: str = _option(one_of(MPIS), "what starts the ranks", "auto", metavar="{" + ",".join(MPIS) + "}")
    transport: str = _option(
        one_of(TRANSPORTS),
        "how the archive reaches the nodes",
        "auto",
        metavar="{" + ",".join(TRANSPORTS) + "}",
    )
    no_stage: bool = _option(flag, "run from the environment where it lies", False)
    idle_timeout: float = _option(
        parse_duration_s, "end the job after this long with no client and no task", 1800.0, metavar="T"
    )
    min_workers: int = _option(count, "end the job when fewer are left", 1, metavar="N")
    warn_before: float = _option(
        parse_duration_s, "tell clients this long before the walltime ends", 120.0, metavar="T"
    )
    env_var: tuple[str, ...] = _option(
        str, "NAME or NAME=VALUE for workers and command; repeatable", (), metavar="NAME"
    )
    batch_arg: tuple[str, ...] = _option(
        str, "passed on to the batch system; repeatable", (), metavar="ARG", where="submit"
    )
    insecure: bool = _option(flag, "no TLS and no token: for closed test networks only", False)
    dashboard_tls: bool = _option(flag, "the dashboard speaks https, with the job's own certificate", False)
    stage_root: str = _option(
        str, "node-local folder for staged environments", "/tmp", metavar="DIR", where="boot"
    )
    home: str | None = _option(str, "mpiboot's folder on the shared file system", metavar="DIR", where="boot")
    archive: str | None = _option(
        str, "the packed environment [packed when needed]", metavar="FILE", where="boot"
    )
    start_timeout: float = _option(
        parse_duration_s, "give up when the workers are not there by then", 600.0, metavar="T", where="boot"
    )
    setup: tuple[str, ...] = _option(
        str, "lines of bash that the job runs first, such as module load openmpi", (), where="file"
    )
    job_script: str | None = _option(str, "your own copy of `mpiboot jobscript`", where="file")
    ssh_host: str | None = _option(str, "the host that you reach by ssh from home", where="file")
    command: tuple[str, ...] = ()


OPTIONS = {option.name: option for option in fields(Config) if option.metadata}
REPEATABLE = frozenset(("env_var", "batch_arg", "setup"))
# `insecure` must be typed each time: neither a file nor the environment may turn encryption off in silence.
COMMAND_LINE_ONLY = frozenset(("insecure", "env_var", "home", "archive"))
NOT_IN_FILES = frozenset(("insecure", "home", "archive"))


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_value(name: str, value: Any) -> Any:
    """`value` as the option `name` has it, or a UsageError that says what would be right."""
    parse = OPTIONS[name].metadata["parse"]
    try:
        if name in REPEATABLE:
            return tuple(parse(item) for item in ([value] if isinstance(value, str) else value))
        return parse(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{flag_name(name)}: {error}") from error


def merge(*layers: Mapping[str, Any], command: Sequence[str] = ()) -> Config:
    """One Config of several layers, later ones first; `None` means not given.

    Raises
    ------
    UsageError
        An unknown option (the message lists the valid ones) or a value that is not one.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if name not in OPTIONS:
                near = difflib.get_close_matches(name, OPTIONS, n=1)
                raise UsageError(
                    f"unknown option {name!r}{f' (did you mean {near[0]}?)' if near else ''}; valid: {', '.join(OPTIONS)}"
                )
            if value is not None:
                merged[name] = parse_value(name, value)
    return replace(Config(command=tuple(command)), **merged)


def environment_layer(environ: Mapping[str, str]) -> dict[str, str]:
    """What `DASK_MPIBOOT__…` and the two short names say; `boot` has no dask to ask."""
    layer = {
        key.removeprefix("DASK_MPIBOOT__").lower(): value
        for key, value in environ.items()
        if key.startswith("DASK_MPIBOOT__")
    }
    if STAGE_ROOT_VARIABLE in environ:
        layer["stage_root"] = environ[STAGE_ROOT_VARIABLE]
    return {
        name: value
        for name, value in layer.items()
        if name in OPTIONS and name not in COMMAND_LINE_ONLY | REPEATABLE
    }


def home(environ: Mapping[str, str], override: str | None = None) -> Path:
    """mpiboot's folder on the shared file system: `--home`, `MPIBOOT_HOME`, `~/.mpiboot`."""
    chosen = override or places.home(environ)
    return Path(os.path.abspath(chosen))  # noqa: PTH100 - not resolve(): a link is the user's choice of name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"mpiboot boot: {message}")


def parse_boot_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The options behind a job script's name: `mpiboot boot [options] [-- COMMAND ARG...]`."""
    mine, _, command = _split(arguments)
    parser = _Parser(
        prog="mpiboot boot", allow_abbrev=False, description="Inside a job: the job script calls it."
    )
    for name, option in OPTIONS.items():
        if option.metadata["where"] in ("submit", "file"):
            continue
        settings: dict[str, Any] = {"default": None, "help": option.metadata["help"]}
        if option.metadata["parse"] is flag:
            settings["action"] = "store_true"
        else:
            settings["metavar"] = option.metadata["metavar"]
            settings["action"] = "append" if name in REPEATABLE else "store"
        parser.add_argument(flag_name(name), dest=name, **settings)
    given = vars(parser.parse_args(mine))
    return merge(environment_layer(environ), given, command=command)


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """The arguments before and behind the first `--`."""
    if "--" not in arguments:
        return list(arguments), "", []
    at = list(arguments).index("--")
    return list(arguments[:at]), "--", list(arguments[at + 1 :])


def boot_arguments(config: Config, leave_out: Sequence[str] = ()) -> list[str]:
    """`config` as `boot` takes it, defaults left out. Values of variables stay out: a job's arguments are public."""
    arguments = []
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if option.metadata["where"] in ("submit", "file") or name in leave_out or value == option.default:
            continue
        if value is True:
            arguments.append(flag_name(name))
        elif name == "env_var":
            arguments += [f"--env-var={item.partition('=')[0]}" for item in value]
        else:
            arguments += [
                flag_name(name),
                f"{value:g}" if isinstance(value, float) else _boot_value(name, value),
            ]
    return arguments + (["--", *config.command] if config.command else [])


def _boot_value(name: str, value: Any) -> str:
    # A bare size is MiB, so bytes are written in KiB, rounded down.
    return f"{value // 1024}K" if name == "mem" else str(value)
