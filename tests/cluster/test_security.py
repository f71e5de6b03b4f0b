"""Nobody but the owner gets in: another user of the cluster tries everything against a running job.

The same tries, made by tests/support/stranger.py, all succeed against dask-mpi as recipes have it, so they can fail.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import wait_until

pytestmark = pytest.mark.cluster

SUPPORT = Path(__file__).resolve().parents[1] / "support"
STRANGER = (SUPPORT / "stranger.py").read_text()
# Of every host of the cluster: `what it tries from there` -> node, None for the login node.
HOSTS = {"login": None, "a node of the job": 1, "another node": 3}

# What the owner knows of their job, none of it secret.
LOOK = (
    (SUPPORT / "routes.py").read_text().replace("from __future__ import annotations", "")
    + """
import json, os, sys
from distributed import Client

def describe(server, name):
    http = server.http_server
    return {"name": name, "host": server.ip, "port": http.port, "paths": all_routes(server)}

def of_scheduler(dask_scheduler):
    return {
        "http": describe(dask_scheduler, "scheduler"),
        "nannies": [worker.nanny for worker in dask_scheduler.workers.values() if worker.nanny],
        "id": dask_scheduler.id,
    }

def of_worker(dask_worker):
    return {
        "http": describe(dask_worker, "worker"),
        "pid": os.getpid(),
        "folder": dask_worker.local_directory,
        "prefix": sys.prefix,
    }

def look(client):
    scheduler = client.run_on_scheduler(of_scheduler)
    workers = client.run(of_worker)
    bare = lambda address: address.rpartition("://")[2]
    print(json.dumps({
        "id": scheduler["id"],
        "pids": sorted((bare(address), worker["pid"]) for address, worker in workers.items()),
        "prefix": next(iter(workers.values()))["prefix"],
        "folders": sorted({worker["folder"] for worker in workers.values()}),
        "sum": client.submit(sum, range(10), pure=False).result(),
        "targets": {
            "scheduler": bare(client.scheduler.address),
            "addresses": {
                "scheduler": [bare(client.scheduler.address)],
                "worker": sorted(map(bare, workers)),
                "nanny": sorted(map(bare, scheduler["nannies"])),
            },
            "http": [scheduler["http"], *(worker["http"] for worker in workers.values())],
            "files": [],
        },
    }))
"""
)


def look_at(user, job_id):
    code = (
        f"{LOOK}\nimport mpiboot\nwith mpiboot.connect({job_id!r}, timeout='2 min') as client: look(client)"
    )
    return json.loads(user.runs_python(code))


def attack(stranger, targets, node=None):
    """Return what a stranger got of these targets, from the login node or another."""
    return json.loads(stranger.types("python", "-c", STRANGER, json.dumps(targets), node=node).stdout)


@dataclass
class Victim:
    """alice's job, as it is while it runs."""

    job_id: str
    directory: Path  # as the cluster names it
    on_host: Path  # as this machine does
    seen: dict
    secrets: dict  # name -> what must be seen nowhere


@pytest.fixture(scope="module", autouse=True)
def _open_home(alice):
    """As on many sites, where a home can be entered: what protects a job then is its own modes alone."""
    alice.types("chmod", "755", "/home/alice")
    yield
    alice.types("chmod", "700", "/home/alice")


@pytest.fixture(scope="module")
def victim(alice):
    job_id = alice.types(
        *("mpiboot", "submit", "--nodes", "2", "--workers-per-node", "1", "--interface", "ib0"),
        *("--mem", "2G", "--cpus-per-worker", "1", "--time", "10"),
    ).stdout.strip()
    seen = look_at(alice, job_id)
    directory = Path("/home/alice/.mpiboot/jobs", alice.job_directory(job_id).name)
    on_host = alice.home / directory.relative_to("/home/alice")
    secrets = {"token": (on_host / "tls/token").read_text()}
    for key in on_host.glob("tls/*-key.pem"):
        secrets[key.name] = key.read_text().splitlines()[1]
    shown = alice.types("mpiboot", "dashboard", job_id).stdout
    assert shown.strip().endswith(f"?token={secrets['token']}")
    return Victim(job_id, directory, on_host, seen, secrets)


