"""What workers and batch command find in their environment, on two nodes, from a shell without activation.

One job shows it all: the README's table of variables, conda's variables, the user's preloads, each node's own devices. It
submits another job, which outlives it.
"""

import json

import pytest
from disturb import slurm_settings
from user import User
from waiting import wait_until

pytestmark = pytest.mark.cluster

SUBMIT = ("--nodes", "2", "--workers-per-node", "1", "--cpus-per-worker", "1", "--interface", "ib0", "--wait")
# As a site's prolog does on each node.
PROLOG = """#!/bin/sh
echo export CUDA_VISIBLE_DEVICES=of-$SLURMD_NODENAME
echo export TMP=/tmp/of-$SLURMD_NODENAME
echo export HOSTNAME=$SLURMD_NODENAME
"""
COMMAND = """
import json, os, subprocess, time
from distributed import Client

def look():
    return dict(os.environ)

def preloads(dask_scheduler=None):
    import sys
    return sys.modules["mine"].SEEN

if __name__ == "__main__":
    nested = subprocess.run(
        ["sbatch", "--parsable", "--partition=single", "--nodelist=node2",
         "--output=nested.out", "--wrap", "echo started; while ! [ -e finish ]; do sleep 0.1; done; echo finished"],
        capture_output=True, text=True)
    deadline = time.monotonic() + 60
    while "started" not in (open("nested.out").read() if os.path.exists("nested.out") else ""):
        assert time.monotonic() < deadline, nested
        time.sleep(0.1)
    with Client() as client:
        client.wait_for_workers(2)
        print("seen:", json.dumps({
            "command": look(), "workers": list(client.run(look).values()),
            "preloads": [client.run_on_scheduler(preloads), *client.run(preloads).values()],
            "nested": nested.stdout.strip() or nested.stderr}))
"""
PRELOAD = "SEEN = []\ndef dask_setup(service):\n    SEEN.append(type(service).__name__)\n"
CONFIG = """
distributed:
  scheduler: {preload: [/home/alice/mine.py]}
  worker: {preload: /home/alice/mine.py}
"""
# Of each, its value when alice types submit, and what workers and command have; {prefix} is the staged one.
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": ("9", "of-{node}"),
    "TMP": ("/tmp/of-login", "/tmp/of-{node}"),
    "TMPDIR": ("/var/tmp", "/tmp/mpiboot-{uid}/.jobs/{key}"),
    "HOSTNAME": ("login", None),
    "SSH_AUTH_SOCK": ("/tmp/agent", None),
    "NOTIFY_SOCKET": ("/run/notify", None),
    "PMIX_MCA_psec": ("native", None),
    "OMPI_MCA_btl": ("self", None),
    "UCX_TLS": ("all", "all"),
    "DASK_SCHEDULER_ADDRESS": ("tls://other:1", "SCHEDULER"),
    "PYTHONHOME": (None, None),
    "PROJ_DATA": ("/home/alice/env/share/proj", "{prefix}/share/proj"),
    "CFLAGS": (
        "-O2 -I/home/alice/link/include -I/home/alice/env-2",
        "-O2 -I{prefix}/include -I/home/alice/env-2",
    ),
    "PATH": ("/home/alice/link/bin:/usr/bin:/bin", "{prefix}/bin:/usr/bin:/bin"),
    "XDG_CACHE_HOME": ("/home/alice/.cache", "/home/alice/.cache"),
    "SLURMD_NODENAME": (None, "{node}"),
    "SLURM_STEP_ID": (None, None),
    "SLURM_JOB_ID": ("99", "{job_id}"),
    "CONDA_PREFIX": (None, "{prefix}"),
    "CONDA_DEFAULT_ENV": (None, "{prefix}"),
    "CONDA_SHLVL": (None, "1"),
    "OF_STATE": (None, "{prefix}/share/state"),
    "OF_PACKAGE": (None, "package"),
    "OF_BOTH": ("of the shell", "state"),
    "MPIBOOT_FIXTURE_PREFIX": (None, "{prefix}"),
    "MPIBOOT_JOB_KEY": ("slurm-x-99", "{key}"),
    "MPIBOOT_DASK_SETTINGS": (None, None),
}


@pytest.fixture(scope="module")
def alice(alice):
    return User(alice.cluster, activated=False)


@pytest.fixture(scope="module")
def seen(alice):
    """Run the job; return what it has shown."""
    alice.writes(
        "env/conda-meta/state",
        '{"env_vars": {"OF_STATE": "/home/alice/env/share/state", "OF_BOTH": "state"}}',
    )
    alice.writes("env/etc/conda/env_vars.d/package.json", '{"OF_PACKAGE": "package", "OF_BOTH": "package"}')
    alice.writes("mine.py", PRELOAD)
    alice.writes(".config/dask/user.yaml", CONFIG)
    alice.writes("look.py", COMMAND)
    alice.writes("prolog", PROLOG)
    alice.types("sh", "-c", "chmod 755 prolog; ln -sfn env link; rm -f finish nested.out")
    given = {name: value for name, (value, _) in VARIABLES.items() if value is not None}
    try:
        with slurm_settings(alice.cluster, TaskProlog="/home/alice/prolog"):
            command = ("/home/alice/link/bin/mpiboot", "submit", *SUBMIT, "--", "python", "look.py")
            done = alice.types(*command, check=False, timeout_s=240, **given)
        job_id = done.stdout.strip()
        output = alice.types("cat", f"slurm-{job_id}.out").stdout
        assert done.returncode == 0, done.stderr + output
        [line] = [line for line in output.splitlines() if line.startswith("seen: ")]
        yield json.loads(line.removeprefix("seen: ")) | {"job_id": job_id}
    finally:
        alice.types(
            "sh", "-c", "rm -r env/conda-meta/state env/etc/conda/env_vars.d .config/dask/user.yaml link"
        )


@pytest.mark.parametrize("process", ["command", "a worker", "another worker"])
def test_its_variables(alice, seen, process):
    [key] = [path.name for path in alice.jobs().iterdir() if path.name.endswith(f"-{seen['job_id']}")]
    workers = sorted(seen["workers"], key=lambda environ: environ["SLURMD_NODENAME"])
    number = ["command", "a worker", "another worker"].index(process)
    environ = [seen["command"], *workers][number]
    words = {
        "node": ["node1", "node1", "node2"][number],
        "prefix": environ["CONDA_PREFIX"],
        "uid": alice.uid,
        "key": key,
        "job_id": seen["job_id"],
    }
    expected = {name: value and value.format(**words) for name, (_, value) in VARIABLES.items()}
    expected["DASK_SCHEDULER_ADDRESS"] = seen["command"]["DASK_SCHEDULER_ADDRESS"] if not number else None
    assert environ["CONDA_PREFIX"].startswith(f"/tmp/mpiboot-{alice.uid}/env-")
    assert {name: environ.get(name) for name in expected} == expected
    assert [name for name, value in environ.items() if "/home/alice/env/" in value and name != "CFLAGS"] == []


def test_the_users_preloads_run(seen):
    assert seen["preloads"] == [["Scheduler"], ["Worker"], ["Worker"]]


def test_a_job_that_the_command_submits_outlives_it(alice, seen):
    assert seen["nested"].isdigit(), seen["nested"]
    alice.types("touch", "finish")
    wait_until(
        lambda: "finished" in alice.types("cat", "nested.out", check=False).stdout,
        "end of the nested job",
        60,
    )
