"""Submits a job: checks the request, packs the environment if it changed, runs the batch system's submit command."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.places import HOME_VARIABLE, TRUSTED_FOLDERS_VARIABLE
from envpack.common.trust import make_private_folder
from mpiboot import config as configuration
from mpiboot.batch.registry import NAMES, choose, describes_a_job, facts
from mpiboot.batch.submission import BatchSystem
from mpiboot.client.find import clear_ended, directories_to_clear
from mpiboot.client.gc import bound
from mpiboot.client.job import Job
from mpiboot.client.options import JobOptions, documented
from mpiboot.client.settings import load_config
from mpiboot.client.submitted import record
from mpiboot.common.faults import named_errors
from mpiboot.common.interfaces import networks_here
from mpiboot.common.ports import check_ports
from mpiboot.common.trust import check_trusted
from mpiboot.common.units import show_duration, show_size
from mpiboot.config import Config, dask_variables
from mpiboot.errors import UsageError
from mpiboot.protocol import prefix_checks
from mpiboot.protocol.rank_environment import of_another_job, requested_variables
from mpiboot.protocol.secrets import tls_folder
from mpiboot.protocol.variables import SETUP_VARIABLE

if TYPE_CHECKING:
    from importlib.abc import Traversable

    from typing_extensions import Unpack

# How many of the paths that are left out of an archive are shown.
NAMES_SHOWN = 5


@documented
def submit(**options: Unpack[JobOptions]) -> Job:
    """Submit one job that becomes one Dask cluster.

    An omitted option is read from the environment (`DASK_MPIBOOT__NAME`), else from Dask's configuration files (key
    `mpiboot`); else it has its default.

    Parameters
    ----------
    **options
    command : sequence of str, optional
        Batch mode: run this on the first node when the workers have started, and end the job with it.

    Returns
    -------
    Job
        The submitted job, which is usually still pending.

    Raises
    ------
    UsageError, EnvironmentUnfitError, BatchError, envpack.errors.EnvpackError
        The request was refused, or the environment could not be packed; nothing was submitted.
    """
    with named_errors():
        return submit_config(load_config(options))


def submit_config(
    config: Config, *, say: Callable[[str], None] = lambda line: None, output_folder: Path | None = None
) -> Job:
    """Check the request, pack the environment if it changed, and submit the job.

    Parameters
    ----------
    config : Config
        The job's options, as `load_config` returns them.
    say : callable
        Called with lines about the progress of packing.
    output_folder : Path, optional
        The folder of the job's output. None: `logs` in mpiboot's home or, with a command, wherever the batch system
        writes it.

    Raises
    ------
    UsageError, EnvironmentUnfitError, BatchError
        The request was refused before anything was submitted.
    """
    check_named_ports(config)
    batch = choose(config.batch_system)
    prepare_home(configuration.home(os.environ))
    clear_ended(directories_to_clear(), batch)
    bound(batch)
    environ = submit_environment(os.environ, job_variables(config))
    check_source(config, environ, say)
    assert config.env
    if config.mpi == "auto":
        prefix_checks.check_mpi(Path(config.env))
    # This asks for the cluster's name. After the submission, an error would hide the job's id.
    batch.job_key("0")
    with job_script(config, batch) as script:
        # Packing takes up to a minute; and some requests are refused only here.
        batch.check(submit_command(config, batch, script, output_folder), environ)
        if not config.no_stage:
            config = replace(config, archive=str(pack_source(config, say)))
        job_id = batch.submit(submit_command(config, batch, script, output_folder), environ)
    try:
        job = Job(job_id, batch)
        keep_record(job, config.archive)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"job {job_id} is submitted; end it: mpiboot stop {job_id}") from None
    return job


def keep_record(job: Job, archive: str | None) -> None:
    """Record the job and its use of the archive, until `find.clear_ended` learns that the job has ended."""
    from envpack.pack.store import lease

    with contextlib.suppress(OSError):
        record(configuration.home(os.environ), job.directory.key)
        if archive:  # `envpack gc --packs` keeps it
            lease(Path(archive), job.directory.key)


def show_submission(config: Config, *, say: Callable[[str], None] = lambda line: None) -> str:
    """Return the shell command that submits the same job, without packing or submitting."""
    from envpack.pack.packing import unchanged_archive

    check_named_ports(config)
    batch = choose(config.batch_system, to_show=True)
    prepare_home(configuration.home(os.environ))
    check_source(config, submit_environment(os.environ, job_variables(config)), say)
    assert config.env
    if not config.no_stage:
        archive = unchanged_archive(config.env, exclude=config.pack_exclude)
        if archive is None:
            options = [f"--exclude={glob}" for glob in config.pack_exclude]
            say(
                f"{config.env} is not packed yet: the job would pack it first. "
                f"To pack it beforehand: {shlex.join(['envpack', 'pack', '--prefix', config.env, *options])}"
            )
        config = replace(config, archive=str(archive) if archive else None)
    # Values go before the command: every user can read a command's arguments, and only its owner can read its variables.
    assignments = [
        f"{name}={shlex.quote(value)}"
        for name, value in job_variables(config).items()
        if os.environ.get(name) != value
    ]
    foreign = sorted(name for name in os.environ if is_foreign(name))
    unset = ["env", *(word for name in foreign for word in ("-u", name))] if foreign else []
    with job_script(config, batch) as script:
        command = submit_command(config, batch, script)
    return " ".join([*assignments, shlex.join([*unset, *command])])


def check_named_ports(config: Config) -> None:
    """Refuse ports with which no job can start.

    Raises
    ------
    UsageError
        Scheduler and dashboard have the same port, or `worker_port` has too few.
    """
    if config.scheduler_port and config.scheduler_port == config.dashboard_port:
        raise UsageError(
            f"--scheduler-port and --dashboard-port are both {config.scheduler_port}", "Name two ports"
        )
    if config.worker_port:
        check_ports(config.worker_port, config.workers_per_node or 1, "a node")


def prepare_home(home: Path) -> None:
    """Make mpiboot's folders on the shared file system, and refuse what boot would refuse when the job starts.

    Raises
    ------
    UsageError
        A folder could not be made.
    SecurityError
        Others could change the folder of the jobs' directories, or Dask does not understand its name.
    """
    for folder in (home / "jobs", home / "logs"):
        try:
            make_private_folder(folder)
        except OSError as error:
            raise UsageError(
                f"the folder {folder} could not be made: {error.strerror}",
                f"Set {HOME_VARIABLE} to a folder on the shared file system that you can write",
            ) from error
    check_trusted(home / "jobs", "directory")
    tls_folder(home / "jobs")


def check_source(config: Config, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Refuse an environment that no job can run from, or say a warning: of it, or of a command that is not found here.

    Raises
    ------
    EnvironmentUnfitError
        As raised by `check_environment`.
    """
    assert config.env
    adds_packages = bool(config.setup or config.job_script)
    if warning := prefix_checks.check_environment(Path(config.env), environ, job_adds_packages=adds_packages):
        say_warning(warning, say)
    path = f"{config.env}/bin:{environ.get('PATH', os.defpath)}"
    if config.command and not shutil.which(config.command[0], path=path):
        program = shlex.quote(config.command[0])
        if "/" in program and Path(config.command[0]).is_file():
            say_warning(f"{program} is not executable, so the job fails. Make it so: chmod +x {program}", say)
            return
        say_warning(
            f"{program} is no program here; if it is none on the job's first node, the job fails", say
        )


