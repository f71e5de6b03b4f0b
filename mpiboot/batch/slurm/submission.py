"""Slurm's commands, for the client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpiboot.batch.job_state import JobState, Phase
from mpiboot.batch.slurm import FACTS, site
from mpiboot.batch.slurm.text import find_word, plain_environment, slurm_time
from mpiboot.batch.submission import BatchSystem, Submission
from mpiboot.batch.system import CommandBatchSystem
from mpiboot.errors import UsageError

if TYPE_CHECKING:
    from mpiboot.config import Config

# squeue(1), JOB STATE CODES; slurm.h, enum job_states and the flags beside it. A job with a word in neither set is
# running.
PENDING = frozenset(
    (
        *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
        *("SPECIAL_EXIT", "SUSPENDED", "RESIZING"),
    )
)
# Words of pending jobs whose processes exist.
SUSPENDED = frozenset(("SUSPENDED", "RESIZING"))
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
    )
)
# Reasons for which a pending job cannot start unless somebody changes something (squeue(1), JOB REASON CODES).
CANNOT_START = frozenset(
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
# The job script's --comment, which identifies mpiboot's jobs.
COMMENT = "mpiboot"
# A control character, which no job name, reason or path contains.
SEPARATOR = "\x1f"
SQUEUE_FORMAT = SEPARATOR.join(("%i", "%j", "%T", "%r", "%S", "%e", "%N", "%k"))
SACCT_FORMAT = "JobID,JobName,State,Reason,Start,End,NodeList"
# Messages of Slurm's commands when slurmctld does not answer, such as during a restart (slurm_errno.c).
AWAY = re.compile(
    r"Unable to contact|timed out|Connection (refused|reset)|Zero Bytes were transmitted|standby mode"
    r"|Transport endpoint|temporarily unable",
    re.IGNORECASE,
)
# On a machine without slurm.conf the commands fail with such a message too, but waiting does not help.
NO_CONFIGURATION = "cannot stat file"
# Errors that do not depend on the cluster's load, so that `sbatch --test-only` can be trusted.
INVALID = re.compile(r"invalid|unrecognized option|than permitted", re.IGNORECASE)
ABOUT_PARTITIONS = re.compile(r"partition|node|time limit|processors|memory", re.IGNORECASE)
NO_LIMIT = (None, "UNLIMITED", "0", "NO", "UP")


class Slurm(Submission):
    """One Slurm cluster, as this user sees it."""

    facts = FACTS
    # What `allocation` reads in the job's record. One CPU per worker is not told there from no number at all.
    passed_options = ("batch_system", "workers_per_node", "mem", "time")

    def submit_command(
        self,
        config: Config,
        script: Path,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        variables: Sequence[str] = (),
        output_folder: Path | None = None,
    ) -> list[str]:
        values = {
            "--job-name": config.job_name,
            "--partition": config.partition,
            "--account": config.account,
            "--nodes": config.nodes,
            "--ntasks-per-node": config.workers_per_node,
            "--cpus-per-task": config.cpus_per_worker,
            "--mem": mem_option(config.mem),
            "--time": config.time,
            "--output": str(output_folder).replace("%", "%%") + "/slurm-%j.out" if output_folder else None,
            "--signal": f"B:USR1@{signal_lead_s(config.warn_before)}" if config.warn_before != 120 else None,
        }
        if any(re.match(r"-a|--array\b", argument) for argument in config.batch_arg):
            raise UsageError(
                "--batch-arg=--array: an array is many jobs, and mpiboot makes one cluster of one job",
                "Leave it out, and submit several jobs",
            )
        options = [f"{name}={value}" for name, value in values.items() if value is not None]
        if config.workers_per_node is None:
            options.append("--exclusive")  # the job takes whole nodes, and workers are sized to fill them
        export = export_options(config.batch_arg, environ, variables)
        return ["sbatch", "--parsable", *options, *config.batch_arg, *export, str(script), *arguments]

    def parse_submitted(self, output: str) -> str:
        return output.strip().splitlines()[-1].partition(";")[0]

    def check_command(self, submit_command: Sequence[str]) -> list[str]:
        return [submit_command[0], "--test-only", *submit_command[1:]]

    def is_invalid(self, text: str) -> bool:
        return bool(INVALID.search(text))

    def limits_command(self, text: str) -> list[str] | None:
        about_partitions = ABOUT_PARTITIONS.search(text)
        return ["scontrol", "--oneliner", "show", "partition"] if about_partitions else None

    def parse_limits(self, output: str) -> list[str]:
        """Return all partitions, as in `multiple: Default=YES MinNodes=2`: Slurm does not name the exceeded limit."""
        keys = ("Default", "State", "MinNodes", "MaxNodes", "TotalNodes", "MaxTime", "MaxMemPerNode")
        lines = ["The partitions here:"]
        for line in output.splitlines():
            words = [f"{key}={word}" for key in keys if (word := find_word(line, key)) not in NO_LIMIT]
            lines.append(f"  {find_word(line, 'PartitionName')}: {' '.join(words)}")
        return lines

    def states_command(self, job_ids: Sequence[str]) -> list[str]:
        return squeue("--jobs", ",".join(job_ids), "--states=all")

    def jobs_command(self) -> list[str]:
        return squeue("--me")

    def history_command(self, job_ids: Sequence[str]) -> list[str]:
        layout = ["--allocations", "--noheader", "--parsable2", f"--delimiter={SEPARATOR}"]
        return ["sacct", *layout, f"--jobs={','.join(job_ids)}", f"--format={SACCT_FORMAT}"]

    def parse_states(self, output: str) -> list[JobState]:
        return [parse_line(line) for line in output.splitlines()]

    def parse_jobs(self, output: str) -> list[JobState]:
        mine = [
            line for line in output.splitlines() if line.rpartition(SEPARATOR)[2].split(":")[0] == COMMENT
        ]
        return sorted(map(parse_line, mine), key=lambda job: (len(job.job_id), job.job_id))

    def is_unknown_job(self, text: str) -> bool:
        return "Invalid job id" in text

    def output_command(self, job_id: str) -> list[str]:
        return ["scontrol", "show", "job", job_id]

    def parse_output(self, output: str) -> Path | None:
        match = re.search(r"^\s*StdOut=(.*)$", output, re.MULTILINE)  # a path may hold spaces
        return Path(match[1]) if match and match[1] else None

    def restarts_command(self, job_id: str) -> list[str]:
        return ["scontrol", "--oneliner", "show", "job", job_id]

    def parse_restarts(self, output: str) -> int:
        return int(find_word(output, "Restarts") or 0)

    def ended_word(self, exit_status: int) -> str:
        return {0: "COMPLETED", 124: "TIMEOUT"}.get(exit_status, "FAILED")

    def signal_command(self, state: JobState) -> list[str] | None:
        if state.state != "RUNNING":
            return None
        return ["scancel", "--batch", "--signal=TERM", state.job_id]

    def cancel_command(self, job_id: str) -> list[str]:
        return ["scancel", job_id]

    def version_command(self) -> list[str]:
        return ["sinfo", "--version"]

    def ping_command(self) -> list[str]:
        return ["sinfo"]

    def cluster_command(self) -> list[str]:
        return ["scontrol", "show", "config"]

    def parse_cluster(self, output: str) -> str:
        """Return the ClusterName of slurm.conf, which is SLURM_CLUSTER_NAME in a job."""
        for line in output.splitlines():
            if line.startswith("ClusterName"):
                return line.partition("=")[2].strip()
        return "cluster"

    def site_commands(self) -> Mapping[str, list[str]]:
        return site.COMMANDS

    def describe_site(self, name: str, output: str) -> str:
        return site.describe(name, output)

    def is_away(self, text: str) -> bool:
        return bool(AWAY.search(text)) and NO_CONFIGURATION not in text

    def query_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        return plain_environment(environ)


def batch_system() -> BatchSystem:
    """Return Slurm as a batch system, for the registry."""
    return CommandBatchSystem(Slurm())


def signal_lead_s(warn_before_s: float) -> int:
    """Return the lead of `--signal`, within its limits (sbatch(1)); boot's own clock keeps the exact time."""
    return min(max(round(warn_before_s), 1), 65535)