def files_of(alice, victim):
    """List the files and folders of a job, on the shared file system and on its nodes, the outer ones first."""
    staged = Path(victim.seen["prefix"])
    root = staged.parent
    listed = [
        *("/home/alice/.mpiboot/jobs", "/home/alice/.mpiboot/logs", "/home/alice/.mpiboot/packs"),
        *(str(victim.directory / path.relative_to(victim.on_host)) for path in victim.on_host.rglob("*")),
        str(victim.directory),
        *(str(root), f"{root}/.jobs", f"{root}/.jobs/{victim.directory.name}"),
        *(str(staged), f"{staged}/bin/python", f"{staged}/bin/dask-mpi", *victim.seen["folders"]),
        *alice.types("find", "/dev/shm", "-user", "alice", node=1).stdout.split(),
    ]
    there = alice.types(
        "sh", "-c", 'for path; do test -e "$path" && echo "$path"; done; true', "sh", *listed, node=1
    )
    return there.stdout.split()


@pytest.mark.parametrize("host", HOSTS)
def test_a_stranger_gets_nothing(alice, second, victim, host):
    files = files_of(alice, victim)
    assert {
        str(victim.directory / name) for name in ("scheduler.json", "endpoint.json", "ranks.log", "tls/token")
    } < {*files}
    assert any(path.startswith(victim.seen["prefix"]) for path in files)
    targets = {**victim.seen["targets"], "files": files}
    assert {name: len(found) for name, found in targets["addresses"].items()} == {
        "scheduler": 1,
        "worker": 2,
        "nanny": 2,
    }
    scheduler, *workers = targets["http"]
    assert len(scheduler["paths"]) >= 150 and {"/status", "/status/ws", "/json/counts.json"} < {
        *scheduler["paths"]
    }
    assert [{"/metrics", "/health"} < {*worker["paths"]} for worker in workers] == [True, True]
    got = attack(second, targets, node=HOSTS[host])
    assert len(got) == 2 + 5 + 3 + len(files)
    assert {name: what for name, what in got.items() if what is not None} == {}


# ---- secrets ----------------------------------------------------------------------------------------------


def test_no_secret_is_shown(alice, second, victim):
    """Not to others, and not to the owner's own eyes: screens are shared, logs are sent."""
    shown = {
        "scontrol": second.types("scontrol", "show", "job", "-dd", victim.job_id).stdout,
        "scontrol, to alice": alice.types("scontrol", "show", "job", "-dd", victim.job_id).stdout,
        "batch script": alice.types("scontrol", "write", "batch_script", victim.job_id, "-").stdout,
        "squeue": second.types("squeue", "--format=%all").stdout,
        "mpiboot": "".join(
            alice.types("mpiboot", command, victim.job_id).stdout for command in ("logs", "status", "connect")
        ),
    }
    for node in (None, 1, 2):
        shown[f"ps on {node}"] = second.types("ps", "axeww", node=node).stdout
        # What root sees, everyone sees who may look at a command line.
        readable = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; done; cat /proc/[0-9]*/environ 2>/dev/null; true"
        shown[f"proc on {node}"] = second.types("sh", "-c", readable, node=node).stdout
    for path in [*victim.on_host.iterdir(), *(alice.home / ".mpiboot/logs").iterdir()]:
        if path.is_file():
            shown[path.name] = path.read_text(errors="replace")
    assert {"scheduler.json", "endpoint.json", "job.json", "ranks.log", "boot.log", "events.jsonl"} < {*shown}
    assert (
        "run_dask_mpi" in shown["ps on 2"] and "/agent.pyc" in shown["proc on 1"]
    )  # so that one could be seen
    assert f"slurm-{victim.job_id}.out" in shown["scontrol"]
    assert [
        (where, name)
        for where, text in shown.items()
        for name, secret in victim.secrets.items()
        if secret in text
    ] == []


def test_modes(alice, victim):
    """0600 and 0700, whatever the user's umask."""
    found = alice.types("find", victim.directory, "-printf", r"%y %m %P\n").stdout.splitlines()
    assert {line.rpartition(" ")[0] if line.count(" ") == 2 else line for line in found} == {
        "d 700",
        "f 600",
    } | {line for line in found if line.count(" ") != 2}
    outer = alice.types("stat", "-c", "%a", "/home/alice/.mpiboot/jobs", "/home/alice/.mpiboot/logs").stdout
    assert outer.split() == ["700", "700"]


def test_another_s_environment_variables_cannot_be_read(alice, second, victim):
    for node in (1, 2):
        pids = alice.types("pgrep", "-u", "alice", node=node).stdout.split()
        assert len(pids) > 3
        got = second.types(
            "sh", "-c", "for p; do cat /proc/$p/environ 2>/dev/null; done; true", "sh", *pids, node=node
        )
        assert got.stdout == ""


# ---- what listens -----------------------------------------------------------------------------------------


