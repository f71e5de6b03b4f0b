"""Submissions that do not go as they should, with Slurm's commands as stand-ins."""

import gc
import logging
import os
import re
import signal
import threading

import pytest
from waiting import wait_until

from mpiboot.batch import attempt, registry, system
from mpiboot.batch.attempt import Attempt
from mpiboot.batch.slurm.records import SEPARATOR
from mpiboot.errors import BatchAwayError, BatchError, UsageError

COMMAND = ["sbatch", "--parsable", "--job-name=flights", "--exclusive", "--mem=0", "/none/job.sh"]
# sbatch makes the job 7: it writes the job's comment into a file, from which squeue reads it.
MAKES = """for word; do case $word in --comment=*) echo "${word#--comment=}" > "$0.comment";; esac; done
echo "$@" >> "$0.calls"
"""


def queue(state="PENDING", reason="None", name="flights", submitted="2030-01-01T00:00:00"):
    """Return squeue's lines: job 7, once sbatch has made it, with its comment."""
    fields = ("7", state, reason, submitted, "N/A", "N/A", "", "'\"$comment\"'", name)
    return f"""for comment in $(/bin/cat "${{0%squeue}}sbatch.comment" 2>/dev/null); do
        printf '%s\\n' '{SEPARATOR.join(fields)}'; done"""


@pytest.fixture
def slurm(commands, monkeypatch):
    monkeypatch.setattr(attempt, "SEARCH_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(system, "REASON_SETTLES_S", 0.0)
    commands()
    return registry.batch_system("slurm")


def calls(tmp_path, name="sbatch"):
    path = tmp_path / f"bin/{name}.calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    "failure",
    [
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'sbatch: error: a plugin failed' >&2; exit 1",
        "kill -9 $$",
        "exec sleep 60",
        "echo 'Thank you for using this cluster'",
        "true",
    ],
)
def test_a_job_that_was_submitted_all_the_same_is_used_and_named(
    slurm, commands, monkeypatch, tmp_path, caplog, failure
):
    monkeypatch.setattr(attempt, "SUBMIT_TIMEOUT_S", 0.5)
    commands(sbatch=MAKES + failure, squeue=queue(), sleep="exec /bin/sleep 60")
    assert slurm.submit(COMMAND, os.environ) == "7"
    [message] = caplog.messages
    assert message.startswith("sbatch") and message.endswith("; job 7 was submitted all the same")
    [call] = calls(tmp_path)
    assert re.fullmatch(r"--parsable --comment=mpiboot:[0-9a-f]{16} --job-name=flights .* /none/job.sh", call)


def test_a_refused_job_is_not_mistaken_for_another(slurm, commands, tmp_path):
    """Another submit of the same user has made job 7."""
    (tmp_path / "bin/sbatch.comment").write_text("mpiboot:0123456789abcdef\n")
    commands(sbatch="echo 'sbatch: error: Invalid account' >&2; exit 1", squeue=queue())
    with pytest.raises(BatchError) as error:
        slurm.submit(["sbatch", "--parsable", "--job-name=flights", "job.sh"], os.environ)
    assert str(error.value) == (
        "sbatch: error: Invalid account. Change the options that it names; see: mpiboot submit --help"
    )


def test_a_refused_job_that_slurm_remembers_as_failed_is_no_job(slurm, commands):
    commands(
        sbatch=MAKES + "echo 'sbatch: error: no such node' >&2; exit 1",
        squeue=queue("FAILED", "BadConstraints"),
    )
    with pytest.raises(BatchError, match="sbatch: error: no such node"):
        slurm.submit(COMMAND, os.environ)


@pytest.mark.parametrize(
    ("squeue", "expected"),
    [
        # It answers, and there is no job.
        ("true", "sbatch: error: Unable to contact slurm controller. See whether Slurm answers: squeue --me"),
        (
            "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1",
            "sbatch: error: Unable to contact slurm controller\n"
            "A job may have been submitted all the same\n"
            "See it, and end it: mpiboot list; mpiboot stop JOB",
        ),
    ],
)
def test_a_slurm_that_goes_away_meanwhile(slurm, commands, squeue, expected):
    commands(sbatch="echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1", squeue=squeue)
    with pytest.raises(BatchAwayError) as error:
        slurm.submit(COMMAND, os.environ)
    assert str(error.value) == expected


def test_with_a_comment_of_the_sites_own_the_jobs_that_may_be_it_are_named(slurm, commands, tmp_path):
    commands(
        sbatch=MAKES + "echo 'sbatch: error: Socket timed out' >&2; exit 1",
        squeue=queue() + "\n" + queue(name="other").replace("'7", "'8"),
    )
    own = [*COMMAND[:-1], "--comment=project", COMMAND[-1]]
    with pytest.raises(BatchAwayError, match="submitted all the same: perhaps 7\n"):
        slurm.submit(own, os.environ)
    assert calls(tmp_path) == [" ".join(own[1:])]


# subprocess.run does not wait for what it has killed after a Ctrl-C.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_an_interrupted_submission_leaves_no_job(slurm, commands, monkeypatch, tmp_path):
    commands(
        sbatch=MAKES + "exec sleep 60",
        squeue=queue(),
        sleep="exec /bin/sleep 60",
        scancel='echo "$@" > "$0.calls"',
    )

    undo, undone = Attempt._undo, threading.Event()

    def interrupt():
        wait_until(lambda: bool(calls(tmp_path)), "call of sbatch", timeout_s=10)
        # Python ignores an exception in a destructor, which the interpreter may run at any time.
        while not undone.wait(2):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setattr(Attempt, "_undo", lambda attempt: undone.set() or undo(attempt))
    thread = threading.Thread(target=interrupt)
    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt) as error:
            slurm.submit(COMMAND, os.environ)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(error.value) == "sbatch was interrupted; job 7, which it had submitted, is cancelled"
    assert calls(tmp_path, "scancel") == ["7"]
    del error
    gc.collect()


