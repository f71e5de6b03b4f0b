"""What people do with a cluster on a real Slurm: from the shell, in batch, from a notebook."""

import json
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

REPO = Path(__file__).resolve().parents[2]
SMALL = (
    "--no-stage",
    "--nodes",
    "2",
    "--workers-per-node",
    "1",
    "--cpus-per-worker",
    "1",
    "--interface",
    "ib0",
)
HOSTILE_HOME = '/home/alice/it\'s a "home" 100%'


def runs_in_batch(user, *command, options=()):
    """Return the exit status of `submit --wait`, the job's id and its output."""
    done = user.types("mpiboot", "submit", *SMALL, "--wait", *options, "--", *command, check=False)
    job_id = done.stdout.strip()
    return done.returncode, job_id, user.types("cat", f"slurm-{job_id}.out").stdout


def test_from_the_shell(alice):
    started = alice.types("mpiboot", "submit", *SMALL, "--job-name", "flights", "--wait")
    job_id = started.stdout.strip()
    job = rf"job {job_id} is ready: 2 workers, 2 cores, 2 node\(s\)\n  nodes      node1, node2, over ib0\n"
    expected = (
        rf'{job}  connect    client = mpiboot\.connect\("{job_id}"\)\n'
        r"  dashboard  http://10\.78\.0\.1:(?P<port>\d+)/status\n"
        r"  from home  ssh -N -L (?P=port):10\.78\.0\.1:(?P=port) alice@login\n"
        r"             then http://localhost:(?P=port)/status\n"
        rf"             the link with its token: mpiboot dashboard {job_id}\n"
        rf"  ends       .* in 2\d min.*\n  stop       mpiboot stop {job_id}\n$"
    )
    assert re.search(expected, started.stderr), started.stderr
    assert [line for line in started.stderr.splitlines() if len(line) > 80] == []

    listed = alice.types("mpiboot", "list").stdout.splitlines()
    assert re.fullmatch(rf"{job_id} +flights +RUNNING +2\d min \d+ s +node\[1-2\]", listed[1])
    [row] = json.loads(alice.types("mpiboot", "list", "--json").stdout)
    assert (row["job_id"], row["state"], row["nodes"]) == (job_id, "RUNNING", "node[1-2]")

    shown = alice.types("mpiboot", "status").stdout
    assert re.match(rf"job {job_id}: RUNNING\n2 of 2 workers on node\[1-2\], over ib0\nends ", shown)
    assert [line.split()[0] for line in shown.splitlines()[4:8]] == ["stage", "launch", "workers", "ready"]

    link = alice.types("mpiboot", "dashboard").stdout.strip()
    reached = alice.types("curl", "-sL", "-c", "/dev/null", "-o", "/dev/null", "-w", "%{http_code}", link)
    assert reached.stdout == "200"

    code = "import mpiboot; print(mpiboot.connect(JOB).submit(sum, [1, 2]).result())"
    for job in (repr(job_id), "'flights'", "None"):
        assert alice.types("python", "-c", code.replace("JOB", job)).stdout == "3\n"

    follow = alice.begins("mpiboot", "logs", job_id, "-f", stdout=subprocess.PIPE)
    stopped = alice.types("mpiboot", "stop", job_id)
    assert f"job {job_id}: COMPLETED (stopped)" in stopped.stderr
    assert alice.types("squeue", "--noheader", "--me").stdout == ""
    followed, _ = follow.communicate(timeout=30)
    assert "closed: stopped (status 0)" in followed
    assert followed.count("ready: 2 workers") == 1
    assert f"job {job_id}: COMPLETED (stopped)" in alice.types("mpiboot", "status", job_id).stdout
    gone = alice.types("mpiboot", "dashboard", job_id, check=False)
    assert (gone.returncode, gone.stdout) == (1, "") and "its dashboard is gone" in gone.stderr


