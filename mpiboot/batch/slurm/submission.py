"""Slurm, through its commands: sbatch, squeue, sacct, scancel, scontrol."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.batch import JobState
from mpiboot.batch.slurm.text import find_word, plain_environment, slurm_time
from mpiboot.config import Config
from mpiboot.errors import BatchAwayError, BatchError, UsageError
from mpiboot.protocol.variables import SETUP_VARIABLE

COMMENT = "mpiboot"
# A control character: no job name, reason or path holds it.
SEPARATOR = "\x1f"
FIELDS = "%i %T %r %S %e %N %k %j".replace(" ", SEPARATOR)
TIMEOUT_S = 30.0
# What Slurm's commands say when slurmctld does not answer, as while it restarts (slurm_errno.c).
AWAY = re.compile(
    r"Unable to contact|timed out|Connection (refused|reset)|Zero Bytes were transmitted|standby mode"
    r"|Transport endpoint|temporarily unable",
    re.IGNORECASE,
)
# What is wrong of a request under any load, so that `sbatch --test-only` can be believed.
INVALID = re.compile(r"invalid|unrecognized option|than permitted", re.IGNORECASE)
NO_LIMIT = (None, "UNLIMITED", "0", "NO", "UP")
ABOUT_PARTITIONS = re.compile(r"partition|node|time limit|processors|memory", re.IGNORECASE)
# Reasons of a pending job that no wait makes go away (squeue(1), JOB REASON CODES).
NEVER = frozenset(
    (
        "AccountNotAllowed",
        "BadConstraints",
        "DependencyNeverSatisfied",
        "InvalidAccount",
        "InvalidQOS",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSNotAllowed",
        "ReservationDeleted",
    )
)


class Slurm:
    """One Slurm cluster, as this user sees it."""

    name = "slurm"

    def submit_command(self, config: Config, script: Path, arguments: Sequence[str], log: Path) -> list[str]:
        asked = {
            "--job-name": config.job_name,
            "--partition": config.partition,
            "--account": config.account,
            "--nodes": config.nodes,
            "--ntasks-per-node": config.workers_per_node,
            "--cpus-per-task": config.cpus_per_worker,
            "--mem": f"{config.mem // 1024}K" if config.mem else None,
            "--time": config.time,
            # A notebook's cluster leaves no file where it was submitted; a batch command's output belongs there.
            "--output": None if config.command else str(log).replace("%", "%%") + "/slurm-%j.out",
            "--signal": f"B:USR1@{config.warn_before:.0f}" if config.warn_before != 120 else None,
        }
        if any(re.match(r"-a|--array\b", argument) for argument in config.batch_arg):
            raise UsageError(
                "--batch-arg=--array: an array is many jobs, and mpiboot makes one cluster of one job"
            )
        options = [f"{name}={value}" for name, value in asked.items() if value is not None]
        if config.workers_per_node is None:
            options.append("--exclusive")  # the nodes are taken whole, and the workers sized to fill them
        handed_on = [item.partition("=")[0] for item in config.env_var]
        exported = export_options(
            config.batch_arg, os.environ, [*handed_on, *([SETUP_VARIABLE] * bool(config.setup))]
        )
        return ["sbatch", "--parsable", *options, *config.batch_arg, *exported, str(script), *arguments]

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        try:
            output = _run(command, environ)
        except BatchError as error:
            raise self._with_limits(error) from error
        return output.strip().splitlines()[-1].partition(";")[0]

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Have sbatch look at the request, and refuse what it would refuse at any time."""
        try:
            _run([command[0], "--test-only", *command[1:]], environ)
        except BatchError as error:
            if INVALID.search(str(error)):
                raise self._with_limits(error) from error

    def _with_limits(self, error: BatchError) -> BatchError:
        """The same refusal, with what the partitions allow where it is about that: Slurm does not say."""
        if isinstance(error, BatchAwayError) or not ABOUT_PARTITIONS.search(str(error)):
            return error
        try:
            limits = parse_partitions(_run(["scontrol", "--oneliner", "show", "partition"]))
        except BatchError:
            return error
        return BatchError("\n".join([str(error), "The partitions here:", *(f"  {line}" for line in limits)]))

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        found = {state.job_id: state for state in self._squeue("--jobs", ",".join(job_ids), "--states=all")}
        forgotten = [job_id for job_id in job_ids if job_id not in found]
        if forgotten:
            found |= self._accounted(forgotten)
        return {job_id: found.get(job_id) or JobState(job_id, "", "UNKNOWN") for job_id in job_ids}

    def restarts(self, job_id: str) -> int:
        return int(find_word(_run(["scontrol", "--oneliner", "show", "job", job_id]), "Restarts") or 0)

    def jobs(self) -> list[JobState]:
        return sorted(self._squeue("--me", comment=COMMENT), key=lambda job: (len(job.job_id), job.job_id))

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        """Tell boot to end the job in order; one that boot does not run in yet is cancelled."""
        if not by_force and self.states([job_id])[job_id].state == "RUNNING":
            try:
                _run(["scancel", "--batch", "--signal=TERM", job_id])
                return
            except BatchError:  # it has no batch script yet, or none any more
                pass
        _run(["scancel", job_id])

    def job_key(self, job_id: str) -> str:
        return f"slurm-{cluster_name()}-{job_id}"

    def job_id(self, key: str) -> str | None:
        start, _, number = key.rpartition("-")
        return number if number.isdigit() and start == f"slurm-{cluster_name()}" else None

    def _squeue(self, *arguments: str, comment: str | None = None) -> list[JobState]:
        try:
            # --all: jobs in hidden partitions too.
            output = _run(["squeue", "--noheader", "--all", *arguments, "--format", FIELDS])
        except BatchError as error:
            if "Invalid job id" in str(error):
                return []
            raise
        return parse_squeue(output, comment)

    def _accounted(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """What accounting remembers of ended jobs, where there is any."""
        fields = "JobID,JobName,State,Reason,Start,End,NodeList"
        asked = ["--allocations", "--noheader", "--parsable2", f"--delimiter={SEPARATOR}"]
        try:
            output = _run(["sacct", *asked, f"--jobs={','.join(job_ids)}", f"--format={fields}"])
        except BatchError:
            return {}
        return parse_sacct(output)

    def output(self, job_id: str) -> Path | None:
        try:
            shown = _run(["scontrol", "show", "job", job_id])
        except BatchError:
            return None
        found = re.search(r"^\s*StdOut=(.*)$", shown, re.MULTILINE)  # a path may hold spaces
        return Path(found[1]) if found and found[1] else None


def export_options(batch_arg: Sequence[str], environ: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """What makes `names` reach the job where the user, or the site, keeps sbatch from exporting the environment.

    Their values stay in the environment: a command line is public (sbatch(1), `--export` and SBATCH_EXPORT).
    """
    asked = [argument.partition("=")[2] for argument in batch_arg if argument.startswith("--export=")]
    export = asked[-1] if asked else environ.get("SBATCH_EXPORT", "ALL")
    words = [word for word in export.split(",") if word not in ("NONE", "NIL")]
    if not names or "ALL" in words:
        return []
    # NONE alone gives the job its login environment; with names, that must be asked for.
    login = ["--get-user-env"] if export == "NONE" else []
    return [f"--export={','.join(dict.fromkeys([*words, *names]))}", *login]


def parse_partitions(output: str) -> list[str]:
    """What `scontrol --oneliner show partition` says of limits: `multiple: Default=YES MinNodes=2 TotalNodes=3`."""
    keys = ("Default", "State", "MinNodes", "MaxNodes", "TotalNodes", "MaxTime", "MaxMemPerNode")
    found = []
    for line in output.splitlines():
        words = [f"{key}={word}" for key in keys if (word := find_word(line, key)) not in NO_LIMIT]
        found.append(f"{find_word(line, 'PartitionName')}: {' '.join(words)}")
    return found


def parse_squeue(output: str, comment: str | None = None) -> list[JobState]:
    """`squeue --format FIELDS`, of jobs with `comment` alone if one is given."""
    found = []
    for line in output.splitlines():
        job_id, state, reason, start, end, nodes, said, name = line.split(SEPARATOR)
        if comment is None or said.split(":")[0] == comment:
            reason = "" if reason == "None" else reason
            times = slurm_time(start), slurm_time(end)
            never = state == "PENDING" and reason in NEVER
            found.append(JobState(job_id, name, state, reason, *times, nodes, never))
    return found


def parse_sacct(output: str) -> dict[str, JobState]:
    """`sacct --parsable2` of FIELDS as asked above; `CANCELLED by 1000` is CANCELLED."""
    found = {}
    for line in output.splitlines():
        job_id, name, state, reason, start, end, nodes = line.split(SEPARATOR)
        reason = "" if reason == "None" else reason
        times = slurm_time(start), slurm_time(end)
        found[job_id] = JobState(job_id, name, state.split()[0], reason, *times, nodes)
    return found


@functools.cache
def cluster_name() -> str:
    """The ClusterName of slurm.conf, which is SLURM_CLUSTER_NAME in a job."""
    for line in _run(["scontrol", "show", "config"]).splitlines():
        if line.startswith("ClusterName"):
            return line.partition("=")[2].strip()
    return "cluster"


def _run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """The output of a Slurm command; its own words in a BatchError when it fails."""
    try:
        done = subprocess.run(
            command,
            env=plain_environment(os.environ) if environ is None else dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise BatchError(
            f"{command[0]} is not on the PATH. Type this on a login node of the Slurm cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        said = os.fsdecode(error.stderr or b"").strip().partition("\n")[0]
        away = BatchError if "cannot stat file" in said else BatchAwayError  # a machine without slurm.conf
        raise away(
            f"{command[0]} did not answer within {TIMEOUT_S:.0f} s{f' ({said})' if said else ''}; "
            "is slurmctld up? Try: sinfo"
        ) from error
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        kind = BatchAwayError if AWAY.search(said) else BatchError
        raise kind(said if said.startswith(command[0]) else f"{command[0]}: {said}")
    return done.stdout
