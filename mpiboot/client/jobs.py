"""Jobs as their user sees them: submitted, found again, asked, stopped."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpiboot import config as configuration
from mpiboot.batch import SETUP_VARIABLE, BatchSystem, JobState, batch_systems, choose
from mpiboot.batch.allocation import check_min_workers
from mpiboot.batch.local.submission import parse_job_id
from mpiboot.client.job_states import answers_of
from mpiboot.common.trust import check_trusted
from mpiboot.common.units import show_duration
from mpiboot.config import Config
from mpiboot.errors import (
    BatchAwayError,
    BatchError,
    DeadlineError,
    MpibootError,
    SecurityError,
    UsageError,
)
from mpiboot.protocol import rank_environment as environment
from mpiboot.protocol.job_directory import Endpoint, JobDirectory

if TYPE_CHECKING:
    from distributed import Client

# What sbatch passes on to boot in variables of its own.
FROM_BATCH_SYSTEM = ("batch_system", "workers_per_node", "cpus_per_worker", "mem", "time")
# The batch system itself may be away for a while, for a restart say.
SILENCE_S = 120.0
# Where nothing is known of a job yet, somebody waits for a first word.
FIRST_SILENCE_S = 20.0
# What no batch system knows any more counts as ended when it has been quiet for so long.
FORGOTTEN_S = 86400.0

logger = logging.getLogger(__name__)
T = TypeVar("T")


def patiently(ask: Callable[[], T], patience_s: float) -> T:
    """What `ask` returns; asked again while the batch system is away, for `patience_s` at most."""
    began = time.monotonic()
    said = False
    while True:
        try:
            return ask()
        except BatchAwayError as error:
            waited = time.monotonic() - began
            if waited >= patience_s:
                raise
            if not said:
                logger.warning("%s; asking again for %s", error, show_duration(patience_s - waited))
                said = True
            time.sleep(poll_interval_s(waited))


class Job:
    """One job of a batch system; `job_id` is an opaque `str`."""

    def __init__(self, job_id: str, batch: BatchSystem) -> None:
        self.job_id = job_id
        self.batch = batch
        home = configuration.home(os.environ)
        self.directory = JobDirectory(home / "jobs" / batch.job_key(job_id))
        self._submitted_log = home / "logs" / f"{batch.name}-{job_id}.out"

    def __repr__(self) -> str:
        return f"<mpiboot.Job {self.job_id} on {self.batch.name}>"

    def ask(self, max_age_s: float = 0.0, *, patience_s: float = SILENCE_S) -> JobState:
        """What the batch system says now, or said at most `max_age_s` ago; of an ended job, what boot said too."""
        answers = answers_of(self.batch)
        state = patiently(lambda: answers.state(self.job_id, max_age_s), patience_s)
        return state if state.live else self._ended(state)

    def _ended(self, state: JobState) -> JobState:
        """Boot's last event says why a job ended; a job that was killed has none."""
        last = self._last_event()
        if last["event"] != "closed":
            if last["event"] and state.state != "UNKNOWN":
                silent = "mpiboot boot left no last word: it was killed, or its node was lost"
                return replace(state, reason="; ".join(filter(None, (state.reason, silent))))
            if state.state != "UNKNOWN":
                return state
            known = self.directory.path.is_dir()
            unknown = "ended, reason unknown" if known else "no job of this id is known here"
            return replace(state, reason=state.reason or unknown)
        reason = str(last["reason"]).partition("\n")[0]  # what follows is the end of a log
        word = {0: "COMPLETED", 124: "TIMEOUT"}.get(last["exit_status"], "FAILED")
        return replace(state, state=word if state.state == "UNKNOWN" else state.state, reason=reason)

    @property
    def state(self) -> str:
        """The batch system's word for the job's state, such as PENDING or RUNNING."""
        return self.ask().state

    @property
    def reason(self) -> str:
        """Why it is in that state, as the batch system has it."""
        return self.ask().reason

    @property
    def endpoint(self) -> Endpoint | None:
        """What to connect to; None until the workers are there."""
        return self.directory.read_endpoint()

    def log_files(self) -> list[Path]:
        """The job's logs that exist: its output, and the ranks'. Boot's is in the output, so it is one only without."""
        output = self.batch.output(self.job_id)
        if output is None or not output.is_file():  # forgotten, or Slurm shows the pattern and not the name
            output = self._submitted_log
        own = self._own_logs()
        return [path for path in ([output, *own[1:]] if output.is_file() else own) if path.is_file()]

    def _own_logs(self) -> list[Path]:
        """Boot's log and the ranks'; none of a job directory that others could have made."""
        try:
            check_trusted(self.directory.path, "directory")
        except (SecurityError, FileNotFoundError):
            return []
        return [self.directory.boot_log, self.directory.ranks_log]

    def logs(self) -> str:
        """All of the job's logs, each under its name."""
        return "\n".join(f"==> {path} <==\n{path.read_text(errors='replace')}" for path in self.log_files())

    def log_tail(self, lines: int = 20) -> str:
        """The end of what explains the job's state best: boot's log, else the job's output."""
        for path in (*self._own_logs()[:1], *self.log_files()):
            if path.is_file() and (text := path.read_text(errors="replace").strip()):
                return f"The end of {path}:\n" + "\n".join("  " + line for line in text.splitlines()[-lines:])
        return "It left no log."

    def follow(self) -> Iterator[str]:
        """All of the logs so far, then what is added, until the job has ended. Of each text, its file's name once."""
        start = time.monotonic()
        seen: dict[Path, int] = {}
        shown: Path | None = None
        asked_files = -math.inf
        live = True
        while live:
            now = time.monotonic()
            # What is written between the last look and the end is read once more.
            live = self.ask(max_age_s=poll_interval_s(now - start)).live
            if now - asked_files > 10 or not live or not seen:
                files, asked_files = self.log_files(), now
            for path in files:
                with path.open("rb") as file:
                    file.seek(seen.setdefault(path, 0))
                    new = file.read()
                seen[path] += len(new)
                if new:
                    name = f"==> {path} <==\n" if path != shown else ""
                    shown = path
                    yield name + new.decode(errors="replace")
            if live:
                time.sleep(0.5)

    def promised_workers(self) -> int | None:
        """How many workers the job will have; None as long as boot has not said."""
        for event in reversed(self.directory.read_events()):
            if event["event"] == "phase" and "n_workers" in event:
                return int(event["n_workers"])
        return None

    def wait(
        self, timeout_s: float | None = None, *, polls: Callable[[float], float] | None = None
    ) -> JobState:
        """Wait until the job has ended.

        Raises
        ------
        DeadlineError
            It has not after `timeout_s`.
        """
        start = time.monotonic()
        patience_s = SILENCE_S if timeout_s is None else min(SILENCE_S, timeout_s)
        while (state := self.ask(patience_s=patience_s)).live:
            waited = time.monotonic() - start
            if timeout_s is not None and waited > timeout_s:
                raise DeadlineError(f"job {self.job_id} is still {state.state} after {show_duration(waited)}")
            time.sleep((polls or poll_interval_s)(waited))
        return state

    def exit_status(self) -> int:
        """What boot ended with; 1 where it was killed before it could say."""
        last = self._last_event()
        return int(last["exit_status"]) if last["event"] == "closed" else 1

    def _last_event(self) -> dict[str, Any]:
        try:
            return self.directory.read_events()[-1]
        except (MpibootError, FileNotFoundError, IndexError):
            return {"event": ""}

    def stop(self, timeout_s: float = 90.0) -> JobState:
        """End the job, and return when its nodes are released."""
        if self.ask().live:
            patiently(lambda: self.batch.stop(self.job_id), SILENCE_S)
        try:
            return self.wait(timeout_s / 2, polls=lambda waited: 0.2 if waited < 10 else 1.0)
        except DeadlineError:  # boot itself is stuck
            patiently(lambda: self.batch.stop(self.job_id, by_force=True), SILENCE_S)
        return self.wait(timeout_s / 2, polls=lambda waited: 1.0)

    def client(self, **arguments: Any) -> Client:
        """`mpiboot.connect` to this job."""
        from mpiboot.client.connect import connect

        return connect(self, **arguments)