def say_warning(warning: str, say: Callable[[str], None]) -> None:
    """Say a warning, in lines that a terminal can show."""
    lines = textwrap.fill(
        f"warning: {warning}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    say(lines)


def job_variables(config: Config) -> dict[str, str]:
    """Return the environment variables that the job must find, even if it gets no others.

    They are those of `--env-var`, the site's `setup` lines, and the folders that the user trusts.
    """
    variables = requested_variables(config.env_var, os.environ)
    if trusted := os.environ.get(TRUSTED_FOLDERS_VARIABLE):
        variables[TRUSTED_FOLDERS_VARIABLE] = trusted
    return variables | ({SETUP_VARIABLE: "\n".join(config.setup)} if config.setup else {})


def submit_command(
    config: Config, batch: BatchSystem, script: Path, output_folder: Path | None = None
) -> list[str]:
    """Return the command that submits this job; `--dry-run` shows it."""
    home = configuration.home(os.environ)
    # The output of a batch command belongs in the working directory; that of a cluster does not.
    if output_folder is None and not config.command:
        output_folder = home / "logs"
    boot_config = replace(
        config,
        home=None if home == usual_home() else str(home),
        client_networks=tuple(networks_here()) if config.interface == "auto" else (),
    )
    return batch.submit_command(
        config,
        script,
        configuration.boot_arguments(
            boot_config, batch.passed_options, submit_environment(os.environ, job_variables(config))
        ),
        environ=os.environ,
        variables=list(job_variables(config)),
        output_folder=output_folder,
    )


def usual_home() -> Path | None:
    """Return the home that a job takes if it gets none of the user's variables; HOME may be another folder here."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir, ".mpiboot")
    except KeyError:  # this host does not know the user's name
        return None


def submit_environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the submit command.

    It is `environ` with `variables`, without the variables of a job that this process may itself run in.
    """
    kept = {name: value for name, value in environ.items() if not is_foreign(name)}
    return {**kept, **variables}


def is_foreign(name: str) -> bool:
    """Whether a variable belongs to the job of this process, or sets an option, which boot gets as an argument."""
    return describes_a_job(name) or of_another_job(name) or name in dask_variables([name]).values()


@contextlib.contextmanager
def job_script(config: Config, batch: BatchSystem) -> Iterator[Path]:
    """Give the path of the job script to submit: the site's own, or the one that ships with mpiboot."""
    if config.job_script:
        script = Path(config.job_script).expanduser().absolute()
        if not script.is_file():
            raise UsageError(
                f"job_script {script}: there is no such file",
                f"Make it: mpiboot jobscript {batch.name} > {shlex.quote(str(script))}",
            )
        yield script
    else:
        with as_file(shipped_script(batch.name)) as script:
            yield script


def shipped_script(batch_system: str) -> Traversable:
    """Return the job script that ships with mpiboot.

    Raises
    ------
    UsageError
        There is no such batch system.
    """
    if batch_system not in NAMES:
        raise UsageError(f"there is no batch system {batch_system!r}", f"Use one of: {', '.join(NAMES)}")
    return files("mpiboot.jobscripts") / facts(batch_system).job_script


def pack_source(config: Config, say: Callable[[str], None]) -> Path:
    """Return the archive of the job's environment, after packing it if it changed."""
    from envpack.pack.packing import pack

    assert config.env
    result = pack(config.env, exclude=config.pack_exclude, say=say)
    for warning in dict.fromkeys(result.warnings):
        say_warning(warning, say)
    if left_out := result.excluded:
        names = ", ".join(left_out[:NAMES_SHOWN]) + (", …" if len(left_out) > NAMES_SHOWN else "")
        say(f"left out by --pack-exclude: {len(left_out)} paths, {show_size(result.excluded_bytes)}: {names}")
    how = "unchanged since it was packed" if result.reused else f"packed in {show_duration(result.seconds)}"
    say(f"environment {config.env}: {how}")
    return result.path