def mem_option(size_bytes: int | None) -> str | None:
    """Return the value of `--mem`: whole KiB, rounded up, since 0 is all of the node's memory."""
    return f"{-(-size_bytes // 1024)}K" if size_bytes else None if size_bytes is None else "0"


def squeue(*arguments: str) -> list[str]:
    """Return a squeue command whose output `parse_line` reads; it lists jobs in hidden partitions, too."""
    return ["squeue", "--noheader", "--all", *arguments, "--format", SQUEUE_FORMAT]


def parse_line(line: str) -> JobState:
    """Return the job in a line of squeue or sacct, in the formats above. sacct's `CANCELLED by 1000` is CANCELLED."""
    job_id, name, words, reason, start, end, nodes = line.split(SEPARATOR)[:7]
    state = words.split()[0]
    reason = "" if reason == "None" else reason
    return JobState(
        job_id,
        name,
        phase_of(state),
        state,
        reason,
        slurm_time(start),
        slurm_time(end),
        nodes,
        cannot_start=state == "PENDING" and reason in CANNOT_START,
        suspended=state in SUSPENDED,
    )


def phase_of(state: str) -> Phase:
    """Return the phase of a job with this state."""
    if state in PENDING:
        return "pending"
    return "ended" if state in ENDED else "running"


def export_options(
    batch_arg: Sequence[str], environ: Mapping[str, str], variables: Sequence[str]
) -> list[str]:
    """Return options that make variables reach the job even if the user, or the site, keeps sbatch from exporting them.

    Their values stay in the environment: every user of the machine can read a command line (sbatch(1), `--export` and
    SBATCH_EXPORT).
    """
    given = [argument.partition("=")[2] for argument in batch_arg if argument.startswith("--export=")]
    export = given[-1] if given else environ.get("SBATCH_EXPORT", "ALL")
    words = [word for word in export.split(",") if word not in ("NONE", "NIL")]
    if not variables or "ALL" in words:
        return []
    # NONE alone gives the job its login environment; with names of variables, --get-user-env must request it.
    login = ["--get-user-env"] if export == "NONE" else []
    return [f"--export={','.join(dict.fromkeys([*words, *variables]))}", *login]
