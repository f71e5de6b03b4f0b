import time
from pathlib import Path

import pytest

from mpiboot import config as configuration
from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.batch.slurm.submission import SEPARATOR, Slurm, export_options
from mpiboot.errors import BatchAwayError, UsageError


def line(*words):
    return SEPARATOR.join(words) + "\n"


def test_jobs_of_squeue():
    output = (
        line("7", "a name", "PENDING", "PartitionNodeLimit", "N/A", "N/A", "", "mpiboot")
        + line("10", "mpiboot", "PENDING", "Resources", "N/A", "N/A", "", "mpiboot")
        + line("9", "other", "RUNNING", "None", "N/A", "N/A", "n", "(null)")
        + line(
            *("8", "mpiboot", "RUNNING", "None", "2026-11-22T10:00:00", "2026-11-22T11:00:00"),
            *("node[1-2]", "mpiboot:x"),
        )
    )
    start = time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1))
    assert Slurm().parse_jobs(output) == [
        JobState("7", "a name", "pending", "PENDING", "PartitionNodeLimit", cannot_start=True),
        JobState("8", "mpiboot", "running", "RUNNING", "", start, start + 3600, "node[1-2]"),
        JobState("10", "mpiboot", "pending", "PENDING", "Resources"),
    ]


def test_states_of_sacct():
    output = line("7", "mpiboot", "CANCELLED by 1000", "None", "Unknown", "Unknown", "None assigned")
    assert Slurm().parse_states(output) == [
        JobState("7", "mpiboot", "ended", "CANCELLED", nodes="None assigned")
    ]


@pytest.mark.parametrize(
    ("state", "phase", "restarting"),
    [
        ("PENDING", "pending", True),
        ("REQUEUED", "pending", True),
        ("SUSPENDED", "pending", False),
        ("RUNNING", "running", False),
        ("COMPLETING", "running", False),
        ("A_WORD_OF_A_LATER_SLURM", "running", False),
        ("OUT_OF_MEMORY", "ended", False),
    ],
)
def test_phases(state, phase, restarting):
    """A suspended job's processes are there; a word that nobody knows must not end a wait."""
    [job] = Slurm().parse_states(line("7", "a", state, "None", "N/A", "N/A", "", "mpiboot"))
    assert (job.phase, job.restarting, job.state) == (phase, restarting, state)


@pytest.mark.parametrize(
    ("batch_arg", "environ", "names", "expected"),
    [
        ([], {}, ["A"], []),
        (["--export=ALL"], {"SBATCH_EXPORT": "NONE"}, ["A"], []),
        (["--export=ALL,B=1"], {}, ["A"], []),
        (["--export=NONE"], {}, ["A", "B"], ["--export=A,B", "--get-user-env"]),
        ([], {"SBATCH_EXPORT": "NONE"}, ["A"], ["--export=A", "--get-user-env"]),
        (["--export=NONE", "--export=HOME,A"], {}, ["A"], ["--export=HOME,A"]),
        (["--export=NONE"], {}, [], []),
    ],
)
def test_what_is_exported_where_not_all_is(batch_arg, environ, names, expected):
    assert export_options(batch_arg, environ, names) == expected


def test_the_whole_command():
    config = configuration.merge(
        {
            "nodes": 2,
            "workers_per_node": 4,
            "mem": "8G",
            "partition": "p",
            "time": "1:00:00",
            "batch_arg": ["--qos=x"],
        }
    )
    command = Slurm().submit_command(
        config,
        Path("/s/slurm.sh"),
        ["--interface", "ib0"],
        environ={"SBATCH_EXPORT": "NONE"},
        variables=["A"],
        output_folder=Path('/h/10% "q"/logs'),
    )
    assert command == [
        *("sbatch", "--parsable", "--job-name=mpiboot", "--partition=p", "--nodes=2", "--ntasks-per-node=4"),
        *("--mem=8388608K", "--time=1:00:00", '--output=/h/10%% "q"/logs/slurm-%j.out', "--qos=x"),
        *("--export=A", "--get-user-env", "/s/slurm.sh", "--interface", "ib0"),
    ]


def test_what_changes_slurms_answers_is_not_passed_on(commands, monkeypatch):
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SQUEUE_PARTITION", "p")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")  # sbatch does not get it either
    commands(
        squeue='[ -z "$SLURM_TIME_FORMAT$SQUEUE_PARTITION$SLURM_CLUSTERS" ] || { echo changed >&2; exit 1; }'
    )
    assert registry.batch_system("slurm").jobs() == []


