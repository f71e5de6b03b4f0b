"""Slurm's commands, for the client."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpiboot.batch.job_state import JobState
from mpiboot.batch.slurm import FACTS, site
from mpiboot.batch.slurm import arguments as sbatch
from mpiboot.batch.slurm.records import Record, parse_records, sacct, squeue
from mpiboot.batch.slurm.text import find_word, plain_environment
from mpiboot.batch.submission import BatchSystem, Submission
from mpiboot.batch.system import CommandBatchSystem
from mpiboot.errors import BatchError

if TYPE_CHECKING:
    from mpiboot.config import Config

# The job script's --comment, which identifies mpiboot's jobs. submit adds a colon and a token.
COMMENT = "mpiboot"
# A job that takes whole nodes takes their memory, too: without --mem it would get the site's default for its CPUs.
WHOLE_NODES = ("--exclusive", "--mem=0")
# A clock of another host may differ by this much.
CLOCKS_DIFFER_S = 60.0
# Messages of Slurm's commands when slurmctld does not answer, such as during a restart (slurm_errno.c).
AWAY = re.compile(
    r"Unable to contact|timed out|Connection (refused|reset)|Zero Bytes were transmitted|standby mode"
    r"|Transport endpoint|temporarily unable|Job submission.*disabled|backup controller",
    re.IGNORECASE,
)
# On a machine without slurm.conf the commands fail with such a message too, but waiting does not help.
NOT_CONFIGURED = re.compile(
    "cannot stat file|Could not establish a configuration source|Unable to process configuration file"
)
# Errors that do not depend on the cluster's load or on nodes that are down, so that `sbatch --test-only` can be trusted.
INVALID = re.compile(
    r"invalid|unrecognized (option|argument)|unknown option|than permitted|not permitted|denied|not valid"
    r"|can ?not be satisfied|required by task is not available|No partition specified"
    # A site's job_submit plugin refuses with its own words, and with this.
    r"|Unspecified error",
    re.IGNORECASE,
)
ABOUT_PARTITIONS = re.compile(r"partition|node|time limit|processors|memory|MaxMem", re.IGNORECASE)
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
        in_script = sbatch.directives(script)
        sbatch.check(config.batch_arg, in_script, environ, script)
        typed, _ = sbatch.parse_arguments(config.batch_arg)
        given = {name for name, _ in [*typed, *in_script]}
        options = [f"{name}={value}" for name, value in values.items() if value is not None]
        # The limits of a login node, such as on CPU time, are not meant for jobs.
        if "propagate" not in given:
            options.append("--propagate=NONE")
        if "SBATCH_SIGNAL" in environ and values["--signal"] is None:  # it would replace the job script's
            options.append(f"--signal=B:USR1@{config.warn_before:.0f}")
        # Without a number of workers, the job takes whole nodes, and workers are sized to fill them.
        if config.workers_per_node is None or ("exclusive", "") in [*typed, *in_script]:
            memory = [config.mem is not None, *(environ.get(name) for name in sbatch.MEMORY_VARIABLES)]
            options += WHOLE_NODES[:1] if any(memory) or given & sbatch.MEMORY else WHOLE_NODES
        export = sbatch.export_options(typed, environ, variables)
        return ["sbatch", "--parsable", *options, *config.batch_arg, *export, str(script), *arguments]

    def clusters(self, config: Config, script: Path, environ: Mapping[str, str]) -> dict[str, str]:
        return sbatch.clusters(config.batch_arg, sbatch.directives(script), environ, script)

    def parse_submitted(self, output: str) -> str:
        # A site's wrapper around sbatch may print lines of its own.
        numbers: list[str] = re.findall(r"^(\d+)(?:;.*)?$", output, re.MULTILINE)
        if not numbers:
            raise BatchError(f"sbatch printed no job id, but {output.strip()[:200]!r}", "")
        return numbers[-1]

    def identified(self, command: Sequence[str], token: str) -> list[str]:
        # The site's or the user's own comment is not replaced.
        options, words = sbatch.parse_arguments(command[1:])
        in_script = [value for name, value in sbatch.directives(Path(words[0])) if name == "comment"]
        if any(name == "comment" for name, _ in options) or in_script not in ([], [COMMENT]):
            return list(command)
        return [*command[:2], f"--comment={COMMENT}:{token}", *command[2:]]

    def recent_command(self) -> list[str]:
        return squeue("--me", "--states=all")

    def parse_recent(
        self, output: str, command: Sequence[str], token: str, since: float
    ) -> tuple[str | None, list[str]]:
        # A refused job has a record, too: as one that failed, without nodes.
        records = [each for each in parse_records(output) if each.job.live or each.job.nodes]
        ours = [each.job.job_id for each in records if each.comment == f"{COMMENT}:{token}"]
        name = dict(sbatch.parse_arguments(command[1:])[0]).get("job-name")
        alike = [
            each.job.job_id
            for each in records
            if each.job.name == name and (each.submitted or 0.0) > since - CLOCKS_DIFFER_S
        ]
        return (ours[0] if ours else None), alike

    def relaxed(self, command: Sequence[str]) -> list[str] | None:
        at = [i for i in range(len(command)) if tuple(command[i : i + 2]) == WHOLE_NODES]
        return [*command[: at[0] + 1], *command[at[0] + 2 :]] if at else None

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
        return sacct(f"--jobs={','.join(job_ids)}")

    def ended_command(self, since: float) -> list[str]:
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
        return sacct(f"--user={os.getuid()}", f"--starttime={start}")

    def parse_states(self, output: str) -> list[JobState]:
        return [record.job for record in parse_records(output)]

    def parse_jobs(self, output: str, known: Collection[str] = ()) -> list[JobState]:
        def is_ours(record: Record) -> bool:
            return record.comment.split(":")[0] == COMMENT or record.job.job_id in known

        ours = [record.job for record in parse_records(output) if is_ours(record)]
        return sorted(ours, key=lambda job: (len(job.job_id), job.job_id))

    def is_unknown_job(self, text: str) -> bool:
        return "Invalid job id" in text

    def output_command(self, job_id: str) -> list[str]:
        return ["scontrol", "show", "job", job_id]

    def parse_output(self, output: str) -> Path | None:
        # A path may hold spaces. What a job's name or comment may hold comes before.
        paths = re.findall(r"^\s*StdOut=(.*)$", output, re.MULTILINE)
        return Path(paths[-1]) if paths and paths[-1] else None

    def restarts_command(self, job_id: str) -> list[str]:
        return ["squeue", "--noheader", "--all", "--states=all", "--jobs", job_id, "--Format=RestartCnt:20"]

    def parse_restarts(self, output: str) -> int:
        number = output.strip()
        return int(number) if number.isdecimal() else 0

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
        return ["squeue", "--me"]  # sinfo fails where a site hides its partitions or nodes (PrivateData)

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
        return bool(AWAY.search(text)) and not self.is_absent(text)

    def is_absent(self, text: str) -> bool:
        return bool(NOT_CONFIGURED.search(text))

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