def test_several_jobs_and_those_that_have_ended(alice):
    """Ended jobs are listed until `gc` removes what they have left; a job that waits keeps everything."""
    status, ended, _ = runs_in_batch(alice, "true")
    assert status == 0
    *stopped, held = (
        alice.types("mpiboot", "submit", *SMALL, "--batch-arg=--hold").stdout.strip() for _ in range(3)
    )
    try:
        said = alice.types("mpiboot", "stop", *stopped).stderr.splitlines()
        assert [line.partition(" (")[0] for line in said] == [
            f"job {job_id}: CANCELLED" for job_id in stopped
        ]

        rows = [line.split() for line in alice.types("mpiboot", "list", "--all").stdout.splitlines()]
        states = {row[0]: row[2] for row in rows}
        assert [states[job_id] for job_id in (ended, *stopped, held)] == [
            *("COMPLETED", "CANCELLED", "CANCELLED", "PENDING"),
        ]
        assert "command ended with status 0" in " ".join(next(row for row in rows if row[0] == ended))

        tails = alice.types("mpiboot", "logs", ended, "--tail", "1").stdout
        assert re.match(
            rf"==> \S+/slurm-{ended}.out <==\n\S+ closed: command ended .*\n\n==> \S+/ranks.log <==\n", tails
        )

        alice.writes(f".mpiboot/logs/slurm-{held}.out", "its clock may be wrong")
        removed = alice.types("mpiboot", "gc").stdout
        assert re.search(rf"/\.mpiboot/jobs/slurm-\S+-{ended} \(job {ended}, ended ", removed)
        assert f"-{held}" not in removed
        assert [path.name for path in (alice.home / ".mpiboot/logs").glob(f"*-{held}.out")]
        rows = [line.split() for line in alice.types("mpiboot", "list", "--all").stdout.splitlines()]
        # What another test's killed job has left stays until it has been quiet for a while.
        assert [row[0] for row in rows if row[0] in (ended, *stopped, held)] == [held]
        assert alice.types("cat", f"slurm-{ended}.out").stdout
    finally:
        alice.types("mpiboot", "stop", held)


SCRIPT = """
import os, sys
from distributed import Client

if __name__ == "__main__":
    with Client() as client:
        seen = client.run(os.getenv, "SECRET")
        paths = client.run(lambda: __import__("sys").path).values()
        print("on the path:", {"/home/alice/mine" in path for path in paths})
        print(client.submit(sum, [1, 2]).result(), sorted(seen.values()), os.getenv("SECRET"), sys.argv[1:])
        print(os.environ["DASK_SCHEDULER_ADDRESS"] == client.scheduler.address, os.environ["MPIBOOT_SCHEDULER_FILE"])
    sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "export", [(), ("--batch-arg=--export=NONE",)], ids=["environment", "no-environment"]
)
def test_batch(alice, export):
    """An unchanged Dask script; its status becomes the job's; secrets travel in the environment alone."""
    script = alice.writes("a script.py", SCRIPT)
    options = (*export, "--env-var", "SECRET=it's; $(a) secret", "--env-var", "PYTHONPATH=/home/alice/mine")
    status, job_id, output = runs_in_batch(alice, "python", script, "7", "a b", options=options)
    assert (status, output.count("it's; $(a) secret")) == (7, 3), output
    assert "3 [\"it's; $(a) secret\", \"it's; $(a) secret\"] it's; $(a) secret ['7', 'a b']" in output
    assert "on the path: {True}" in output
    assert re.search(r"True /home/alice/\.mpiboot/jobs/.*/scheduler\.json", output)
    shown = alice.types("scontrol", "show", "job", job_id).stdout
    assert "ExitCode=7:0" in shown and "secret" not in shown


def test_the_line_of_a_dry_run_does_the_same(alice):
    line = alice.types(
        "mpiboot", "submit", *SMALL, "--dry-run", "--env-var", "A=b 'c'", "--", "printenv", "A"
    ).stdout
    job_id = alice.types("sh", "-c", line).stdout.strip()
    code = f"from mpiboot.client.find import find_job; print(find_job({job_id!r}).wait(90).state)"
    assert alice.types("python", "-c", code).stdout == "COMPLETED\n"
    assert "\nb 'c'\n" in alice.types("cat", f"slurm-{job_id}.out").stdout


