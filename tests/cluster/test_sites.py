"""The same six things on every site of the test bed, as its users type them: the main job, a batch job, stop, a job that
fails, `doctor` and `doctor --job-test`. Nothing that the user sees contains a traceback.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults import assert_nothing_remains
from fixtures import UP
from slurmcluster import Minicluster, why_no_cluster
from user import User
from waiting import wait_until

pytestmark = pytest.mark.cluster

NODES = (1, 2)


@dataclass(frozen=True)
class Case:
    """A site as its users see it.

    Attributes
    ----------
    site : str
        Name of its data file.
    options : tuple of str
        Options of submit that the site needs.
    variables : dict
        Environment variables that its users set.
    folder : str
        Where its users work: nodes can write there.
    hosts : tuple of str
        Host names of the two nodes.
    login_report, node_report : tuple of str
        Patterns of lines of `doctor`, and of lines that `doctor --job-test` adds: the site's peculiarity.
    wrong : tuple of (tuple of str, dict, str)
        Options and variables that do not work here, and a pattern of what `doctor --job-test` says of them.
    failing : tuple of (dict, str)
        Variables with which a job fails here, and a pattern of what `submit --wait` says of it.
    forgets : bool
        Whether slurmctld soon forgets an ended job, so that only slurmdbd knows it.
    portal : str
        The origin under which a portal shows the dashboard of the main job, which has port 40050 then.
    """

    site: str
    options: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = "/home/alice"
    hosts: tuple[str, ...] = ("node1", "node2")
    login_report: tuple[str, ...] = ()
    node_report: tuple[str, ...] = ()
    wrong: tuple[tuple[tuple[str, ...], dict[str, str], str], ...] = ()
    failing: tuple[tuple[dict[str, str], str], ...] = ()
    forgets: bool = False
    portal: str = ""


CONFINED = ("node1: CPUs: 1 of 2 usable",) if Path("/sys/fs/cgroup/memory/cgroup.procs").exists() else ()
CASES = (
    Case(
        "plain",
        login_report=(r"nodes: 2 of 8 CPUs, \d+ MB$", "settings: ended jobs are forgotten after 300 sec$"),
        node_report=(r"node2: ports: 10\.7\d\.0\.1:\d+, .* is reached$", "route: .* over eth0, ib0$"),
    ),
    Case(
        "fat",
        options=("--mem", "3G"),
        hosts=("cn1.hpc.example.org", "cn2.hpc.example.org"),
        login_report=(
            r"nodes: 1 of 8 CPUs \(4 cores of 2 threads\), \d+ MB, gpu:2; "
            r"1 of 4 CPUs \(2 cores of 2 threads\), \d+ MB, gpu:2$",
        ),
        node_report=(r"cn2\.hpc\.example\.org: interfaces: .* eth12 10\.90\.0\.2$",),
    ),
    Case(
        "strict",
        variables={"MPIBOOT_HOME": "/mnt/alice/mpiboot"},
        folder="/mnt/alice",
        login_report=("settings: each job has its own /tmp, so none uses another's staged copy; ",),
        node_report=(
            r"node1: home: /home/alice, \S+, read-only: output and MPIBOOT_HOME must lie elsewhere$",
            "node2: limits: none of CPU time, memory and file size$",
            *CONFINED,
        ),
        wrong=(
            (
                *((), {"MPIBOOT_HOME": "/home/alice/.mpiboot"}),
                r"^FAIL  job: \d+ ended: .*; it could not write /home/alice/\.mpiboot/logs\n"
                r" +remedy: export MPIBOOT_HOME=FOLDER, ",
            ),
        ),
        failing=(
            (
                {"MPIBOOT_HOME": "/home/alice/.mpiboot"},
                r"It left no log\. Perhaps the node could not write /home/alice/\.mpiboot/logs/slurm-\d+\.out\n"
                r"Find out: mpiboot doctor --job-test; if so, export MPIBOOT_HOME=FOLDER, ",
            ),
        ),
    ),
    Case("accounting", forgets=True, login_report=("settings: slurmdbd remembers ended jobs$",)),
    Case(
        "shut",
        options=("--worker-port", "40000:40100"),
        login_report=("settings: .*srun listens on ports 50000-50100$",),
        node_report=(
            r"node2: ports: .* is not reached \(Connection refused\): use --worker-port$",
            r"route: this machine reaches node1 over eth0; not over ib0 \(Network is unreachable\)$",
        ),
        wrong=((("--interface", "ib0"), {}, "^FAIL  compute network: this machine has no ib0"),),
        portal="http://10.77.0.1-40050.localhost:8080",
    ),
    Case("newest", login_report=(r"batch system: slurm-wlm 24\.11\.",)),
    Case("oldest", login_report=(r"batch system: slurm-wlm 20\.11\.",)),
)


class SiteUser(User):
    """alice on a site, with the variables that it needs. Fails if a command shows her a traceback."""

    def __init__(self, cluster: Minicluster, case: Case) -> None:
        super().__init__(cluster)
        self.case = case

    def jobs(self) -> Path:
        home = self.case.variables.get("MPIBOOT_HOME", "/home/alice/.mpiboot")
        folder = re.sub("^/mnt", "scratch", home).lstrip("/")
        return self.cluster.folder / folder / "jobs"

    def types(
        self, *command: object, node: int | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        there = ("env", f"--chdir={self.case.folder}", *command)
        done = super().types(*there, node=node, **(self.case.variables | options))
        assert "Traceback" not in done.stdout + done.stderr, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def mpiboot(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.types("mpiboot", *arguments, **options)

    def submit(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        sizes = ("--nodes", "2", "--workers-per-node", "1", "--cpus-per-worker", "1")
        return self.mpiboot("submit", *sizes, *self.case.options, *arguments, **options)


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=case.site) for case in CASES],
)
def alice(request: pytest.FixtureRequest) -> Iterator[SiteUser]:
    """alice on a cluster of two nodes of each site in turn."""
    case = request.param
    reason = why_no_cluster(case.site)
    if reason:
        pytest.skip(reason)
    before = request.config.stash.get(UP, None)
    with Minicluster.booted("--site", case.site, "--nodes", "2", suffix=case.site) as cluster:
        cluster.add_env("env", ["openmpi", "demo", "notebook"], linked=True)
        request.config.stash[UP] = cluster
        yield SiteUser(cluster, case)
        del request.config.stash[UP]
    if before:
        request.config.stash[UP] = before


@pytest.fixture(autouse=True)
def _no_job_is_left(alice: SiteUser) -> Iterator[None]:
    """End the jobs of a test that has failed."""
    yield
    alice.cancels_all()


MAIN_JOB = """
import json, os, resource, sys
import mpiboot
from mpiboot.examples.demo import main_job