def test_jobs_in_hidden_partitions_are_live(commands):
    """Without accounting, a job that squeue leaves out would count as ended."""
    answer = line("7", "a", "RUNNING", "None", "N/A", "N/A", "n1", "mpiboot").strip()
    commands(squeue=f"""for word; do [ "$word" = --all ] && echo '{answer}'; done; true""")
    assert [job.job_id for job in registry.batch_system("slurm").jobs()] == ["7"]
    assert registry.batch_system("slurm").states(["7"])["7"].live


@pytest.mark.parametrize("argument", ["--array=1-3", "-a1", "-a", "--array"])
def test_an_array_is_refused(argument):
    with pytest.raises(UsageError, match="an array is many jobs"):
        Slurm().submit_command(configuration.merge({"batch_arg": [argument]}), Path("s"), [], environ={})


def test_a_running_job_is_asked_to_end_and_any_other_is_cancelled(commands, tmp_path):
    answer = line("7", "a", "RUNNING", "None", "N/A", "N/A", "n1", "mpiboot").strip()
    commands(squeue=f"echo '{answer}'", scancel=f"""echo "$@" >> {tmp_path}/calls""")
    slurm = registry.batch_system("slurm")
    slurm.stop("7")
    slurm.stop("7", by_force=True)
    commands(
        squeue=f"echo '{answer.replace('RUNNING', 'PENDING')}'", scancel=f"""echo "$@" >> {tmp_path}/calls"""
    )
    slurm.stop("7")
    commands(
        squeue=f"echo '{answer}'",
        scancel=f"""[ "$1" = --batch ] && exit 1; echo "$@" >> {tmp_path}/calls""",
    )
    slurm.stop("7")
    assert (tmp_path / "calls").read_text() == "--batch --signal=TERM 7\n7\n7\n7\n"


def test_states_come_from_the_history_where_squeue_has_forgotten_a_job(commands):
    ended = line("8", "mpiboot", "TIMEOUT", "None", "Unknown", "Unknown", "n1").strip()
    commands(
        squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", sacct=f"echo '{ended}'"
    )
    states = registry.batch_system("slurm").states(["8", "9"])
    assert states["8"] == JobState("8", "mpiboot", "ended", "TIMEOUT", nodes="n1")
    assert (states["9"].phase, states["9"].live) == ("unknown", False)
    commands(squeue="exit 0", sacct="echo 'accounting storage is disabled' >&2; exit 1")
    assert registry.batch_system("slurm").states(["8"])["8"].phase == "unknown"


def test_what_doctor_is_told(commands):
    commands(sinfo="""[ "$1" = --version ] && echo 'slurm 22.05.8'; true""")
    assert registry.batch_system("slurm").describe() == "slurm 22.05.8"
    commands(
        sinfo="""[ "$1" = --version ] && echo 'slurm 22.05.8' && exit
        echo 'Unable to contact slurm controller' >&2; exit 1"""
    )
    with pytest.raises(BatchAwayError, match="sinfo: Unable to contact slurm controller"):
        registry.batch_system("slurm").describe()


@pytest.mark.parametrize(
    ("text", "away"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("timed out: ", True),
        ("timed out: squeue: error: cannot stat file /etc/slurm/slurm.conf", False),
        ("slurm_load_jobs error: Invalid job id specified", False),
    ],
)
def test_a_slurm_that_does_not_answer_for_now(text, away):
    assert Slurm().is_away(text) == away


def test_where_the_output_is_and_how_often_a_job_was_requeued():
    shown = "JobId=7 JobName=a\n   Restarts=2 BatchFlag=1\n   StdOut=/home/a b/slurm-7.out\n   Power=\n"
    assert Slurm().parse_output(shown) == Path("/home/a b/slurm-7.out")
    assert Slurm().parse_restarts(shown) == 2
    assert Slurm().parse_cluster("ClusterId = 1\nClusterName             = big\n") == "big"


@pytest.mark.parametrize(
    ("mem", "expected"),
    [
        (None, []),
        (0, ["--mem=0"]),
        ("1.5G", ["--mem=1572864K"]),
        ("513B", ["--mem=1K"]),
        ("1025B", ["--mem=2K"]),
    ],
)
def test_memory_in_whole_kibibytes(mem, expected):
    command = Slurm().submit_command(configuration.merge({"mem": mem}), Path("s"), [], environ={})
    assert [word for word in command if word.startswith("--mem")] == expected


@pytest.mark.parametrize(
    ("warn_before", "expected"),
    [
        ("2 min", []),
        ("90.4", ["B:USR1@90"]),
        ("0.1s", ["B:USR1@1"]),
        ("0", ["B:USR1@1"]),
        ("2 d", ["B:USR1@65535"]),
    ],
)
def test_the_signal_is_within_sbatchs_limits(warn_before, expected):
    config = configuration.merge({"warn_before": warn_before})
    command = Slurm().submit_command(config, Path("s"), [], environ={})
    assert [word.partition("=")[2] for word in command if word.startswith("--signal")] == expected