def test_site_settings_and_a_home_with_quotes(alice):
    config = alice.writes(
        ".config/dask/mpiboot.yaml",
        "mpiboot:\n  partition: multiple\n  interface: ib0\n  ssh-host: me@login.example.org\n"
        '  setup:\n    - export FROM_SETUP="it\'s set"\n',
    )
    try:
        options = ("--no-stage", "--nodes", "2", "--workers-per-node", "1", "--cpus-per-worker", "1")
        variables = {"MPIBOOT_HOME": HOSTILE_HOME}
        job_id = alice.types("mpiboot", "submit", *options, "--wait", **variables).stdout.strip()
        code = "import mpiboot, os; print(set(mpiboot.connect().run(os.getenv, 'FROM_SETUP').values()))"
        assert alice.types("python", "-c", code, **variables).stdout == '{"it\'s set"}\n'
        said = alice.types("mpiboot", "dashboard", job_id, **variables).stderr
        assert re.search(r"ssh -N -L (\d+):10\.78\.0\.1:\1 me@login\.example\.org", said)
        logs = alice.types("mpiboot", "logs", job_id, **variables).stdout
        assert f"==> {HOSTILE_HOME}/logs/slurm-{job_id}.out <==" in logs
        alice.types("mpiboot", "stop", job_id, **variables)

        alice.writes(config, "mpiboot:\n  partitoin: multiple\n")
        done = alice.types("mpiboot", "submit", check=False)
        assert done.returncode == 2
        expected = f"/home/alice/{config}: unknown option 'partitoin' (did you mean partition?). Use one of: "
        assert expected + "batch_system, env, " in done.stderr
    finally:
        alice.types("rm", config)


SEEN = """
import json, os, sys
from pathlib import Path

asked = json.loads((Path(os.environ["MPIBOOT_SCHEDULER_FILE"]).parent / "job.json").read_text())["asked"]
print(json.dumps({"argv": sys.argv[1:], "A": os.environ["A"], "asked": asked}))
"""
HOSTILE = ["a b", "it's", '"', "a\nb", "", "--", "-x", "--env", "$HOME", "100%j", "é🐍", "\\", "*", "~"]


def test_options_and_arguments_reach_the_job_unchanged(alice):
    """Typed with sbatch's short forms, and in a file; through sbatch, its script and boot."""
    config = alice.writes(
        ".config/dask/mpiboot.yaml",
        "mpiboot:\n  idle-timeout: 14d\n  warn-before: 0.5\n  partition: multiple\n  env: ~/env\n  time: '0:20:00'\n",
    )
    script = alice.writes("seen.py", SEEN)
    try:
        options = ("--no-stage", "-N", "2", "-J", "it's 'a' 100%", "--workers-per-node", "1", "--mem", "0")
        ways = ("--interface", "ib0", "--env-var", "A=b\n'c' $D", "--wait")
        job_id = alice.types("mpiboot", "submit", *options, *ways, "python", script, *HOSTILE).stdout.strip()
    finally:
        alice.types("rm", config)
    [line] = [
        each for each in alice.types("cat", f"slurm-{job_id}.out").stdout.splitlines() if each[:1] == "{"
    ]
    seen = json.loads(line)
    asked = {
        name: seen["asked"][name] for name in ("idle_timeout", "warn_before", "env", "interface", "command")
    }
    assert (seen["argv"], seen["A"]) == (HOSTILE, "b\n'c' $D")
    assert asked == {
        **{"idle_timeout": 1209600.0, "warn_before": 0.5, "env": "/home/alice/env", "interface": "ib0"},
        "command": ["python", script, *HOSTILE],
    }
    shown = alice.types("scontrol", "show", "job", job_id).stdout
    assert re.search(r"Partition=multiple ", shown) and "TimeLimit=00:20:00" in shown and "it's 'a'" in shown