def poll_interval_s(waited_s: float) -> float:
    """Gentle on the batch system: a question a second for the first minute, then every 10 s."""
    return 1.0 if waited_s < 60 else 10.0


def submit(**options: Any) -> Job:
    """Submit one job that becomes one Dask cluster.

    Parameters
    ----------
    **options
        Those of `mpiboot submit`, with underscores: `nodes=2, workers_per_node=4, interface="ib0"`;
        `command=["python", "analysis.py"]` is batch mode.

    Returns
    -------
    Job
        Pending, most likely.

    Raises
    ------
    UsageError, EnvironmentUnfitError, BatchError
        Refused before anything was submitted.
    """
    return submit_config(load_config(options))


def load_config(options: Mapping[str, Any]) -> Config:
    """Options before environment before file before default."""
    command = options.get("command") or ()
    if isinstance(command, str):
        raise UsageError(f"command={command!r}: write it as a list, such as ['python', 'analysis.py']")
    for name, instead in (("home", "set MPIBOOT_HOME"), ("archive", "it is found, or made, from env")):
        if options.get(name) is not None:
            raise UsageError(f"{name}={options[name]!r} is boot's own option: {instead}")
    given = {name: value for name, value in options.items() if name != "command"}
    merged = configuration.merge(
        site_layer(), configuration.environment_layer(os.environ), given, command=tuple(map(str, command))
    )
    prefix = (
        Path(merged.env) if merged.env else environment.active_prefix(os.environ, sys.prefix, sys.base_prefix)
    )
    if merged.workers_per_node:
        check_min_workers(merged.min_workers, merged.nodes * merged.workers_per_node)
    return replace(merged, env=str(prefix.expanduser().absolute()))


