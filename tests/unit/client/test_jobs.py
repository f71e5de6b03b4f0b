import os
import shlex
import subprocess
import sys
from pathlib import Path

import dask.config
import pytest

from mpiboot import config as configuration
from mpiboot.batch import JobState
from mpiboot.batch.local.submission import Local
from mpiboot.batch.slurm.submission import SEPARATOR, Slurm, export_options, parse_sacct, parse_squeue
from mpiboot.client import find, polling, settings, show, submit
from mpiboot.client import job as job_module
from mpiboot.errors import BatchError, UsageError
from mpiboot.protocol.endpoint import Endpoint
from mpiboot.protocol.variables import SETUP_VARIABLE


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Write a configuration file of the user's, and read it."""
    folder = tmp_path / "dask"
    folder.mkdir()
    monkeypatch.setattr(dask.config, "paths", [str(folder)])

    def write(text):
        file = folder / "mpiboot.yaml"
        file.write_text(text)
        config = dask.config.collect(paths=[str(folder)], env={})
        monkeypatch.setattr(dask.config, "global_config", config)
        return file

    with dask.config.set({}):
        monkeypatch.setattr(dask.config, "config", {})
        monkeypatch.setattr(
            dask.config, "get", lambda key, default: dask.config.global_config.get(key, default)
        )
        yield write


def line(*words):
    return SEPARATOR.join(words) + "\n"


def test_squeue_is_read():
    output = line("7", "PENDING", "PartitionNodeLimit", "N/A", "N/A", "", "mpiboot", "a name") + line(
        "8",
        "RUNNING",
        "None",
        "2026-11-22T10:00:00",
        "2026-11-22T11:00:00",
        "node[1-2]",
        "mpiboot:x",
        "mpiboot",
    )
    pending, running = parse_squeue(
        output + line("9", "RUNNING", "None", "N/A", "N/A", "n", "(null)", "other"), "mpiboot"
    )
    assert pending == JobState("7", "a name", "PENDING", "PartitionNodeLimit", never=True)
    assert (running.job_id, running.state, running.reason, running.nodes) == ("8", "RUNNING", "", "node[1-2]")
    assert running.end - running.start == 3600
    assert (pending.live, running.live, running.never) == (True, True, False)


def test_sacct_is_read():
    found = parse_sacct(
        line("7", "mpiboot", "CANCELLED by 1000", "None", "Unknown", "Unknown", "None assigned")
    )
    assert found == {"7": JobState("7", "mpiboot", "CANCELLED", nodes="None assigned")}
    assert found["7"].live is False


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


def test_the_whole_command(monkeypatch):
    monkeypatch.delenv("SBATCH_EXPORT", raising=False)
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
        config, Path("/s/slurm.sh"), ["--interface", "ib0"], Path('/h/10% "q"/logs')
    )
    assert command == [
        *("sbatch", "--parsable", "--job-name=mpiboot", "--partition=p", "--nodes=2", "--ntasks-per-node=4"),
        *("--mem=8388608K", "--time=1:00:00", '--output=/h/10%% "q"/logs/slurm-%j.out', "--qos=x"),
        *("/s/slurm.sh", "--interface", "ib0"),
    ]


def test_site_settings_are_the_lowest_layer(site, monkeypatch, tmp_path):
    site(
        "mpiboot:\n  partition: multiple\n  idle-timeout: 1 h\n  setup: module load x\n  nodes: 3\n  mem: 64G\n"
    )
    monkeypatch.setenv("DASK_MPIBOOT__NODES", "4")
    config = settings.load_config({"partition": "other", "env": str(tmp_path)})
    assert (config.partition, config.idle_timeout, config.nodes, config.mem) == ("other", 3600, 4, 64 << 30)
    assert config.setup == ("module load x",)
    assert submit.handed_on(config) == {SETUP_VARIABLE: "module load x"}
    assert "module" not in " ".join(configuration.boot_arguments(config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{partitoin: x}",
            r"unknown option 'partitoin' \(did you mean partition\?\); valid: batch_system, env",
        ),
        ("{insecure: true}", "insecure cannot be set in a configuration file; type --insecure"),
        ("{nodes: many}", "--nodes: 'many' is not a count"),
        ("[nodes]", "what `mpiboot:` holds is not a mapping"),
    ],
)
def test_a_wrong_file_is_named(site, text, message):
    file = site(f"mpiboot: {text}\n")
    with pytest.raises(UsageError, match=rf"^{file}: {message}"):
        settings.load_config({"env": "/e"})


