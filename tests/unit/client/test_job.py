import pytest
from standin import RUNNING

from mpiboot.batch.job_state import JobState
from mpiboot.client import job as job_module
from mpiboot.client import job_states, polling
from mpiboot.errors import BatchAwayError
from mpiboot.protocol.events import EventLog


def test_logs_hold_nothing_twice(two, tmp_path, monkeypatch):
    """Boot's log is in the job's output, and stands in for it where there is none."""
    job = two[0][0]
    job.directory.path.mkdir(parents=True, mode=0o700)
    for path in (job.directory.boot_log, job.directory.ranks_log, tmp_path / "out"):
        path.touch()
    monkeypatch.setattr(type(job.batch), "output", lambda self, job_id: tmp_path / "out", raising=False)
    assert job.log_files() == [tmp_path / "out", job.directory.ranks_log]
    (tmp_path / "out").unlink()
    assert job.log_files() == [job.directory.boot_log, job.directory.ranks_log]


def test_a_forgotten_jobs_output_is_where_boot_has_found_it(job, tmp_path):
    (tmp_path / "mpiboot-7.out").touch()
    log = EventLog(job.directory.events)
    log.phase("stage", output=str(tmp_path / "mpiboot-7.out"))
    log.phase("launch")
    log.close()
    assert job.log_files()[0] == tmp_path / "mpiboot-7.out"


def test_the_end_of_each_log_is_shown_below_its_name(job, monkeypatch):
    boot, ranks = job.directory.boot_log, job.directory.ranks_log
    boot.write_text("one\ntwo\nthree\n")
    ranks.write_text("four\n")
    assert job.logs() == f"==> {boot} <==\none\ntwo\nthree\n\n==> {ranks} <==\nfour\n"
    assert job.logs(tail=1) == f"==> {boot} <==\nthree\n\n==> {ranks} <==\nfour\n"
    job.batch.state = JobState("7", "mpiboot", "ended", "COMPLETED")
    assert list(job.follow(tail=2)) == [f"==> {boot} <==\ntwo\nthree\n", f"==> {ranks} <==\nfour\n"]
    monkeypatch.setattr(job_module, "SHOWN_BYTES", 10)
    assert job.logs() == (
        f"==> {boot} <==\n[8 B are left out; all of it: {boot}]\nthree\n\n==> {ranks} <==\nfour\n"
    )


def test_a_job_outlives_a_restart_of_the_batch_system(job, batch, monkeypatch, caplog):
    away = BatchAwayError("squeue: slurmctld is away", "See: sinfo")
    ended = JobState("7", "mpiboot", "ended", "COMPLETED")
    for module in (polling, job_module):
        monkeypatch.setattr(module, "poll_interval_s", lambda waited_s: 0.01)
    job.directory.boot_log.write_text("a line\n")
    for use in (job.wait, job.stop, lambda: "".join(job.follow())):
        monkeypatch.setattr(job_states, "_caches", {})
        batch.questions.clear()
        batch.state = lambda n: ended if n > 3 else (RUNNING if n == 1 else away)
        use()
    assert [message.partition(" for ")[0] for message in caplog.messages] == [
        "squeue: slurmctld is away; asking again"
    ] * 3
    monkeypatch.setattr(job_states, "_caches", {})
    batch.state = away
    with pytest.raises(BatchAwayError):
        job.wait(timeout_s=0.05)


KILLED = "boot recorded no reason: it was killed, or its node was lost"


@pytest.mark.parametrize(
    ("said", "events", "expected"),
    [
        (
            ("ended", "NODE_FAIL", ""),
            ["phase"],
            ("ended", "NODE_FAIL", KILLED),
        ),
        (("ended", "FAILED", "NonZeroExitCode"), [], ("ended", "FAILED", "NonZeroExitCode")),
        (("ended", "FAILED", "NonZeroExitCode"), ["closed"], ("ended", "FAILED", "mpirun ended")),
        (("unknown", "UNKNOWN", ""), ["closed"], ("ended", "EXIT 1", "mpirun ended")),
        (("unknown", "UNKNOWN", ""), ["phase"], ("unknown", "UNKNOWN", "ended, reason unknown")),
        (("running", "RUNNING", ""), ["closed"], ("running", "RUNNING", "")),
    ],
    ids=["killed", "before-boot", "failed", "forgotten", "forgotten-and-killed", "closing"],
)
def test_why_a_job_ended(job, batch, said, events, expected):
    phase, state, reason = said
    batch.state = JobState("7", "mpiboot", phase, state, reason)
    log = EventLog(job.directory.events)
    for event in events:
        log.write(event, reason="mpirun ended:\nthe end of a log", exit_status=1)
    log.close()
    answer = job.ask()
    assert (answer.phase, answer.state, answer.reason) == expected
