"""Submits a job: checks the request, packs the environment if it changed, hands the script to the batch system."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.common.places import HOME_VARIABLE
from mpiboot import config as configuration
from mpiboot.batch import BatchSystem, choose
from mpiboot.batch.registry import describes_a_job
from mpiboot.client.find import clear_ended, unclear_directories
from mpiboot.client.job import Job
from mpiboot.client.options import JobOptions, documented
from mpiboot.client.settings import load_config
from mpiboot.common.units import show_duration
from mpiboot.config import Config
from mpiboot.errors import (
    UsageError,
)
from mpiboot.protocol import prefix_checks
from mpiboot.protocol.rank_environment import of_another_job, requested_variables
from mpiboot.protocol.variables import DASK_OPTIONS_PREFIX, SETUP_VARIABLE

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What sbatch passes on to boot in variables of its own.
FROM_BATCH_SYSTEM = ("batch_system", "workers_per_node", "cpus_per_worker", "mem", "time")


@documented
def submit(**options: Unpack[JobOptions]) -> Job:
    """Submit one job that becomes one Dask cluster.

    An option that is left out comes from the environment (`DASK_MPIBOOT__NAME`), else from Dask's configuration files
    (key `mpiboot`), else it has its default.

    Parameters
    ----------
    **options
    command : sequence of str, optional
        Batch mode: run this on the first node when the workers have started, and end the job with it.

    Returns
    -------
    Job
        Most often it is still pending.

    Raises
    ------
    UsageError, EnvironmentUnfitError, BatchError, envpack.errors.EnvpackError
        The request was refused, or the environment could not be packed; nothing was submitted.
    """
    return submit_config(load_config(options))


def submit_config(config: Config, *, say: Callable[[str], None] = lambda line: None) -> Job:
    """Check, pack the environment if it changed, submit."""
    batch = choose(config.batch_system)
    clear_ended(unclear_directories(), batch)
    assert config.env
    prefix_checks.check_environment(Path(config.env))
    if config.mpi == "auto":
        prefix_checks.check_mpi(Path(config.env))
    environ = submit_environment(os.environ, handed_on(config))
    with script_of(config, batch) as script:
        if not config.no_stage:
            from envpack.pack.packing import packed

            # What takes a minute is not done for a request that will be refused.
            if packed(config.env) is None:
                batch.check(submit_command(config, batch, script), environ)
            config = replace(config, archive=str(pack(Path(config.env), say)))
        job_id = batch.submit(submit_command(config, batch, script), environ)
    return Job(job_id, batch)


def show_submission(config: Config, *, say: Callable[[str], None] = lambda line: None) -> str:
    """The line that a user can type to submit the same job; nothing is packed or submitted."""
    from envpack.pack.packing import packed

    batch = choose(config.batch_system)
    assert config.env
    prefix_checks.check_environment(Path(config.env))
    if not config.no_stage:
        archive = packed(config.env)
        if archive is None:
            say(
                f"{config.env} is not packed yet: the job would do so first. "
                f"Beforehand: envpack pack --prefix {shlex.quote(config.env)}"
            )
        config = replace(config, archive=str(archive) if archive else None)
    # In front of the command: arguments can be read by everybody, variables cannot.
    assignments = [
        f"{name}={shlex.quote(value)}"
        for name, value in handed_on(config).items()
        if os.environ.get(name) != value
    ]
    strange = sorted(name for name in os.environ if describes_a_job(name) or of_another_job(name))
    unset = ["env", *(word for name in strange for word in ("-u", name))] if strange else []
    with script_of(config, batch) as script:
        command = submit_command(config, batch, script)
    return " ".join([*assignments, shlex.join([*unset, *command])])


def handed_on(config: Config) -> dict[str, str]:
    """The variables that the job finds in its environment."""
    variables = requested_variables(config.env_var, os.environ)
    return variables | ({SETUP_VARIABLE: "\n".join(config.setup)} if config.setup else {})


def submit_command(config: Config, batch: BatchSystem, script: Path) -> list[str]:
    """What submits this job; `--dry-run` shows it."""
    home = configuration.home(os.environ)
    log = home / "logs"
    if not config.command:
        log.mkdir(mode=0o700, parents=True, exist_ok=True)
    with_home = replace(config, home=str(home) if os.environ.get(HOME_VARIABLE) else None)
    leave_out = FROM_BATCH_SYSTEM if batch.name == "slurm" else ("batch_system",)
    return batch.submit_command(config, script, configuration.boot_arguments(with_home, leave_out), log)


def submit_environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, less what belongs to a job that it may itself run in."""
    kept = {
        name: value
        for name, value in environ.items()
        # What mpiboot itself reads has been merged into boot's arguments already.
        if not (describes_a_job(name) or of_another_job(name) or name.startswith(DASK_OPTIONS_PREFIX))
    }
    return {**kept, **variables}


@contextlib.contextmanager
def script_of(config: Config, batch: BatchSystem) -> Iterator[Path]:
    """The job script to submit: the site's own, or the one that ships with this mpiboot."""
    if config.job_script:
        script = Path(config.job_script).expanduser().absolute()
        if not script.is_file():
            raise UsageError(
                f"job_script {script}: there is no such file. Make it: mpiboot jobscript > {shlex.quote(str(script))}"
            )
        yield script
    else:
        with as_file(shipped_script(batch.name)) as script:
            yield script


def shipped_script(batch_system: str) -> Any:
    """The job script that ships with this mpiboot."""
    script = files("mpiboot.jobscripts") / f"{batch_system}.sh"
    if not script.is_file():
        raise UsageError(f"no job script for {batch_system!r}; there are slurm and local")
    return script


def pack(prefix: Path, say: Callable[[str], None]) -> Path:
    """The archive of an environment, packed again only if it changed."""
    from envpack.pack.packing import pack as pack_environment

    result = pack_environment(prefix)
    for warning in result.warnings:
        say(f"warning: {warning}")
    how = "unchanged since it was packed" if result.reused else f"packed in {show_duration(result.seconds)}"
    say(f"environment {prefix}: {how}")
    return Path(result.path)