def test_a_dry_run_hands_values_on_in_front_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(submit.prefix_checks, "check_environment", lambda prefix: None)
    monkeypatch.setattr(submit, "choose", lambda name: Slurm())
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "a b"))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("MPIBOOT_REQUIRE_CLUSTER", raising=False)
    config = configuration.merge(
        {"env": "/e", "env_var": ["A=b 'c'", "PATH"], "no_stage": True}, command=["x", "y z"]
    )
    words = shlex.split(submit.show_submission(config))
    assert words[:4] == ["A=b 'c'", "env", "-u", "SLURM_JOB_ID"]
    assert words[words.index("sbatch") + 1] == "--parsable"
    script = next(i for i, word in enumerate(words) if word.endswith("jobscripts/slurm.sh"))
    assert words[script + 1 :] == [
        *("--env=/e", "--no-stage", "--env-var=A", "--env-var=PATH", f"--home={tmp_path / 'a b'}"),
        *("--", "x", "y z"),
    ]


def test_no_job_is_live(monkeypatch):
    monkeypatch.setattr(find, "live_jobs", list)
    with pytest.raises(
        BatchError, match=r"no job of mpiboot's is pending or running here\. Start one: mpiboot submit"
    ):
        find.find_job()
    with pytest.raises(BatchError, match="'flights' is neither a job id nor the name of a live job"):
        find.find_job("flights")


class Batch:
    name = "stand-in"

    def job_key(self, job_id):
        return f"stand-in-{job_id}"


@pytest.fixture
def two(monkeypatch, tmp_path):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    states = [
        JobState("7", "flights", "RUNNING", nodes="node[1-2]"),
        JobState(
            "8", "mpiboot", "PENDING", "Resources and much more that does not fit into a line of 80 columns"
        ),
    ]
    live = [(job_module.Job(state.job_id, Batch()), state) for state in states]
    monkeypatch.setattr(find, "live_jobs", lambda: live)
    return live


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands, alone on the PATH: NAME="lines of sh"."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "home"))
    (tmp_path / "bin").mkdir()

    def write(**scripts):
        for name, lines in {"sbatch": "", **scripts}.items():
            script = tmp_path / "bin" / name
            script.write_text(f"#!/bin/sh\n{lines}\n")
            script.chmod(0o755)

    return write


def test_slurm_without_its_configuration_leaves_local_jobs_alone(commands, monkeypatch, caplog):
    """As on a laptop that has Slurm's commands."""
    commands(squeue="echo 'fatal: Unable to process configuration file' >&2; exit 1")
    with pytest.raises(BatchError, match="squeue: fatal: Unable to process configuration file"):
        find.live_jobs()
    mine = JobState("host-1-2", "mpiboot", "RUNNING", nodes="host")
    monkeypatch.setattr(Local, "jobs", lambda self: [mine])
    assert find.find_job().job_id == "host-1-2"
    assert caplog.messages == [
        "squeue: fatal: Unable to process configuration file; only other jobs are known"
    ]
    caplog.clear()
    (find.configuration.home(find.os.environ) / "jobs/local-host-1-2").mkdir(parents=True)
    assert find.find_job("local-host-1-2").job_id == "host-1-2"
    assert caplog.messages == []  # Slurm was not asked


def test_slurmctld_that_restarts_is_asked_again(commands, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(polling, "poll_interval_s", lambda waited_s: 0.01)
    answer = line("7", "PENDING", "None", "N/A", "N/A", "", "mpiboot", "a").strip()
    commands(
        squeue=f"""[ -e {tmp_path}/asked ] && echo '{answer}' && exit
            > {tmp_path}/asked; echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1""",
        scontrol="echo 'ClusterName = c'",
    )
    assert find.find_job().job_id == "7"
    assert caplog.messages == [
        "squeue: slurm_load_jobs error: Unable to contact slurm controller; asking again for 20.0 s"
    ]


def test_what_changes_slurms_answers_is_not_passed_on(commands, monkeypatch):
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SQUEUE_PARTITION", "p")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")  # sbatch does not get it either
    commands(
        squeue='[ -z "$SLURM_TIME_FORMAT$SQUEUE_PARTITION$SLURM_CLUSTERS" ] || { echo changed >&2; exit 1; }'
    )
    assert Slurm().jobs() == []