def look():
    limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in ("RLIMIT_CPU", "RLIMIT_STACK")}
    return {"host": os.uname().nodename, "prefix": sys.prefix, **limits}

if __name__ == "__main__":
    with mpiboot.connect(sys.argv[1], timeout="2 min") as client:
        print(json.dumps(list(client.run(look).values())))
        main_job(client)
"""


def test_main_job(alice: SiteUser) -> None:
    """Submit, connect, compute, with right results, from the staged copy on each node; stop; and nothing is left."""
    portal = alice.case.portal
    options = ("--dashboard-port", "40050", "--dashboard-origins", portal) if portal else ()
    job_id = alice.submit(*options).stdout.strip()
    shown = alice.types("python", alice.writes("main_job.py", MAIN_JOB), job_id, timeout_s=250).stdout
    workers = json.loads(shown.splitlines()[0])
    assert sorted({worker["host"] for worker in workers}) == list(alice.case.hosts)
    assert all(re.match(rf"/tmp/mpiboot-{alice.uid}/env-", worker["prefix"]) for worker in workers)
    assert "Equal to plain pandas on the same 336,776 flights" in shown
    # Limits of the login node are none of the job's.
    assert {worker["RLIMIT_CPU"] for worker in workers} == {-1}

    assert f"{job_id} " in alice.mpiboot("list").stdout
    assert f"job {job_id}: RUNNING" in alice.mpiboot("status", job_id).stdout
    if portal:
        assert_dashboard_is_shown(alice, job_id)
    assert f"job {job_id}: COMPLETED (stopped)" in alice.mpiboot("stop", job_id).stderr
    assert alice.types("squeue", "--noheader", "--me").stdout == ""
    alice.mpiboot("logs", job_id)
    assert_nothing_remains(alice, NODES)


HANDSHAKE = """
import http.cookiejar, http.client, sys, urllib.parse

page, origin = sys.argv[1:]
jar = http.cookiejar.MozillaCookieJar("jar")
jar.load(ignore_discard=True, ignore_expires=True)
connection = http.client.HTTPConnection("localhost", 8080, timeout=10)
connection.request("GET", "/status/ws", headers={
    "Host": urllib.parse.urlsplit(page).netloc, "Origin": origin, "Cookie": "; ".join(f"{c.name}={c.value}" for c in jar),
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
})
print(connection.getresponse().status)
"""


def assert_dashboard_is_shown(alice: SiteUser, job_id: str) -> None:
    """Fail unless a browser at the portal gets the page, and its plots: a websocket of the portal's origin."""
    link = alice.mpiboot("dashboard", job_id).stdout.strip()
    page = alice.case.portal + link.removeprefix("http://10.77.0.1:40050")
    code = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "10")
    assert alice.types("curl", *code, "--location", "--cookie-jar", "jar", page).stdout == "200"
    for origin, expected in ((alice.case.portal, "101"), ("http://elsewhere.localhost:8080", "403")):
        done = alice.types("python", "-c", HANDSHAKE, page, origin)
        assert done.stdout.strip() == expected, origin