def site_layer() -> dict[str, Any]:
    """What Dask's configuration says under `mpiboot`.

    Raises
    ------
    UsageError
        An unknown key or a bad value; names the file and lists the valid keys.
    """
    try:
        import dask
    except ValueError as error:  # it reads all of its files at once
        raise UsageError(" ".join(str(error).split())) from error

    section = dask.config.get("mpiboot", {}) or {}
    if not isinstance(section, Mapping):
        raise UsageError(f"{_source_of(None)}: what `mpiboot:` holds is not a mapping of keys to values")
    layer = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        valid = [option for option in configuration.OPTIONS if option not in configuration.NOT_IN_FILES]
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            why = "belongs on the command line alone" if name in configuration.OPTIONS else "is unknown"
            raise UsageError(
                f"{_source_of(key)}: the key {key!r} {why}{hint}; valid keys: {', '.join(valid)}"
            )
        try:
            layer[name] = None if value is None else configuration.parse_value(name, value)
        except UsageError as error:
            raise UsageError(f"{_source_of(key)}: {error}") from error
    return layer


def load_site(name: str) -> Any:
    """One of a site's own settings, such as `ssh_host`."""
    return {**site_layer(), **configuration.environment_layer(os.environ)}.get(name)


def _source_of(key: Any) -> str:
    """The file that has `mpiboot: KEY:`, or the variable that sets it."""
    import dask

    variable = f"DASK_MPIBOOT__{str(key).upper().replace('-', '_')}"
    if variable in os.environ:
        return variable
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        section = content.get("mpiboot")
        if section is not None and (not isinstance(section, Mapping) or key in section):
            return str(path)
    return "dask.config"


def submit_config(config: Config, *, say: Callable[[str], None] = lambda line: None) -> Job:
    """Check, pack the environment if it changed, submit."""
    batch = choose(config.batch_system)
    clear_ended(unclear_directories(), batch)
    assert config.env
    environment.check_environment(Path(config.env))
    if config.mpi == "auto":
        environment.check_mpi(Path(config.env))
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
    environment.check_environment(Path(config.env))
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
    strange = sorted(name for name in os.environ if environment.of_another_job(name))
    unset = ["env", *(word for name in strange for word in ("-u", name))] if strange else []
    with script_of(config, batch) as script:
        command = submit_command(config, batch, script)
    return " ".join([*assignments, shlex.join([*unset, *command])])


def handed_on(config: Config) -> dict[str, str]:
    """The variables that the job finds in its environment."""
    variables = environment.asked_variables(config.env_var, os.environ)
    return variables | ({SETUP_VARIABLE: "\n".join(config.setup)} if config.setup else {})


def submit_command(config: Config, batch: BatchSystem, script: Path) -> list[str]:
    """What submits this job; `--dry-run` shows it."""
    home = configuration.home(os.environ)
    log = home / "logs"
    if not config.command:
        log.mkdir(mode=0o700, parents=True, exist_ok=True)
    with_home = replace(config, home=str(home) if os.environ.get("MPIBOOT_HOME") else None)
    leave_out = FROM_BATCH_SYSTEM if batch.name == "slurm" else ("batch_system",)
    return batch.submit_command(config, script, configuration.boot_arguments(with_home, leave_out), log)


