import os
import re
import socket
import time
from dataclasses import replace

import pytest

from envpack.pack.store import lease, leases
from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.batch.local.submission import Local
from mpiboot.batch.slurm.records import SEPARATOR
from mpiboot.client import find, polling
from mpiboot.client.gc import gc
from mpiboot.client.past import past_jobs
from mpiboot.common.processes import host_identity
from mpiboot.errors import BatchError
from mpiboot.protocol.channel_messages import ChannelAddress
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.messages import to_json


def test_no_job_is_live(monkeypatch):
    monkeypatch.setattr(find, "live_jobs", lambda **_: [])
    with pytest.raises(BatchError, match=r"no mpiboot job is pending or running\. Start one: mpiboot submit"):
        find.find_job()
    with pytest.raises(BatchError, match="'flights' is neither a job id nor the name of a live job"):
        find.find_job("flights")


def test_of_two_jobs_one_must_be_named(two):
    with pytest.raises(
        BatchError, match=r"several jobs are live:\n  7  flights  RUNNING  node\[1-2\]\n  8"
    ) as error:
        find.find_job()
    assert error.value.remedy == "Give a job id, such as 7"
    assert find.find_job("flights").job_id == "7"


def test_doctors_job_is_not_meant_beside_another(two, monkeypatch):
    (job, state), (other, others) = two
    pair = [(job, replace(state, name="mpiboot-doctor")), (other, others)]
    monkeypatch.setattr(find, "live_jobs", lambda: pair)
    assert find.find_job().job_id == "8"
    monkeypatch.setattr(find, "live_jobs", lambda: pair[:1])
    assert find.find_job().job_id == "7"


def test_slurm_without_its_configuration_leaves_local_jobs_alone(commands, tmp_path, monkeypatch, caplog):
    """As on a laptop that has Slurm's commands."""
    commands(squeue="echo 'fatal: Unable to process configuration file' >&2; exit 1")
    with pytest.raises(BatchError, match="squeue: fatal: Unable to process configuration file"):
        find.live_jobs()
    mine = JobState("host-1-2", "mpiboot", "running", "RUNNING", nodes="host")
    monkeypatch.setattr(Local, "jobs", lambda self, known: [mine])
    assert find.find_job().job_id == "host-1-2"
    assert caplog.messages == [
        "squeue: fatal: Unable to process configuration file; only jobs of other batch systems are known"
    ]
    caplog.clear()
    (tmp_path / "home/jobs/local-host-1-2").mkdir(parents=True)
    assert find.find_job("local-host-1-2").job_id == "host-1-2"
    assert caplog.messages == []  # Slurm was not asked


def test_slurm_that_is_not_configured_here_counts_as_absent(commands, monkeypatch, caplog):
    """As where the package with its commands was installed: no query of it, and no word of it."""
    commands(
        scontrol="echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1",
        squeue="echo asked >&2; exit 1",
    )
    assert find.live_jobs() == [] and caplog.messages == []
    assert registry.choose("auto").name == "local"
    with pytest.raises(BatchError, match="neither a job id nor the name of a live job"):
        find.find_job("7")
    with pytest.raises(BatchError) as error:
        registry.choose("slurm")
    assert str(error.value) == (
        "--batch-system slurm: Slurm is not configured on this machine: "
        "scontrol: fatal: Could not establish a configuration source. "
        "Type this on a login node, or use --batch-system local"
    )