def listening(cluster, k):
    """Return (pid, command, kind, address) of every listening socket of alice's processes on a node."""
    ps = cluster.node(k, ["ps", "-u", "alice", "-o", "pid=,args=", "ww"], user="root").stdout
    command = {line.split()[0]: line.split(maxsplit=1)[1] for line in ps.splitlines()}
    found = []
    for kind, options in (("tcp", "-Hltnp"), ("udp", "-Hlunp"), ("unix", "-Hlxp")):
        for line in cluster.node(k, ["ss", options], user="root").stdout.splitlines():
            for pid in dict.fromkeys(re.findall(r"pid=(\d+)", line)):
                if pid in command:
                    found.append((pid, command[pid], kind, line.split()[3 + (kind == "unix")]))
    return found


def who(command):
    """Return which program a process belongs to, by its command line."""
    for name, mark in (
        ("Slurm", r"^srun "),
        ("Open MPI", r"/(prterun|prted) "),
        ("rank", r"/run_dask_mpi\.py "),
        ("worker", r"multiprocessing.spawn"),
        ("boot", r"-m mpiboot boot"),
        ("agent", r"/agent\.pyc "),
    ):
        if re.search(mark, command):
            return name
    return command


# The scheduler's two and a nanny's one; a nanny's one.
N_RANK_SOCKETS = {1: 3, 2: 1}


def of_ranks(cluster, k):
    """Return the addresses on which the ranks of a node listen."""
    return [
        address
        for _, command, kind, address in listening(cluster, k)
        if (who(command), kind) == ("rank", "tcp")
    ]


def test_every_listening_socket(alice, second, victim):
    """Each wants the job's certificate or token, or is MPI's or Slurm's own, or lies in a folder of the owner's.

    Open MPI's daemons bind to all addresses of a node, and have no flag against it: `*_if_include` chooses what they tell
    each other. That is documented; a stranger's words there must not disturb the job. The ranks close theirs.
    """
    for k in (1, 2):
        network = {
            f"10.77.0.{k}": "eth0",
            f"10.78.0.{k}": "ib0",
            "127.0.0.1": "lo",
            "0.0.0.0": "all",
            "*": "all",
            "[::]": "all",
        }
        wait_until(
            lambda k=k: len(of_ranks(alice.cluster, k)) == N_RANK_SOCKETS[k],
            "end of MPI's own sockets",
            30,
            lambda k=k: of_ranks(alice.cluster, k),
        )
        sockets = listening(alice.cluster, k)
        tcp = [
            (pid, who(command), *address.rsplit(":", 1))
            for pid, command, kind, address in sockets
            if kind == "tcp"
        ]
        probed = [[f"10.78.0.{k}" if network[host] == "all" else host, int(port)] for _, _, host, port in tcp]
        demands = json.loads(
            second.types("python", "-c", STRANGER, json.dumps({"sockets": probed}), node=k).stdout
        )
        table = sorted(
            {(owner, network[host], demand) for (_, owner, host, _), demand in zip(tcp, demands, strict=True)}
        )
        expected = {
            ("agent", "all", "certificate"),
            ("rank", "ib0", "certificate"),  # scheduler and nannies
            ("worker", "ib0", "certificate"),
            ("worker", "ib0", "token"),
            ("Open MPI", "all", ""),  # its daemons', among themselves
            ("Open MPI", "lo", ""),  # its daemon's, for the ranks of this node
        }
        if k == 1:
            expected |= {
                ("boot", "all", "certificate"),
                ("rank", "all", "token"),
                ("Slurm", "all", ""),
            }  # the dashboard; srun's, with Munge's credentials
        assert set(table) == expected
        assert [socket for socket in sockets if socket[2] == "udp"] == []

        unix = [(who(command), address) for _, command, kind, address in sockets if kind == "unix"]
        assert [owner for owner, address in unix if not address.startswith("/proc/self/fd/")] == []
        assert {(owner, address.rpartition("/")[2]) for owner, address in unix} <= {
            ("agent", "agent.sock"),
            ("boot", "boot.sock"),
        }
        assert "agent" in {owner for owner, _ in unix}
        folder = f"/tmp/mpiboot-{alice.uid}/.jobs/{victim.directory.name}"
        speak = f"import socket; socket.socket(socket.AF_UNIX).connect({folder + '/agent.sock'!r})"
        assert "PermissionError" in second.types("python", "-c", speak, node=k, check=False).stderr
        assert alice.types("python", "-c", speak, node=k).returncode == 0


# ---- what others plant ------------------------------------------------------------------------------------