BATCH = """
import os, sys
from distributed import Client

if __name__ == "__main__":
    with Client() as client:
        print("computed", client.submit(sum, [1, 2]).result(), sorted(client.run(lambda: os.uname().nodename).values()))
    sys.exit(int(sys.argv[1]))
"""


def test_batch(alice: SiteUser) -> None:
    """An unchanged Dask script: its output in the job's log, its exit status the command's."""
    script = alice.writes("batch.py", BATCH)
    done = alice.submit("--wait", "--", "python", script, "7", check=False, timeout_s=200)
    job_id = done.stdout.strip()
    wait_until_forgotten(alice, job_id)
    output = alice.mpiboot("logs", job_id).stdout
    assert (done.returncode, f"computed 3 {list(alice.case.hosts)}" in output) == (7, True), output
    assert_nothing_remains(alice, NODES)


def wait_until_forgotten(alice: SiteUser, job_id: str) -> None:
    """On a site whose slurmctld soon forgets ended jobs, wait until it has forgotten this one."""
    if alice.case.forgets:
        shown = ("scontrol", "show", "job", job_id)
        wait_until(lambda: alice.types(*shown, check=False).returncode != 0, "a forgotten job", 90)


def test_stop(alice: SiteUser) -> None:
    """A job that waits, and one that has just begun, end at once."""
    for options in (["--batch-arg=--hold"], []):
        job_id = alice.submit(*options).stdout.strip()
        alice.mpiboot("stop", job_id)
        wait_until(lambda: not alice.types("squeue", "--noheader", "--me").stdout, "end of the job", 60)
        state = alice.mpiboot("status", job_id).stdout
        # What Slurm calls a job whose end comes while it begins depends on what it is about to start.
        assert re.match(rf"job {job_id}: (CANCELLED|FAILED|COMPLETED)\b", state), state
    wait_until_forgotten(alice, job_id)
    if alice.case.forgets:
        assert alice.mpiboot("status", job_id).stdout == state
        assert f"job {job_id} has ended: " in alice.mpiboot("connect", job_id, check=False).stderr
    assert_nothing_remains(alice, NODES)


def test_a_job_that_fails(alice: SiteUser) -> None:
    """The command says why, before and after its end, and where to read more."""
    done = alice.submit(
        "--wait", "--env-var", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=nonsense", check=False
    )
    job_id = done.stdout.strip()
    assert done.returncode == 1
    assert f"job {job_id} has ended: FAILED (the scheduler ended with 0 of " in done.stderr
    assert "Invalid time unit: nonsense" in done.stderr
    assert re.search(rf"mpiboot logs {job_id}\n$", done.stderr)
    assert f"job {job_id}: FAILED (the scheduler ended" in alice.mpiboot("status", job_id).stdout
    assert "Invalid time unit: nonsense" in alice.mpiboot("logs", job_id).stdout
    for variables, pattern in alice.case.failing:
        done = alice.submit("--wait", check=False, **variables)
        assert done.returncode == 1
        assert re.search(pattern, done.stderr), done.stderr
    assert_nothing_remains(alice, NODES)


def test_doctor(alice: SiteUser) -> None:
    """No false alarm; and what is peculiar to the site is named."""
    report = alice.mpiboot("doctor", *alice.case.options).stdout
    assert "FAIL" not in report
    for pattern in alice.case.login_report:
        assert re.search(pattern, joined(report), re.M), report


def test_doctor_with_a_job(alice: SiteUser) -> None:
    """The same, of the nodes; and what does not work here is said, with a remedy."""
    report = alice.mpiboot("doctor", "--job-test", *alice.case.options).stdout
    assert "FAIL" not in report
    for host in alice.case.hosts:
        assert re.search(rf"^ok    {host}: interfaces: .*eth0 10\.77\.0\.", report, re.M), report
    for pattern in alice.case.node_report:
        assert re.search(pattern, joined(report), re.M), report
    for options, variables, pattern in alice.case.wrong:
        done = alice.mpiboot("doctor", "--job-test", *options, check=False, **variables)
        assert done.returncode == 1
        assert re.search(pattern, joined(done.stdout), re.M), done.stdout


def joined(report: str) -> str:
    """Return the report with each check on one line."""
    return re.sub(r"\n {6}(?!remedy)", " ", report)
