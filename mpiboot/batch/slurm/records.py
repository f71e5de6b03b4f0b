"""Lists of jobs: the commands of squeue and sacct, and the parsing of what they print, whatever users have written there.

`submission` imports this module; it imports only `text` and `batch.job_state`.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from mpiboot.batch.job_state import JobState, Phase
from mpiboot.batch.slurm.text import slurm_time

# Names, comments and reasons are free text, with line breaks and control characters if their user likes. No text can
# contain a separator that every process chooses anew.
SEPARATOR = f"\x1f{secrets.token_hex(8)}\x1f"
# The job id comes first and the free text last: see `parse_records`.
SQUEUE_FORMAT = SEPARATOR.join(("%i", "%T", "%r", "%V", "%S", "%e", "%N", "%k", "%j"))
SACCT_FORMAT = "JobID,State,Reason,Submit,Start,End,NodeList,Comment,JobName"

# squeue(1), JOB STATE CODES; slurm.h, enum job_states and the flags beside it. A job with a word in neither set runs:
# a later Slurm's word, or one that says nothing about the job's processes, as REVOKED (another cluster of a federation
# runs the job), LAUNCH_FAILED and RECONFIG_FAIL (the job is requeued), SIGNALING, STAGE_OUT, UPDATE_DB, COMPLETING.
PENDING = frozenset(
    (
        *(
            "PENDING",
            "CONFIGURING",
            "POWER_UP_NODE",
            "REQUEUED",
            "REQUEUE_FED",
            "REQUEUE_HOLD",
            "RESV_DEL_HOLD",
        ),
        *("SPECIAL_EXIT", "SUSPENDED", "STOPPED", "RESIZING"),
    )
)
# Words of pending jobs whose processes exist.
SUSPENDED = frozenset(("SUSPENDED", "STOPPED", "RESIZING"))
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "TIMEOUT"),
    )
)
# Reasons for which a pending job cannot start unless somebody changes something (squeue(1), JOB REASON CODES): the limits
# of its partition, and those that an association or a QOS sets for each job.
CANNOT_START = re.compile(
    "AccountNotAllowed|BadConstraints|DependencyNeverSatisfied|InvalidAccount|InvalidQOS|MaxMemPerLimit"
    "|PartitionConfig|PartitionNodeLimit|PartitionTimeLimit|QOSNotAllowed|ReservationDeleted"
    r"|(Assoc|QOS)Max\w+Per(Job|Node)(Limit)?|QOSMin\w+"
)


class Record(NamedTuple):
    """One job in a list: its state, its comment, and when it was submitted, in seconds since the epoch."""

    job: JobState
    comment: str
    submitted: float | None


def squeue(*arguments: str) -> list[str]:
    """Return a squeue command whose output `parse_records` reads; it lists jobs in hidden partitions, too."""
    return ["squeue", "--noheader", "--all", *arguments, "--format", SQUEUE_FORMAT]


def sacct(*arguments: str) -> list[str]:
    """Return a sacct command whose output `parse_records` reads."""
    layout = ("--allocations", "--noheader", "--parsable2", f"--delimiter={SEPARATOR}")
    return ["sacct", *layout, *arguments, f"--format={SACCT_FORMAT}"]


def parse_records(output: str) -> list[Record]:
    """Return the jobs in the output of the commands above.

    A record ends with a line break, which its free text may contain, too: so a record's last field reaches up to the
    last line break before the next separator, which precedes a job id.
    """
    before, *fields = output.split(SEPARATOR)
    job_id = before.rpartition("\n")[2]
    count = SACCT_FORMAT.count(",")
    records = []
    for at in range(0, len(fields) - count + 1, count):
        name, line_break, next_id = fields[at + count - 1].rpartition("\n")
        records.append(_record([job_id, *fields[at : at + count - 1], name if line_break else next_id]))
        job_id = next_id
    return records


def _record(fields: list[str]) -> Record:
    job_id, state, reason, submitted, start, end, nodes, comment, name = fields
    word = state.partition(" ")[0].rstrip("+") or "?"  # sacct's `CANCELLED by 1000`; a word that was cut off
    waited = word == "CANCELLED" and reason in ("Priority", "Resources")  # it says why the job had to wait
    reason = "" if reason == "None" or waited else _one_line(reason)
    if word == "OUT_OF_MEMORY":
        reason = "it used more memory than it was given; ask for more: --mem"
    job = JobState(
        job_id,
        _one_line(name),
        phase_of(word),
        word,
        reason,
        slurm_time(start),
        slurm_time(end),
        "" if nodes == "None assigned" else nodes,
        cannot_start=word == "PENDING" and CANNOT_START.fullmatch(reason) is not None,
        suspended=word in SUSPENDED,
    )
    return Record(job, comment, slurm_time(submitted))


def _one_line(text: str) -> str:
    """Return free text as a table or a message can show it: without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def phase_of(state: str) -> Phase:
    """Return the phase of a job with this state; of several words, joined by signs, the first that still lives counts."""
    words = re.findall(r"\w+", state)
    living = [word for word in words if word not in ENDED]
    if words and not living:
        return "ended"
    return "pending" if living and living[0] in PENDING else "running"