def test_jobs_in_hidden_partitions_are_live(commands):
    """Without accounting, a job that squeue leaves out would count as ended."""
    answer = line("7", "RUNNING", "None", "N/A", "N/A", "n1", "mpiboot", "a").strip()
    commands(squeue=f"""for word; do [ "$word" = --all ] && echo '{answer}'; done; true""")
    assert [job.job_id for job in Slurm().jobs()] == ["7"]
    assert Slurm().states(["7"])["7"].live


def test_a_refusal_comes_with_the_partitions_limits_and_before_packing(commands, monkeypatch, tmp_path):
    commands(
        sbatch='[ "$1" = --test-only ] && echo "allocation failure: Node count specification invalid" >&2; exit 1',
        scontrol="echo 'PartitionName=p Default=YES MaxNodes=2 MaxTime=1:00:00 MinNodes=0 State=UP TotalNodes=9'",
    )
    for name in ("check_environment", "check_mpi"):
        monkeypatch.setattr(submit.prefix_checks, name, lambda prefix: None)
    monkeypatch.setattr("envpack.pack.packing.packed", lambda prefix: None)
    monkeypatch.setattr(submit, "pack", lambda *_: pytest.fail("it was packed"))
    with pytest.raises(BatchError) as error:
        submit.submit_config(configuration.merge({"env": str(tmp_path), "batch_system": "slurm"}))
    assert str(error.value) == (
        "sbatch: allocation failure: Node count specification invalid\n"
        "The partitions here:\n  p: Default=YES MaxNodes=2 TotalNodes=9 MaxTime=1:00:00"
    )


@pytest.mark.parametrize("argument", ["--array=1-3", "-a1", "-a", "--array"])
def test_an_array_is_refused(argument):
    with pytest.raises(UsageError, match="an array is many jobs"):
        Slurm().submit_command(configuration.merge({"batch_arg": [argument]}), Path("s"), [], Path("l"))


@pytest.mark.parametrize("name", ["home", "archive"])
def test_boots_own_options_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} cannot be set in a Python call; "):
        settings.load_config({name: "/x"})


def test_the_dashboard_of_an_ended_job_is_not_waited_for(two, monkeypatch):
    job = two[0][0]
    monkeypatch.setattr(job, "ask", lambda **_: JobState("7", "flights", "COMPLETED", "stopped"))
    with pytest.raises(BatchError, match=r"job 7 has ended: COMPLETED \(stopped\); its dashboard is gone"):
        show.endpoint_of(job)


def test_logs_hold_nothing_twice(two, tmp_path, monkeypatch):
    """Boot's log is in the job's output, and stands in for it where there is none."""
    job = two[0][0]
    job.directory.path.mkdir(parents=True, mode=0o700)
    for path in (job.directory.boot_log, job.directory.ranks_log, tmp_path / "out"):
        path.touch()
    monkeypatch.setattr(Batch, "output", lambda self, job_id: tmp_path / "out", raising=False)
    assert job.log_files() == [tmp_path / "out", job.directory.ranks_log]
    (tmp_path / "out").unlink()
    assert job.log_files() == [job.directory.boot_log, job.directory.ranks_log]


def test_of_two_jobs_one_must_be_named(two):
    with pytest.raises(
        BatchError, match=r"several jobs are live; name one of them:\n  7  flights  RUNNING  node\[1-2\]\n  8"
    ):
        find.find_job()
    assert find.find_job("flights").job_id == "7"


def test_a_table_fits_80_columns(two):
    lines = show.table(two).splitlines()
    assert lines[:2] == [
        "JOB  NAME     STATE    LEFT  NODES, OR WHY IT WAITS",
        "7    flights  RUNNING        node[1-2]",
    ]
    assert len(lines[2]) == 80 and lines[2].endswith("…")


def test_links_and_the_ssh_line(two, monkeypatch):
    job = two[0][0]
    endpoint = Endpoint(
        **{
            "job_id": "7",
            "job_key": "k",
            "nonce": "n",
            "restart_count": 0,
            "scheduler_id": "s",
            "n_workers": 2,
        },
        **{
            "n_threads": 1,
            "memory_bytes": 1,
            "nodes": ["n1"],
            "interface": "ib0",
            "prefix": "/p",
        },
        **{"source_prefix": "/p", "end_time": None, "published": 1.0},
        address="tls://10.0.0.1:1",
        dashboard="http://10.0.0.1:8787/status",
    )
    tls = job.directory.path / "tls"
    tls.mkdir(parents=True, mode=0o700)
    (tls / "token").touch(mode=0o600)
    (tls / "token").write_text("a secret of 16 or more")
    monkeypatch.setattr(show.getpass, "getuser", lambda: "me")
    assert show.link(job, endpoint, with_token=False) == "http://10.0.0.1:8787/status"
    assert (
        show.link(job, endpoint, with_token=True, host="localhost")
        == "http://localhost:8787/status?token=a+secret+of+16+or+more"
    )
    assert show.tunnel(endpoint, "gate.example.org") == "ssh -N -L 8787:10.0.0.1:8787 me@gate.example.org"
    assert show.tunnel(endpoint, "you@gate") == "ssh -N -L 8787:10.0.0.1:8787 you@gate"