def test_from_other_pythons_than_the_environments(alice):
    """Submitted, and connected to, from Debian's Python; as if with another toolz; as if from another minor version."""
    [site] = alice.home.glob("env/lib/python3.*/site-packages")
    packages = f"/home/alice/{site.relative_to(alice.home)}"
    alice.types("/usr/bin/python3", "-m", "venv", "--without-pip", "login")
    [login] = alice.home.glob("login/lib/python3.*/site-packages")
    alice.writes(str(login.relative_to(alice.home) / "env.pth"), packages)
    options = [*SMALL[1:], "--env", "/home/alice/env"]
    job_id = alice.types("login/bin/python", "-m", "mpiboot", "submit", *options).stdout.strip()

    code = "import mpiboot, sys; print(*set(mpiboot.connect().run(lambda: sys.prefix).values()))"
    seen = alice.types("login/bin/python", "-c", code)
    assert re.match(rf"/tmp/mpiboot-{alice.uid}/env-", seen.stdout)
    here, theirs = (
        alice.types(python, "-c", "import platform; print(platform.python_version())").stdout.strip()
        for python in ("/usr/bin/python3", "env/bin/python")
    )
    named = re.search(r"\| python +\| (\S+)\.final\.0 +\| (\S+)\.final\.0 ", seen.stderr)
    assert (here == theirs and named is None) or (named and named.groups() == (here, theirs)), seen.stderr

    alice.writes(
        "other/toolz-0.0.7.dist-info/METADATA", "Metadata-Version: 2.1\nName: toolz\nVersion: 0.0.7\n"
    )
    said = alice.types("mpiboot", "connect", PYTHONPATH="/home/alice/other").stderr
    assert re.search(r"\| toolz +\| 0\.0\.7 +\| (\d\S+) +\| \1 ", said), said

    # That version is made up, and so is this Python's: no other one is here with all that a client needs.
    code = (
        "import mpiboot, types, mpiboot.client.verify as c;"
        " c.sys = types.SimpleNamespace(version_info=(3, 9), executable='/p'); "
    )
    refused = alice.types("python", "-c", f"{code} mpiboot.connect()", check=False)
    minor = theirs.rpartition(".")[0]
    expected = f"the cluster runs Python {minor} and this is 3.9 (/p): neither can read the other's pickles."
    assert f"{expected} Use the cluster's: /home/alice/env/bin/python" in refused.stderr
    alice.types("mpiboot", "stop", job_id)


def test_doctor_examines_the_nodes(alice):
    shown = alice.types("mpiboot", "doctor", "--interface", "ib0", "--job-test").stdout
    assert re.search(r"^ok    batch system: slurm.* 22\.", shown, re.M)
    assert re.search(r"^ok    mpirun: .*/env/bin/mpirun \(openmpi\)", shown, re.M)
    for node in ("node1", "node2"):
        assert re.search(rf"^ok    {node}: interfaces: .*ib0 10\.78\.0\.", shown, re.M)
    assert "FAIL" not in shown


def test_the_notebook(alice):
    alice.writes("tour.ipynb", (REPO / "mpiboot/examples/notebooks/tour.ipynb").read_text())
    code = """
import nbclient, nbformat
notebook = nbformat.read("tour.ipynb", 4)
nbclient.NotebookClient(notebook, timeout=150).execute()
nbformat.write(notebook, "done.ipynb")
"""
    alice.types("python", "-c", code, timeout_s=200, TOUR_NO_STAGE="1")
    done = json.loads(alice.types("cat", "done.ipynb").stdout)
    outputs = [json.dumps(cell["outputs"]) for cell in done["cells"] if cell["cell_type"] == "code"]
    assert "is ready: 2 workers" in outputs[1] and "MPICluster" in outputs[1]
    assert "one job's size is fixed" in outputs[8]
    assert "COMPLETED" in outputs[-1]
    assert "token=" not in json.dumps(done)