def test_slurm_that_is_away_is_not_absent(commands):
    commands(scontrol="echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    assert registry.choose("auto").name == "slurm"


@pytest.fixture
def slurm(commands, tmp_path):
    """Slurm with the job 7, whose comment the site has set."""
    answer = SEPARATOR.join(("7", "PENDING", "None", "N/A", "N/A", "N/A", "", "project", "mpiboot"))
    commands(
        squeue=f"echo '{answer}'", scontrol="echo 'ClusterName = big'", scancel='echo "$@" >> "$0.calls"'
    )
    return tmp_path / "home"


@pytest.mark.parametrize("where", ["submitted/slurm-big-7", "jobs/slurm-big-7/tls/ca.pem"])
def test_a_job_whose_comment_the_site_has_set_is_found(slurm, where):
    """A pending one by the record that submit left, a running one by its directory."""
    path = slurm / where
    path.parent.mkdir(parents=True)
    path.touch()
    assert [job.job_id for job, _ in find.live_jobs()] == ["7"]
    assert find.find_job().job_id == find.find_job("7").job_id == find.find_job("mpiboot").job_id == "7"


def test_another_job_of_the_user_is_not_found(slurm):
    assert find.live_jobs() == []


@pytest.mark.parametrize("where", ["submitted/slurm-other-7", "jobs/slurm-other-7/events.jsonl"])
def test_an_id_of_another_cluster_means_no_job_of_this_one(slurm, where):
    """Two clusters share a home, and each of them has a job 7."""
    path = slurm / where
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(BatchError) as error:
        find.find_job("7")
    assert str(error.value) == (
        "job 7 is not one of this host's cluster, but slurm-other-7. Type this on a login node of that cluster"
    )


def test_how_a_job_ended_that_never_began_is_known_when_slurm_has_forgotten_it(slurm, commands):
    (slurm / "submitted").mkdir(parents=True)
    (slurm / "submitted/slurm-big-7").touch()
    answer = SEPARATOR.join(
        ("7", "CANCELLED", "None", "N/A", "N/A", "2026-11-27T10:00:00", "", "", "flights")
    )
    commands(squeue=f"case $* in *--jobs*) echo '{answer}' ;; esac")
    assert find.live_jobs() == []
    assert list((slurm / "submitted").iterdir()) == []
    commands(squeue="true")
    state = find.find_job("7").ask()
    assert (state.phase, state.state, state.name) == ("ended", "CANCELLED", "flights")
    [(job, state)] = past_jobs()
    assert (job.job_id, state.state, state.name) == ("7", "CANCELLED", "flights")
    assert [removal.path for removal in gc()] == [slurm / "ended/slurm-big-7"]
    assert past_jobs() == []
    with pytest.raises(BatchError, match="there is no job 7 here"):
        find.find_job("7")


def test_a_slurm_that_does_not_answer_is_waited_for_once(commands, monkeypatch):
    """Its silence is the answer: the list of jobs is not asked for as long again."""
    monkeypatch.setattr(find, "FIRST_SILENCE_S", 0.0)
    commands(scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setattr(find, "live_jobs", lambda: pytest.fail("asked again"))
    with pytest.raises(BatchError, match="scontrol: Unable to contact"):
        find.find_job("7")


def test_the_clusters_name_is_asked_for_again_while_slurmctld_restarts(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(polling, "poll_interval_s", lambda waited_s: 0.01)
    answer = SEPARATOR.join(("7", "PENDING", "None", "N/A", "N/A", "N/A", "", "project", "mpiboot"))
    (tmp_path / "home/submitted").mkdir(parents=True)
    (tmp_path / "home/submitted/slurm-big-7").touch()
    commands(
        squeue=f"echo '{answer}'",
        scontrol="""[ -e "$0.2" ] && echo 'ClusterName = big' && exit
            [ -e "$0.1" ] && : > "$0.2"; : > "$0.1"; echo 'Unable to contact slurm controller' >&2; exit 1""",
    )
    assert [job.job_id for job, _ in find.live_jobs()] == ["7"]


def test_slurmctld_that_restarts_is_asked_again(commands, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(polling, "poll_interval_s", lambda waited_s: 0.01)
    answer = SEPARATOR.join(("7", "PENDING", "None", "N/A", "N/A", "N/A", "", "mpiboot", "a"))
    commands(
        squeue=f"""[ -e {tmp_path}/asked ] && echo '{answer}' && exit
            > {tmp_path}/asked; echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1""",
        scontrol="echo 'ClusterName = c'",
    )
    assert find.find_job().job_id == "7"
    [message] = caplog.messages
    assert re.fullmatch(
        r"squeue: slurm_load_jobs error: Unable to contact slurm controller; asking again for (20\.0|19\.\d) s",
        message,
    )


def test_what_ended_jobs_left_goes_and_what_live_ones_need_stays(monkeypatch, tmp_path):
    """Secrets in job directories; and leases of an archive, also of jobs that have no directory yet."""

    class Known:
        name = "stand-in"

        def job_key(self, job_id):
            return f"stand-in-{job_id}"

        def job_id_of_key(self, key):
            return key.removeprefix("stand-in-") if key.startswith("stand-in-") else None

        def jobs(self, known):
            assert sorted(known) == ["1", "2", "3", "4", "5", "7", "8", "9"]
            return [JobState("1", "", "running", "R")]

        def states(self, job_ids):
            assert sorted(job_ids) == ["2", "3", "4", "5", "7", "8", "9"]
            # 2 is requeued, 7 has not started, 8 was cancelled before it did; the others are forgotten.
            phases = {"2": "pending", "3": "ended", "7": "pending", "8": "ended"}
            return {job_id: JobState(job_id, "", phases.get(job_id, "unknown"), "X") for job_id in job_ids}

    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    monkeypatch.setattr(find, "available", lambda: {"stand-in": Known()})
    tmp_path.joinpath("jobs").mkdir(mode=0o700)
    for key in ("stand-in-1", "stand-in-2", "stand-in-3", "stand-in-4", "stand-in-5", "elsewhere-6"):
        directory = JobDirectory(tmp_path / "jobs" / key)
        (directory.path / "tls").mkdir(mode=0o700, parents=True)
        directory.path.chmod(0o700)
        directory.endpoint.touch(mode=0o600)
        directory.events.touch(mode=0o600)
        if key == "stand-in-4":
            os.utime(directory.events, (1, 1))
    archive = tmp_path / "packs/env-1/1.tar.zst"
    archive.parent.mkdir(parents=True)
    archive.touch()
    for number in (1, 2, 3, 4, 7, 8, 9):
        lease(archive, f"stand-in-{number}")
    os.utime(f"{archive}.lease-stand-in-9", (1, 1))
    find.live_jobs()
    left = {
        path.name
        for path in tmp_path.glob("jobs/*")
        if (path / "tls").exists() or (path / "endpoint.json").exists()
    }
    assert left == {"stand-in-1", "stand-in-2", "stand-in-5", "elsewhere-6"}
    assert len(list(tmp_path.glob("jobs/*/events.jsonl"))) == 6
    assert set(leases(tmp_path)) == {"stand-in-1", "stand-in-2", "stand-in-7"}
    assert archive.exists()


@pytest.mark.parametrize(
    ("identity", "age_s", "cleared"),
    [("another-container", 10.0, False), ("another-container", 300.0, True), (None, 10.0, True)],
    ids=["another container", "it ended", "killed here"],
)
def test_secrets_of_a_job_in_another_container_of_that_name_stay(
    monkeypatch, tmp_path, identity, age_s, cleared
):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    key = f"local-{socket.gethostname()}-999999999-1"  # no such process can be seen here
    directory = JobDirectory.create(tmp_path, key)
    directory.endpoint.touch(mode=0o600)
    address = ChannelAddress("1", [], 1, None, identity or host_identity(), 999999999, "1")
    directory.channel.write_bytes(to_json(address))
    at = time.time() - age_s
    os.utime(directory.heartbeat, (at, at))
    untrusted = JobDirectory.create(tmp_path, key.replace("-1", "-0"))  # is passed over
    untrusted.path.chmod(0o777)
    find.clear_ended(find.directories_to_clear(), Local())
    assert directory.endpoint.exists() is not cleared
