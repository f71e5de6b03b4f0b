import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.batch.slurm.records import SEPARATOR, SQUEUE_FORMAT, Record, parse_records, phase_of
from mpiboot.batch.slurm.submission import Slurm

START = time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1))
FIELDS = {
    "%i": "7",
    "%T": "RUNNING",
    "%r": "None",
    "%V": "N/A",
    "%S": "N/A",
    "%e": "N/A",
    "%N": "n1",
    "%k": "mpiboot",
}


def line(**fields):
    """Return a line as squeue prints it; `j` is the job's name, and so on."""
    values = {"%j": "a", **FIELDS, **{f"%{letter}": value for letter, value in fields.items()}}
    return SEPARATOR.join(values[word] for word in SQUEUE_FORMAT.split(SEPARATOR)) + "\n"


def test_jobs_of_squeue():
    output = (
        line(j="a name", T="PENDING", r="PartitionNodeLimit", N="")
        + line(i="10", T="PENDING", r="Resources", N="")
        + line(i="9", j="other", k="(null)")
        + line(i="8", S="2026-11-22T10:00:00", e="2026-11-22T11:00:00", N="node[1-2]", k="mpiboot:x")
    )
    assert Slurm().parse_jobs(output) == [
        JobState("7", "a name", "pending", "PENDING", "PartitionNodeLimit", cannot_start=True),
        JobState("8", "a", "running", "RUNNING", "", START, START + 3600, "node[1-2]"),
        JobState("10", "a", "pending", "PENDING", "Resources"),
    ]


def test_a_job_without_our_comment_is_ours_if_it_is_known():
    """Where a site sets the comment of every job itself."""
    output = line(i="7", k="project 12") + line(i="8", k="project 12") + line(i="9", k="mpiboots")
    assert [job.job_id for job in Slurm().parse_jobs(output, known=["8"])] == ["8"]


HOSTILE = [
    "a\nb",
    "\n",
    "7\n8|9",
    "x\x1fy\x1e",
    "\r\n",
    "",
    " ",
    "|",
    "a\n7\x1fRUNNING",
    "\ufffd\ufffd|",
    "\x1b[2J",
    "\u2028",
]


@pytest.mark.parametrize("field", ["j", "k", "r"])
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_user_breaks_a_list(field, text):
    output = line(i="6") + line(**{field: text}) + line(i="8")
    assert [(each.job.job_id, each.job.state, each.job.nodes) for each in parse_records(output)] == [
        (job_id, "RUNNING", "n1") for job_id in ("6", "7", "8")
    ]
    assert all("\n" not in each.job.name + each.job.reason for each in parse_records(output))


@given(st.lists(st.tuples(st.text(), st.text(), st.text())))
def test_any_text_of_a_user_is_read_back(texts):
    output = "".join(
        line(i=str(i), j=name, k=comment, r=f"x{reason}") for i, (name, comment, reason) in enumerate(texts)
    )
    records = parse_records(output)
    assert [(each.job.job_id, each.comment) for each in records] == [
        (str(i), comment) for i, (_, comment, _) in enumerate(texts)
    ]
    assert [len(each.job.name) for each in records] == [len(name) for name, _, _ in texts]


def test_lines_that_are_no_jobs_are_left_out():
    output = "CLUSTER: big\n" + line(V="2026-11-22T10:00:00")
    job = JobState("7", "a", "running", "RUNNING", nodes="n1")
    assert parse_records(output) == [Record(job, "mpiboot", START)]
    assert parse_records(output.rstrip("\n")) == [
        Record(job, "mpiboot", START)
    ]  # a last line without its end
    assert parse_records("") == parse_records("no jobs\n") == []