def test_a_planted_job_directory_is_refused(alice, second, victim):
    """An MPIBOOT_HOME in a place that is not only the user's."""
    name = victim.directory.name
    text = (victim.on_host / "endpoint.json").read_text()
    second.types("chmod", "755", "/home/second")
    second.types(
        "sh",
        "-c",
        f"umask 022; mkdir -p ~/plant/jobs/{name} && printf %s {shlex.quote(text)} > ~/plant/jobs/{name}/endpoint.json",
    )
    second.types("ln", "-sfn", "/home/alice/.mpiboot", "/tmp/planted-link")  # to alice's own, today
    for home, named in (("/home/second/plant", "/home/second"), ("/tmp/planted-link", "/tmp/planted-link")):
        for command in ("connect", "dashboard"):
            done = alice.types("mpiboot", command, victim.job_id, check=False, MPIBOOT_HOME=home)
            assert done.returncode == 1
            assert f"cannot be trusted: {named} belongs to second" in done.stderr
            assert victim.secrets["token"] not in done.stdout + done.stderr
    code = "import mpiboot; mpiboot.connect(scheduler_file='/home/second/plant/jobs/{}/endpoint.json', insecure=True)"
    done = alice.types("python", "-c", code.format(name), check=False)
    assert "endpoint.json cannot be trusted: it belongs to second" in done.stderr


@pytest.mark.parametrize(
    "plant", ["mkdir -m 777 {}", "mkdir -m 777 /var/tmp/theirs && ln -s theirs {}", "ln -s /home/alice {}"]
)
def test_a_planted_staging_root_is_refused(alice, second, plant):
    """On the node, before the job: the boot ends, and names it."""
    root = f"/var/tmp/mpiboot-{alice.uid}"
    alice.types("rm", "-rf", root, node=3)
    second.types("rm", "-rf", root, "/var/tmp/theirs", node=3)
    second.types("sh", "-c", plant.format(root), node=3)
    try:
        done = alice.types(
            *(
                "mpiboot",
                "submit",
                "--no-stage",
                "--wait",
                "--partition",
                "single",
                "--workers-per-node",
                "1",
            ),
            *("--cpus-per-worker", "1", "--mem", "1G", "--interface", "ib0", "--batch-arg=--nodelist=node3"),
            check=False,
            MPIBOOT_STAGE_ROOT="/var/tmp",
        )
        assert done.returncode == 1
        assert re.search(
            rf"node3.*{root} cannot be trusted: it (belongs to second|is a symbolic link)", done.stderr
        )
        assert (
            second.types("find", root, "/var/tmp/theirs", "-user", "alice", node=3, check=False).stdout == ""
        )
    finally:
        second.types("rm", "-rf", root, "/var/tmp/theirs", node=3)


# ---- and then ---------------------------------------------------------------------------------------------


def test_the_owner_s_job_goes_on_and_its_secrets_end_with_it(alice, victim):
    again = look_at(alice, victim.job_id)
    assert (again["id"], again["pids"], again["sum"]) == (victim.seen["id"], victim.seen["pids"], 45)
    alice.types("mpiboot", "stop", victim.job_id)
    left = {path.name for path in victim.on_host.rglob("*")}
    assert left == {"boot.log", "events.jsonl", "job.json", "ranks.log"}


SMALL = (
    *(
        "--no-stage",
        "--partition",
        "single",
        "--workers-per-node",
        "1",
        "--cpus-per-worker",
        "1",
        "--mem",
        "1G",
    ),
    *("--interface", "ib0", "--time", "5"),
)


def test_dashboard_tls(alice):
    """Nobody on the way reads along; the job's own authority vouches for its nodes' addresses and names."""
    job_id = alice.types("mpiboot", "submit", "--dashboard-tls", *SMALL, "--wait").stdout.strip()
    try:
        link = alice.types("mpiboot", "dashboard", job_id).stdout.strip()
        by_name = re.sub(r"^https://10\.78\.0\.(\d):", r"https://node\1:", link)
        assert by_name.startswith("https://node")
        code = (
            "import ssl, sys\nfrom urllib.request import HTTPCookieProcessor, HTTPSHandler, build_opener\n"
            "https = HTTPSHandler(context=ssl.create_default_context(cafile=sys.argv[1]))\n"
            "for link in sys.argv[2:]:\n"
            "    with build_opener(https, HTTPCookieProcessor()).open(link, timeout=60) as page:\n"
            "        print(page.status, page.url)"
        )
        authority = f"/home/alice/.mpiboot/jobs/{alice.job_directory(job_id).name}/tls/ca.pem"
        shown = alice.types("python", "-c", code, authority, link, by_name).stdout
        assert shown.split() == [word for url in (link, by_name) for word in ("200", url.partition("?")[0])]
    finally:
        alice.types("mpiboot", "stop", job_id)