def test_secrets_of_ended_jobs_go_and_those_of_live_ones_stay(monkeypatch, tmp_path):
    class Known(Batch):
        def job_id(self, key):
            return key.removeprefix("stand-in-") if key.startswith("stand-in-") else None

        def jobs(self):
            return [JobState("1", "", "RUNNING")]

        def states(self, job_ids):
            assert sorted(job_ids) == ["2", "3", "4", "5"]
            words = {"2": "PENDING", "3": "NODE_FAIL"}  # the second is requeued, the last two forgotten
            return {job_id: JobState(job_id, "", words.get(job_id, "UNKNOWN")) for job_id in job_ids}

    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    monkeypatch.setattr(find, "batch_systems", lambda: {"stand-in": Known()})
    tmp_path.joinpath("jobs").mkdir(mode=0o700)
    for key in ("stand-in-1", "stand-in-2", "stand-in-3", "stand-in-4", "stand-in-5", "elsewhere-6"):
        directory = find.JobDirectory(tmp_path / "jobs" / key)
        (directory.path / "tls").mkdir(mode=0o700, parents=True)
        directory.path.chmod(0o700)
        directory.endpoint.touch(mode=0o600)
        directory.events.touch(mode=0o600)
        if key == "stand-in-4":
            os.utime(directory.events, (1, 1))
    find.live_jobs()
    left = {
        path.name
        for path in tmp_path.glob("jobs/*")
        if (path / "tls").exists() or (path / "endpoint.json").exists()
    }
    assert left == {"stand-in-1", "stand-in-2", "stand-in-5", "elsewhere-6"}
    assert len(list(tmp_path.glob("jobs/*/events.jsonl"))) == 6


@pytest.mark.parametrize(
    ("state", "restarting"), [("REQUEUED", True), ("SUSPENDED", False), ("RUNNING", False)]
)
def test_a_suspended_job_keeps_its_client(state, restarting):
    assert JobState("1", "", state).restarting == restarting


@pytest.mark.parametrize(
    ("key", "job_id"),
    [
        ("local-login-12-345", "login-12-345"),
        ("local-login-2-12-345", None),  # of the host login-2, which may share this home
        ("slurm-login-12-345", None),
        ("local-login", None),
    ],
)
def test_only_this_hosts_local_jobs_can_be_asked(key, job_id, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "login")
    assert Local().job_id(key) == job_id


def test_what_a_job_has_lost_is_said_once():
    exit = {
        "time": 0.0,
        "event": "worker-exit",
        "host": "n1",
        "rank": 3,
        "address": "a",
        "how": "for its memory",
    }
    lost = {"time": 1.0, "event": "lost-worker", "host": "n1", "rank": 3, "address": "a"}
    node = {"time": 2.0, "event": "lost-node", "host": "n2"}
    lines = show.faults([exit, lost, {**lost, "time": 20.0}, {"time": 2.0, "event": "worker"}, node])
    assert [line[9:] for line in lines] == [
        "n1 rank 3: the worker ended for its memory",
        "n1 rank 3: the worker is lost",
        "n2: no worker is left on this node",
    ]
    assert show.faults([node] * 7)[0] == "the last 5 of 7 faults:"


def test_more_workers_than_there_will_be_cannot_be_the_least():
    with pytest.raises(UsageError, match="--min-workers 9: the job has 8 workers at most"):
        settings.load_config({"nodes": 2, "workers_per_node": 4, "min_workers": 9})
    settings.load_config({"nodes": 2, "workers_per_node": 4, "min_workers": 8})


def test_a_malformed_settings_file_is_told_in_a_line(tmp_path):
    (tmp_path / "mpiboot.yaml").write_text("mpiboot:\n  nodes: 2\n interface: ib0\n")
    done = subprocess.run(
        [sys.executable, "-m", "mpiboot", "submit", "--dry-run"],
        env={**os.environ, "DASK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{tmp_path}/mpiboot.yaml' is malformed" in done.stderr and "line 3" in done.stderr