def test_a_job_that_could_never_start_is_refused_and_cancelled(slurm, commands, tmp_path):
    """Where Slurm does not look at its limits when it takes a job (EnforcePartLimits=NO)."""
    commands(
        sbatch=MAKES + "echo 7",
        squeue=queue(reason="PartitionTimeLimit"),
        scancel='echo "$@" >> "$0.calls"',
        scontrol="echo 'PartitionName=p Default=YES MaxTime=1:00:00'",
    )
    with pytest.raises(BatchError) as error:
        slurm.submit(["sbatch", "--parsable", "job.sh"], os.environ)
    assert str(error.value) == (
        "Slurm would never start this job: PartitionTimeLimit. Job 7 is cancelled\n"
        "The partitions here:\n  p: Default=YES MaxTime=1:00:00\n"
        "Change the options that it names; see: mpiboot submit --help"
    )
    assert calls(tmp_path, "scancel") == ["7"]


def test_a_job_that_could_not_be_cancelled_is_named_and_no_other_is_submitted(slurm, commands, tmp_path):
    commands(
        sbatch=MAKES + "echo 7",
        squeue=queue(reason="MaxMemPerLimit"),
        scancel="echo 'Unable to contact slurm controller' >&2; exit 1",
    )
    with pytest.raises(BatchError) as error:
        slurm.submit(COMMAND, os.environ)
    assert str(error.value) == (
        "Slurm would never start this job: MaxMemPerLimit. It waits as job 7, and could not be cancelled: "
        "scancel: Unable to contact slurm controller. End it: mpiboot stop 7"
    )
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize(
    ("sbatch", "squeue"),
    [
        (
            "case $* in *--mem=0*) echo 'sbatch: error: Memory required by task is not available' >&2; exit 1;; esac",
            "true",
        ),
        ("", queue().replace("None", "MaxMemPerLimit")),
    ],
)
def test_where_the_site_limits_memory_whole_nodes_are_taken_without_all_of_it(
    slurm, commands, tmp_path, sbatch, squeue
):
    """As where a partition has MaxMemPerNode."""
    forgets = '[ -e "${0%squeue}scancel.calls" ] && exit\n'
    commands(sbatch=f"{MAKES}{sbatch}\necho 7", squeue=forgets + squeue, scancel='echo "$@" >> "$0.calls"')
    assert slurm.submit(COMMAND, os.environ) == "7"
    assert [" --mem=0 " in call for call in calls(tmp_path)] == [True, False]
    slurm.check(COMMAND, os.environ)


def test_a_reason_that_passes_does_not_count(slurm, commands, tmp_path):
    later = queue().replace("for comment", '[ -e "$0.asked" ] && for comment')
    first = queue(reason="PartitionConfig").replace("for comment", '[ -e "$0.asked" ] || for comment')
    commands(sbatch=MAKES + "echo 7", squeue=f'{later}\n{first}\n: > "$0.asked"')
    assert slurm.submit(COMMAND, os.environ) == "7"
    assert calls(tmp_path, "scancel") == [] and len(calls(tmp_path)) == 1


def test_another_cluster_is_refused_and_this_one_by_its_name_is_not(slurm, commands, tmp_path):
    from mpiboot import config as configuration

    commands(scontrol="echo 'ClusterName = big'")
    config = configuration.merge({"nodes": 1})
    for environ in ({"SLURM_CLUSTERS": "big"}, {"SBATCH_CLUSTERS": "big"}, {}):
        assert slurm.submit_command(config, tmp_path / "job.sh", [], environ=environ)[0] == "sbatch"
    for environ in ({"SLURM_CLUSTERS": "other"}, {"SBATCH_CLUSTERS": "big,other"}, {"SLURM_CLUSTERS": "all"}):
        with pytest.raises(UsageError, match="mpiboot submits to this host's own cluster, big, and") as error:
            slurm.submit_command(config, tmp_path / "job.sh", [], environ=environ)
        assert error.value.exit_status == 2 and "\n" not in str(error.value)


def test_the_sites_wrapper_may_print_what_it_likes(slurm, commands):
    commands(sbatch="echo 'Welcome\n77 nodes are up'; echo '8;big'; echo 'Budget: 12'", squeue="true")
    assert slurm.submit(COMMAND, os.environ) == "8"


def test_ended_jobs_of_the_history(slurm, commands, caplog):
    caplog.set_level(logging.DEBUG)
    fields = ("7", "TIMEOUT", "None", "N/A", "N/A", "N/A", "n1", "", "a\nb")
    running = ("8", "RUNNING", *fields[2:])
    commands(
        sacct=f"""echo "$@" > "$0.calls"; printf '%s\\n' '{SEPARATOR.join(fields)}' '{SEPARATOR.join(running)}'"""
    )
    assert [(job.job_id, job.state, job.name) for job in slurm.ended(0.0)] == [("7", "TIMEOUT", "a?b")]
    commands(sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.ended(0.0) == []
