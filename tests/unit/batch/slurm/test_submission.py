from importlib.resources import as_file, files
from pathlib import Path

import pytest

from mpiboot import config as configuration
from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.batch.slurm.arguments import directives
from mpiboot.batch.slurm.records import SEPARATOR
from mpiboot.batch.slurm.submission import Slurm
from mpiboot.errors import BatchAwayError


def line(job_id, state, *, reason="None", nodes="n1", comment="mpiboot", name="a", submitted="N/A"):
    return SEPARATOR.join((job_id, state, reason, submitted, "N/A", "N/A", nodes, comment, name))


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
        *("--mem=8388608K", "--time=1:00:00", '--output=/h/10%% "q"/logs/slurm-%j.out', "--propagate=NONE"),
        "--qos=x",
        *("--export=A", "--get-user-env", "/s/slurm.sh", "--interface", "ib0"),
    ]


@pytest.mark.parametrize(
    ("options", "script", "environ", "expected"),
    [
        ({}, "", {}, ["--propagate=NONE", "--exclusive", "--mem=0"]),
        ({"workers_per_node": 2}, "", {}, ["--ntasks-per-node=2", "--propagate=NONE"]),
        ({"mem": "1G"}, "", {}, ["--mem=1048576K", "--propagate=NONE", "--exclusive"]),
        (
            {"batch_arg": ["--mem-per-cpu=1G"]},
            "",
            {},
            ["--propagate=NONE", "--exclusive", "--mem-per-cpu=1G"],
        ),
        ({}, "--mem=3G", {}, ["--propagate=NONE", "--exclusive"]),
        ({}, "", {"SBATCH_MEM_PER_CPU": "1G"}, ["--propagate=NONE", "--exclusive"]),
        (
            {"workers_per_node": 2, "batch_arg": ["--exclusive"]},
            "",
            {},
            ["--ntasks-per-node=2", "--propagate=NONE", "--exclusive", "--mem=0", "--exclusive"],
        ),
        (
            {"workers_per_node": 2, "batch_arg": ["--exclusive=user"]},
            "",
            {},
            ["--ntasks-per-node=2", "--propagate=NONE", "--exclusive=user"],
        ),
        # The limits that a site, or a user, wants in jobs.
        ({"workers_per_node": 2}, "--propagate=MEMLOCK", {}, ["--ntasks-per-node=2"]),
        (
            {"workers_per_node": 2, "batch_arg": ["--propagate"]},
            "",
            {},
            ["--ntasks-per-node=2", "--propagate"],
        ),
        # A variable comes before the script's directive, so the line repeats it.
        (
            {"workers_per_node": 2},
            "",
            {"SBATCH_SIGNAL": "B:TERM@9"},
            ["--ntasks-per-node=2", "--propagate=NONE", "--signal=B:USR1@120"],
        ),
    ],
)
def test_what_is_asked_for_besides_the_users_options(tmp_path, options, script, environ, expected):
    (tmp_path / "job.sh").write_text(f"#!/bin/bash\n#SBATCH {script}\n")
    command = Slurm().submit_command(configuration.merge(options), tmp_path / "job.sh", [], environ=environ)
    assert command == [
        "sbatch",
        "--parsable",
        "--job-name=mpiboot",
        "--nodes=1",
        *expected,
        f"{tmp_path}/job.sh",
    ]


def test_the_shipped_job_script_keeps_the_login_nodes_limits_out_of_the_job():
    with as_file(files("mpiboot.jobscripts") / "slurm.sh") as script:
        assert ("propagate", "NONE") in directives(script)


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
    answer = line("7", "RUNNING")
    commands(squeue=f"""for word; do [ "$word" = --all ] && echo '{answer}'; done; true""")
    assert [job.job_id for job in registry.batch_system("slurm").jobs()] == ["7"]
    assert registry.batch_system("slurm").states(["7"])["7"].live


def test_a_running_job_is_asked_to_end_and_any_other_is_cancelled(commands, tmp_path):
    answer = line("7", "RUNNING")
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
    ended = line("8", "TIMEOUT", name="mpiboot")
    commands(
        squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", sacct=f"echo '{ended}'"
    )
    states = registry.batch_system("slurm").states(["8", "9"])
    assert states["8"] == JobState("8", "mpiboot", "ended", "TIMEOUT", nodes="n1")
    assert (states["9"].phase, states["9"].live) == ("unknown", False)
    commands(squeue="exit 0", sacct="echo 'accounting storage is disabled' >&2; exit 1")
    assert registry.batch_system("slurm").states(["8"])["8"].phase == "unknown"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("allocation failure: No partition specified or system default partition", True),
        ("sbatch: error: Please name an account\nallocation failure: Unspecified error", True),
        # The same if only nodes are down.
        ("allocation failure: Requested node configuration is not available", False),
    ],
)
def test_which_refusals_need_no_packing(text, expected):
    assert registry.batch_system("slurm").submission.is_invalid(text) is expected


def test_what_doctor_is_told(commands):
    # Where a site hides partitions or nodes (PrivateData), sinfo fails.
    hidden = "echo 'slurm_load_partitions: Access/permission denied' >&2; exit 1"
    commands(sinfo=f"""[ "$1" = --version ] && echo 'slurm 22.05.8' || {{ {hidden}; }}""", squeue="true")
    assert registry.batch_system("slurm").describe() == "slurm 22.05.8"
    commands(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(BatchAwayError, match="squeue: Unable to contact slurm controller"):
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
    shown = "JobId=7 JobName=a\n   StdOut=/name\n   Restarts=2\n   StdOut=/home/a b/slurm-7.out\n   Power=\n"
    assert Slurm().parse_output(shown) == Path("/home/a b/slurm-7.out")
    assert [Slurm().parse_restarts(text) for text in ("2                   \n", "")] == [2, 0]
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
    config = configuration.merge({"mem": mem, "workers_per_node": 1})
    command = Slurm().submit_command(config, Path("s"), [], environ={})
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
