import shlex
from pathlib import Path

import dask.config
import pytest

from mpiboot import config as configuration
from mpiboot import jobs, show
from mpiboot.batch import SETUP_VARIABLE, JobState
from mpiboot.batch.slurm import SEPARATOR, Slurm, export_options, parse_sacct, parse_squeue
from mpiboot.errors import BatchError, UsageError
from mpiboot.rendezvous import Endpoint


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
    site("mpiboot:\n  partition: multiple\n  idle-timeout: 1 h\n  setup: module load x\n  nodes: 3\n")
    monkeypatch.setenv("DASK_MPIBOOT__NODES", "4")
    config = jobs.load_config({"partition": "other", "env": str(tmp_path)})
    assert (config.partition, config.idle_timeout, config.nodes) == ("other", 3600, 4)
    assert config.setup == ("module load x",)
    assert jobs.handed_on(config) == {SETUP_VARIABLE: "module load x"}
    assert "module" not in " ".join(configuration.boot_arguments(config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{partitoin: x}",
            r"the key 'partitoin' is unknown \(did you mean partition\?\); valid keys: batch_system, env",
        ),
        ("{insecure: true}", "the key 'insecure' belongs on the command line alone"),
        ("{nodes: many}", "--nodes: 'many' is not a count"),
        ("[nodes]", "what `mpiboot:` holds is not a mapping"),
    ],
)
def test_a_wrong_file_is_named(site, text, message):
    file = site(f"mpiboot: {text}\n")
    with pytest.raises(UsageError, match=rf"^{file}: {message}"):
        jobs.load_config({"env": "/e"})


def test_a_dry_run_hands_values_on_in_front_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs.environment, "check_environment", lambda prefix: None)
    monkeypatch.setattr(jobs, "choose", lambda name: Slurm())
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "a b"))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("MPIBOOT_REQUIRE_CLUSTER", raising=False)
    config = configuration.merge(
        {"env": "/e", "env_var": ["A=b 'c'", "PATH"], "no_stage": True}, command=["x", "y z"]
    )
    words = shlex.split(jobs.show_submission(config))
    assert words[:4] == ["A=b 'c'", "env", "-u", "SLURM_JOB_ID"]
    assert words[words.index("sbatch") + 1] == "--parsable"
    script = next(i for i, word in enumerate(words) if word.endswith("jobscripts/slurm.sh"))
    assert words[script + 1 :] == [
        *("--env", "/e", "--no-stage", "--env-var=A", "--env-var=PATH", "--home", str(tmp_path / "a b")),
        *("--", "x", "y z"),
    ]


def test_no_job_is_live(monkeypatch):
    monkeypatch.setattr(jobs, "live_jobs", list)
    with pytest.raises(
        BatchError, match=r"no job of mpiboot's is pending or running here\. Start one: mpiboot submit"
    ):
        jobs.find_job()
    with pytest.raises(BatchError, match="'flights' is neither a job id nor the name of a live job"):
        jobs.find_job("flights")


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
    live = [(jobs.Job(state.job_id, Batch()), state) for state in states]
    monkeypatch.setattr(jobs, "live_jobs", lambda: live)
    return live


def test_of_two_jobs_one_must_be_named(two):
    with pytest.raises(
        BatchError, match=r"several jobs are live; name one of them:\n  7  flights  RUNNING  node\[1-2\]\n  8"
    ):
        jobs.find_job()
    assert jobs.find_job("flights").job_id == "7"


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
            "threads_per_worker": 1,
            "memory_limit_bytes": 1,
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