def test_states_of_sacct():
    output = line(T="CANCELLED by 1000", S="Unknown", e="Unknown", N="None assigned", k="")
    assert Slurm().parse_states(output) == [JobState("7", "a", "ended", "CANCELLED")]
    waited = line(T="CANCELLED", r="Resources", N="") + line(
        T="CANCELLED", r="DependencyNeverSatisfied", N=""
    )
    assert [state.reason for state in Slurm().parse_states(waited)] == ["", "DependencyNeverSatisfied"]
    [killed] = Slurm().parse_states(line(T="OUT_OF_MEMORY", r="OutOfMemory"))
    assert killed.reason == "it used more memory than it was given; ask for more: --mem"


@pytest.mark.parametrize(
    ("state", "phase", "restarting"),
    [
        ("PENDING", "pending", True),
        ("CONFIGURING", "pending", True),
        ("POWER_UP_NODE", "pending", True),
        ("REQUEUED", "pending", True),
        ("REQUEUE_HOLD", "pending", True),
        ("SPECIAL_EXIT", "pending", True),
        ("SUSPENDED", "pending", False),
        ("STOPPED", "pending", False),
        ("RUNNING", "running", False),
        ("COMPLETING", "running", False),
        ("SIGNALING", "running", False),
        ("STAGE_OUT", "running", False),
        ("UPDATE_DB", "running", False),
        ("EXPEDITING", "running", False),
        ("REVOKED", "running", False),
        ("LAUNCH_FAILED", "running", False),
        ("RECONFIG_FAIL", "running", False),
        ("A_WORD_OF_A_LATER_SLURM", "running", False),
        ("RUNNING,COMPLETING", "running", False),
        ("CANCELLED+COMPLETING", "running", False),
        ("", "running", False),
        ("CANCELLED+", "ended", False),
        ("FAILED|NODE_FAIL", "ended", False),
        *((state, "ended", False) for state in ("BOOT_FAIL", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL")),
        *((state, "ended", False) for state in ("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")),
    ],
)
def test_phases(state, phase, restarting):
    """A suspended job's processes are there; a word that nobody knows must not end a wait."""
    [job] = Slurm().parse_states(line(T=state))
    assert (job.phase, job.restarting, job.state) == (phase, restarting, state.rstrip("+") or "?")


def test_a_job_whose_state_has_several_words():
    assert phase_of("PENDING,COMPLETING") == "pending"


def test_squeue_is_asked_for_what_is_parsed(commands):
    """squeue itself puts the fields in the place of the letters: here a stand-in does."""
    commands(
        squeue="""for word; do format=$word; done
        printf '%s\\n' "$format" | /bin/sed 's/%i/7/; s/%T/RUNNING/; s/%k/mpiboot/; s/%j/a b/; s/%N/n1/; s/%r/None/'"""
    )
    [job] = registry.batch_system("slurm").jobs()
    assert job == dataclasses.replace(JobState("7", "a b", "running", "RUNNING"), nodes="n1")


@pytest.mark.parametrize(
    ("reason", "cannot_start"),
    [
        *(
            (reason, True)
            for reason in ("PartitionTimeLimit", "PartitionConfig", "MaxMemPerLimit", "BadConstraints")
        ),
        *((reason, True) for reason in ("QOSMaxWallDurationPerJobLimit", "AssocMaxMemPerJob", "QOSMinGRES")),
        *((reason, True) for reason in ("QOSMaxMemoryPerNode", "AssocMaxCpuMinutesPerJobLimit")),
        *(
            (reason, False)
            for reason in ("Resources", "Priority", "BeginTime", "PartitionDown", "JobHeldUser", "")
        ),
        *(
            (reason, False)
            for reason in ("QOSMaxJobsPerUserLimit", "QOSMaxCpuPerUserLimit", "AssocGrpMemLimit")
        ),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            False,
        ),
    ],
)
def test_for_which_reasons_a_job_cannot_start(reason, cannot_start):
    [job] = Slurm().parse_states(line(T="PENDING", r=reason))
    assert (job.reason, job.cannot_start) == (reason, cannot_start)