def submit_environment(environ: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, less what belongs to a job that it may itself run in."""
    kept = {
        name: value
        for name, value in environ.items()
        # What mpiboot itself reads has been merged into boot's arguments already.
        if not environment.of_another_job(name) and not name.startswith("DASK_MPIBOOT__")
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


def find_job(wanted: str | Job | None = None) -> Job:
    """A job by id, by `--job-name`, or the only live one.

    Raises
    ------
    BatchError
        None is live, or several are: the message lists them.
    """
    if isinstance(wanted, Job):
        return wanted
    systems = batch_systems()
    with contextlib.suppress(BatchError):  # a local job's id is nothing to ask another batch system about
        parse_job_id(wanted or "")
        local = Job(str(wanted).removeprefix("local-"), systems["local"])
        if local.directory.path.is_dir():
            return local
    live = live_jobs()
    if wanted is None:
        if not live:
            raise BatchError("no job of mpiboot's is pending or running here. Start one: mpiboot submit")
        if len(live) > 1:
            raise BatchError(f"several jobs are live; name one of them:\n{describe(live)}")
        return live[0][0]
    by_name = [job for job, state in live if state.name == wanted]
    if len(by_name) > 1:
        raise BatchError(f"several live jobs are named {wanted}; give a job id:\n{describe(live)}")
    if by_name:
        return by_name[0]
    if wanted.isdigit() and "slurm" in systems:
        return _known(patiently(lambda: Job(wanted, systems["slurm"]), FIRST_SILENCE_S))
    try:
        parse_job_id(wanted)
    except BatchError as error:
        raise BatchError(
            f"{wanted!r} is neither a job id nor the name of a live job. Live ones: mpiboot list"
        ) from error
    return _known(Job(wanted.removeprefix("local-"), systems["local"]))


def _known(job: Job) -> Job:
    """The job, unless nobody has ever heard of it: a mistyped id must not look like one that has ended."""
    if not job.directory.path.exists() and job.ask().state == "UNKNOWN":
        raise BatchError(f"no job {job.job_id} is known here. Live ones: mpiboot list")
    return job


def live_jobs(patience_s: float = FIRST_SILENCE_S) -> list[tuple[Job, JobState]]:
    """This user's live jobs of all batch systems here, oldest first.

    Of a batch system that cannot be asked, that is said: a machine may have Slurm's commands and no Slurm.

    Raises
    ------
    BatchError
        One cannot be asked, and the others have no job.
    """
    unclear = unclear_directories()  # before the question: a job may start meanwhile
    found: list[tuple[Job, JobState]] = []
    failed: list[BatchError] = []
    for batch in batch_systems().values():
        try:
            states = patiently(batch.jobs, patience_s)
            live = [(Job(state.job_id, batch), state) for state in states]
            found += live
            spared = {job.directory.path for job, _ in live}
            clear_ended([directory for directory in unclear if directory.path not in spared], batch)
        except BatchError as error:
            failed.append(error)
    if failed and not found:
        raise failed[0]
    for failure in failed:
        logger.warning("%s; only other jobs are known", failure)
    return found


def unclear_directories() -> list[JobDirectory]:
    """The job directories with secrets in them."""
    found = map(JobDirectory, (configuration.home(os.environ) / "jobs").glob("*-*"))
    return [directory for directory in found if not directory.is_clear()]


def clear_ended(directories: Sequence[JobDirectory], batch: BatchSystem) -> None:
    """Remove the secrets of jobs that have ended and left them: their first node was lost, say.

    They open nothing any more; so whatever keeps them from being removed is no reason to fail.
    """
    with contextlib.suppress(MpibootError, OSError):
        found = {job_id: each for each in directories if (job_id := batch.job_id(each.key))}
        states = batch.states(list(found)) if found else {}
        for job_id, directory in found.items():
            # Forgotten by the batch system is not ended: such a job has been quiet for a day, too.
            forgotten = states[job_id].state == "UNKNOWN" and not states[job_id].reason
            if not states[job_id].live and (not forgotten or directory.quiet_s() > FORGOTTEN_S):
                check_trusted(directory.path, "directory")
                directory.clear()


def describe(live: Sequence[tuple[Job, JobState]]) -> str:
    """A line for each of several jobs."""
    return "\n".join(
        f"  {job.job_id}  {state.name}  {state.state}  {state.nodes or state.reason}".rstrip()
        for job, state in live
    )