def test_insecure_is_said_and_asked_for_each_time(alice):
    started = alice.types("mpiboot", "submit", "--insecure", *SMALL, "--wait")
    job_id = started.stdout.strip()
    warning = "--insecure: anyone who reaches the job's nodes can run code as you\n"
    try:
        assert started.stderr.startswith(warning)
        refused = alice.types("mpiboot", "connect", job_id, check=False)
        assert refused.returncode == 1
        assert re.search(r"tcp://[\d.:]+ is not encrypted: .*mpiboot connect --insecure", refused.stderr)
        assert alice.types("mpiboot", "connect", "--insecure", job_id).stderr.startswith(warning)
    finally:
        alice.types("mpiboot", "stop", job_id)


RECIPE = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --partition=multiple --mem=2G --time=10 --output=recipe/job.out
export PATH=/home/alice/env/bin:$PATH
srun --overlap --ntasks-per-node=1 --ntasks=2 sh -c 'mkdir -p /tmp/stage && tar -xzf ~/recipe/env.tar.gz -C /tmp/stage'
mpirun -n 3 --map-by slot:OVERSUBSCRIBE --bind-to none dask-mpi --scheduler-file recipe/scheduler.json \
    --interface ib0 --worker-class distributed.Worker --nthreads 1 --local-directory /tmp/stage/scratch
"""


def test_all_of_it_succeeds_against_the_recipe_in_use(alice, second):
    """dask-mpi without TLS: the same tries, from the same places."""
    for k in (1, 2):
        second.types("mkdir", "-p", "-m", "777", "/tmp/stage", node=k)
    alice.types(
        "sh",
        "-c",
        "mkdir -p recipe && rm -f recipe/* && tar -czf recipe/env.tar.gz -C env/bin mpiboot dask-mpi",
    )
    alice.types("sh", "-c", 'printf %s "$0" > recipe/job.sh', RECIPE)
    job_id = alice.types("sbatch", "--parsable", "recipe/job.sh").stdout.strip()
    code = (
        f"{LOOK}\nimport time\nfrom pathlib import Path\ndeadline = time.monotonic() + 60\n"
        "while not Path('recipe/scheduler.json').exists():\n"
        "    assert time.monotonic() < deadline\n    time.sleep(0.2)\n"
        "with Client(scheduler_file='recipe/scheduler.json') as client:\n"
        "    client.wait_for_workers(2, timeout=60)\n    look(client)"
    )
    try:
        seen = json.loads(alice.types("python", "-c", code).stdout)
        files = ["/home/alice/recipe/scheduler.json", "/home/alice/recipe/job.out"]
        of_a_node = ["/tmp/stage/dask-mpi", "/tmp/stage/scratch"]
        for node in HOSTS.values():
            targets = {**seen["targets"], "files": files + of_a_node * (node == 1)}
            scheduler, *workers = targets["http"]
            # Bokeh makes each page anew, in half a second: of the pages, every tenth, and that from one place.
            paths = scheduler["paths"][::10] if node == 3 else ["/health", "/json/counts.json"]
            targets["http"] = [{**scheduler, "paths": paths}, *workers]
            got = attack(second, targets, node=node)
            assert {name for name, what in got.items() if what is None} == set()
            assert got["a task runs"] == alice.uid
            assert list(got["http 0, of a scheduler"]) == paths
        # The planted staging root holds alice's environment now, and the planter can exchange it.
        second.types("mv", "/tmp/stage/dask-mpi", "/tmp/stage/other", node=1)
        # A scheduler file that anyone made is followed.
        second.types("sh", "-c", "chmod 755 ~; cp /home/alice/recipe/scheduler.json planted.json")
        follow = "from distributed import Client; print(Client(scheduler_file='{}').scheduler.address)"
        shown = alice.types("python", "-c", follow.format("/home/second/planted.json"))
        assert shown.stdout.strip().endswith(seen["targets"]["scheduler"])
    finally:
        alice.types("scancel", job_id, check=False)
        of_alice = ("squeue", "--noheader", "--jobs", job_id)
        wait_until(lambda: not alice.types(*of_alice, check=False).stdout, "end of the recipe's job", 60)
        for k in (1, 2):
            alice.types("sh", "-c", "rm -rf /tmp/stage/* /tmp/dask-scratch-space", node=k, check=False)
            second.types("rm", "-rf", "/tmp/stage", node=k)
