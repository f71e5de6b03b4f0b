"""The minicluster itself: that it is a Slurm of several nodes, breaks as one, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurmcluster
from slurmcluster import COMMAND, Minicluster, cluster_name, run, sweep, why_no_cluster
from waiting import wait_until

pytestmark = pytest.mark.cluster
CGROUP_V1 = Path("/sys/fs/cgroup/memory/cgroup.procs")


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    reason = why_no_cluster()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Minicluster]:
    """A cluster of this module's own, which needs no environment."""
    with Minicluster.booted(suffix="plain") as booted:
        yield booted


def traces(name: str) -> list[str]:
    """Return all that there is of a cluster on this machine: its processes, its folder, its cgroups."""
    found = []
    mark = f"minicluster-{name}"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            mounts = (process / "mountinfo").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if name.encode() in words or mark in mounts:
            found.append(f"process {process.name}: {b' '.join(words).decode()}")
    folders = [*Path("/var/lib").glob(f"{mark}*"), *Path("/sys/fs/cgroup").glob(f"*/{mark}")]
    return found + [str(path) for path in folders]


def outside() -> tuple[str, list[str], list[bytes]]:
    """Return what a cluster must not touch: this namespace's mounts and interfaces, and the files of /etc and /home."""
    mounts = Path("/proc/self/mountinfo").read_text()
    interfaces = sorted(path.name for path in Path("/sys/class/net").iterdir())
    etc = [Path(path).read_bytes() for path in ("/etc/hosts", "/etc/passwd", "/etc/group")]
    names = [repr(sorted(Path(path).iterdir())).encode() for path in ("/etc/slurm", "/home", "/run")]
    return mounts, interfaces, etc + names


@contextlib.contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background; it does not outlive the block."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


# ---- what it is


def test_users(cluster: Minicluster) -> None:
    assert cluster.login(["id"]).stdout == "uid=61001(alice) gid=61001(alice) groups=61001(alice)\n"
    assert cluster.node(2, ["id", "-un"], user="second").stdout == "second\n"
    assert cluster.login(["id", "-u"], user="root").stdout == "0\n"
    cluster.login(["touch", "mine"])
    assert cluster.login(["ls", "/home/alice"], user="second", check=False).returncode == 2
    refused = cluster.login(["id"], user="carol", check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        "minicluster: no user carol; there are root, alice, second\n",
    )


def test_login_has_a_clean_environment(cluster: Minicluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("TERM", raising=False)
    assert sorted(cluster.login(["env"]).stdout.splitlines()) == [
        "HOME=/home/alice",
        "LANG=C.UTF-8",
        "LOGNAME=alice",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL=/bin/bash",
        "SLURM_CONF=/etc/slurm/slurm.conf",
        "USER=alice",
    ]
    assert cluster.login(["pwd"]).stdout == "/home/alice\n"


@pytest.mark.parametrize(
    ("argv", "status", "out", "err"),
    [
        (["bash", "-c", "cat; echo no >&2; exit 7"], 7, "through", "no\n"),
        (["bash", "-c", "kill -9 $$"], 137, "", ""),
        (["nosuch"], 127, "", "minicluster: nosuch: No such file or directory\n"),
    ],
)
def test_login_passes_everything_through(
    cluster: Minicluster, argv: list[str], status: int, out: str, err: str
) -> None:
    done = subprocess.run(
        cluster.login_argv(argv), input="through", capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_a_killed_login_takes_its_command_along(cluster: Minicluster) -> None:
    with running(cluster.login_argv(["bash", "-c", "echo $$; exec sleep 300"])) as login:
        assert login.stdout
        pid = login.stdout.readline().decode().strip()
        login.kill()
    gone = [
        "bash",
        "-c",
        f"for i in {{1..50}}; do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1",
    ]
    cluster.login(gone, user="alice")


def test_each_host_has_its_name_and_interfaces(cluster: Minicluster) -> None:
    show = ["bash", "-c", "hostname; ip -br -4 addr show up | awk '{print $1, $3}'"]
    seen = [cluster.login(show).stdout, *(cluster.node(k, show).stdout for k in (1, 2, 3))]
    assert [re.sub(r"@if\d+", "", text).splitlines() for text in seen] == [
        [name, "lo 127.0.0.1/8", f"eth0 10.77.0.{number}/24", f"ib0 10.78.0.{number}/24"]
        for name, number in (("login", 254), ("node1", 1), ("node2", 2), ("node3", 3))
    ]
    assert cluster.node(1, ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "ib0", "lo"]


def test_tmp_is_private_and_home_is_shared(cluster: Minicluster) -> None:
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        cluster.node(1, ["touch", f"{folder}/of-node1"])
        assert cluster.node(2, ["ls", folder]).stdout == ""
        assert not Path(folder, "of-node1").exists()
    cluster.node(1, ["touch", "of-node1"])
    assert cluster.node(2, ["ls", "of-node1"]).stdout == "of-node1\n"
    assert (cluster.home / "of-node1").exists()


def test_nothing_of_the_machine_can_be_changed(cluster: Minicluster) -> None:
    for path in ("/etc/x", "/usr/x", "/opt/x"):
        assert "Read-only" in cluster.node(1, ["touch", path], user="root", check=False).stderr
    assert cluster.node(1, ["ls", "-A", "/root", str(cluster.folder)], user="root").stdout.split() == [
        "/root:",
        f"{cluster.folder}:",
    ]


@pytest.mark.parametrize(("partition", "nodes"), [("multiple", 1), ("single", 2)])
def test_partitions_refuse_in_slurms_words(cluster: Minicluster, partition: str, nodes: int) -> None:
    argv = ["sbatch", f"--partition={partition}", f"--nodes={nodes}", "--wrap=hostname"]
    refused = cluster.login(argv, check=False)
    words = "sbatch: error: Batch job submission failed: Node count specification invalid\n"
    assert (refused.returncode, refused.stderr) == (1, words)


def test_jobs_run_on_all_nodes(cluster: Minicluster) -> None:
    assert sorted(cluster.login(["srun", "--nodes=3", "hostname"]).stdout.split()) == [
        "node1",
        "node2",
        "node3",
    ]
    assert (
        cluster.login(["srun", "--partition=single", "--ntasks=8", "hostname"]).stdout.split()
        == ["node1"] * 8
    )
    claims = cluster.login(["sinfo", "--noheader", "--partition=single", "--format=%c %D"]).stdout
    assert claims == "8 3\n"


def test_a_batch_job_writes_into_the_home(cluster: Minicluster) -> None:
    script = "srun bash -c 'echo $(id -un) $(hostname) $SLURM_CLUSTER_NAME'"
    job = cluster.login(["sbatch", "--parsable", "--wait", "--nodes=2", f"--wrap={script}"]).stdout.strip()
    output = (cluster.home / f"slurm-{job}.out").read_text()
    assert sorted(output.splitlines()) == [f"alice node{k} {cluster.name}" for k in (1, 2)]


def test_users_and_packages_can_be_added_to_the_machine_meanwhile(cluster: Minicluster) -> None:
    """`useradd` writes new files of accounts and renames them over the old ones, as packages do with theirs."""
    added = f"mpiboot-test-{os.getpid()}"
    run(["useradd", "--system", "--no-create-home", added], timeout_s=60, check=True)
    try:
        assert cluster.login(["id", "-un"]).stdout == "alice\n"
        assert cluster.login(["id", added], check=False).returncode == 1
        whoami = ["srun", "--nodes=3", "id", "-un"]
        assert cluster.login(whoami).stdout == "alice\n" * 3
    finally:
        run(["userdel", added], timeout_s=60, check=True)
    assert cluster.login(whoami).stdout == "alice\n" * 3


# ---- breaking it


def test_kill_ends_a_node_and_start_boots_it(cluster: Minicluster) -> None:
    cluster.node(2, ["touch", "/tmp/old"])
    hardware = ["cat", "/sys/class/net/eth0/address", "/sys/class/net/ib0/address"]
    addresses = cluster.node(2, hardware).stdout
    with running(cluster.login_argv(["srun", "--nodes=3", "sleep", "4711"])):
        wait_until(lambda: len(_sleepers("4711")) == 3, "job on three nodes", 20)
        cluster.kill(2)
        assert len(_sleepers("4711")) == 2
        refused = run([str(COMMAND), "--name", cluster.name, "node", "2", "id"], timeout_s=30, check=False)
        assert refused.stderr.startswith("minicluster: node2 is not up")
    cluster.start(2)
    assert cluster.node(2, ["ls", "/tmp"]).stdout == ""
    assert cluster.node(2, hardware).stdout == addresses  # others still send to them
    wait_until(lambda: cluster.login(["squeue", "--noheader"]).stdout == "", "end of the job", 60)
    assert sorted(cluster.login(["srun", "--nodes=3", "hostname"]).stdout.split()) == [
        "node1",
        "node2",
        "node3",
    ]


def test_slurm_misses_a_killed_node_and_takes_it_back(cluster: Minicluster) -> None:
    state = ["sinfo", "--noheader", "--nodes=node3", "--partition=single", "--format=%t"]
    cluster.kill(3)
    wait_until(lambda: cluster.login(state).stdout == "down*\n", "missed node", 60)
    cluster.start(3)
    assert cluster.login(state).stdout == "idle\n"


def test_cut_and_heal_a_node(cluster: Minicluster) -> None:
    def reaches(host: str) -> bool:
        talk = ["timeout", "2", "bash", "-c", f": > /dev/tcp/{host}/6818"]
        return cluster.login(talk, check=False).returncode == 0

    cluster.cut(1)
    assert [reaches(host) for host in ("node1", "node1-ib0", "node2")] == [False, False, True]
    cluster.heal(1)
    wait_until(lambda: reaches("node1") and reaches("node1-ib0"), "way to node1", 20)


def _sleepers(argument: str) -> list[Path]:
    """Return the sleeps themselves, not the `srun sleep` of a job."""
    ends = f"sleep\0{argument}\0".encode()
    return [path for path in Path("/proc").glob("[0-9]*") if re.fullmatch(rb"[\w/]*" + ends, _cmdline(path))]


def _cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


# ---- variants


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse here: `modprobe fuse` enables it")
def test_sshfs(tmp_path: Path) -> None:
    name = cluster_name("sshfs")
    with Minicluster.booted("--shared-fs=sshfs", "--nodes=2", "--interface=hsn0", suffix="sshfs") as cluster:
        kind = ["findmnt", "--noheadings", "--output=FSTYPE", "--target=."]
        assert cluster.node(1, kind).stdout.strip() == "fuse.sshfs"
        assert cluster.login(kind).stdout.strip() != "fuse.sshfs"
        cluster.login(["srun", "--nodes=2", "bash", "-c", "echo $(id -un) > $(hostname)"])
        assert (
            cluster.login(["stat", "--format=%n %U", "node1", "node2"]).stdout == "node1 alice\nnode2 alice\n"
        )
        assert cluster.node(2, ["cat", "node1"]).stdout == "alice\n"
        assert cluster.node(1, ["ls", "/home/alice"], user="second", check=False).returncode == 2
        cluster.node(1, ["touch", "mine"], user="second")
        assert (cluster.home.parent / "second" / "mine").stat().st_uid == 61002
        assert cluster.node(1, ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "hsn0", "lo"]
        cluster.kill(1)
        cluster.start(1)
        assert cluster.node(1, kind).stdout.strip() == "fuse.sshfs"
    assert traces(name) == []


@pytest.mark.skipif(not CGROUP_V1.exists(), reason="this machine has no cgroup v1 memory controller")
def test_cgroups_enforce_memory() -> None:
    name = cluster_name("cgroup")
    with Minicluster.booted("--cgroup", "--nodes=2", suffix="cgroup") as cluster:
        eat = "head -c 300M /dev/zero | tail"
        cluster.login(["sbatch", "--wait", "--nodes=2", "--mem=100M", f"--wrap={eat}"], check=False)
        assert "JobState=OUT_OF_MEMORY" in cluster.login(["scontrol", "show", "job", "1"]).stdout
        cluster.login(["sbatch", "--nodes=2", "--wrap=srun sleep 4713"])
        wait_until(lambda: len(_sleepers("4713")) == 2, "job on two nodes", 20)
    assert traces(name) == []


# ---- sites


def test_fat() -> None:
    with Minicluster.booted("--site=fat", "--nodes=3", suffix="fat") as cluster:
        show = "hostname; ls /sys/class/net | wc -l; echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
        told = cluster.login(["srun", "--nodes=2", "--gres=gpu:1", "--label", "bash", "-c", show]).stdout
        assert sorted(told.splitlines()) == [
            f"{k - 1}: {line}" for k in (1, 2) for line in ("15", f"cn{k}.hpc.example.org", f"node{k} 0")
        ]  # fmt: skip
        kinds = cluster.login(["sinfo", "-hN", "-p", "single", "-o", "%N %c %z %G"]).stdout
        assert kinds == "node1 8 1:4:2 gpu:2\nnode2 4 1:2:2 gpu:2\nnode3 8 1:4:2 gpu:2\n"
        memory = [
            int(line) for line in cluster.login(["sinfo", "-hN", "-p", "single", "-o", "%m"]).stdout.split()
        ]
        assert memory == [memory[0], memory[0] * 3 // 4, memory[0]]
        assert cluster.login(["getent", "hosts", "node1"], check=False).returncode == 2
        script = "scontrol show job $SLURM_JOB_ID"
        assert (
            "mem=3200M"
            in cluster.login(["srun", "-n", "2", "-N", "2", "-c", "4", "bash", "-c", script]).stdout
        )
        cluster.kill(2)
        cluster.start(2)


def test_strict() -> None:
    with Minicluster.booted("--site=strict", "--nodes=2", suffix="strict") as cluster:
        show = "umask; ulimit -St -Sn; touch ~/x; touch /mnt/alice/$SLURMD_NODENAME /tmp/x; df --output=size -BM /tmp"
        told = cluster.login(["srun", "--nodes=2", "--label", "bash", "-c", show])
        assert {re.sub("^[01]: ", "", line) for line in told.stderr.splitlines()} == {
            "touch: cannot touch '/home/alice/x': Read-only file system"
        }
        assert told.stdout.split("\n")[0][3:] == "0002" and told.stdout.count(" 1500M") == 2
        assert sorted(re.findall(r"\) (\d+)$", told.stdout, re.M)) == ["120", "120", "256", "256"]
        assert cluster.login(["ls", "/mnt/alice"]).stdout == "node1\nnode2\n"
        assert cluster.node(1, ["ls", "/tmp"]).stdout == ""  # it was in the job's own
        cluster.login(["touch", "writable"])
        if CGROUP_V1.exists():
            one_core = ["srun", "--nodes=2", "nproc"]
            assert cluster.login(one_core).stdout == "1\n1\n"


def test_accounting_remembers_what_slurmctld_forgets() -> None:
    with Minicluster.booted("--site=accounting", "--nodes=2", suffix="accounting") as cluster:
        cluster.login(["srun", "--nodes=2", "bash", "-c", "exit 3"], check=False)
        show = ["scontrol", "show", "job", "1"]
        wait_until(lambda: cluster.login(show, check=False).returncode == 1, "a forgotten job", 90)
        told = cluster.login(["sacct", "-nPX", "--format=JobID,State,ExitCode,NNodes"]).stdout
        assert told == "1|FAILED|3:0|2\n"


def test_shut() -> None:
    serve = ["timeout", "60", "python3", "-m", "http.server"]
    ask = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--retry-connrefused"]
    with (
        Minicluster.booted("--site=shut", "--nodes=2", suffix="shut") as cluster,
        running([str(COMMAND), "--name", cluster.name, "node", "1", *serve, "40005"]),
        running([str(COMMAND), "--name", cluster.name, "node", "1", *serve, "30005"]),
    ):
        assert cluster.login(["ls", "/sys/class/net"]).stdout == "eth0\nlo\n"
        assert cluster.login(["ip", "route", "get", "10.78.0.1"], check=False).returncode == 2
        assert cluster.node(2, [*ask, "--retry", "9", "http://node1-ib0:40005"]).stdout == "200"
        assert cluster.node(1, [*ask, "--retry", "9", "http://node1:30005"]).stdout == "200"
        assert cluster.node(2, [*ask, "http://node1:30005"], check=False).returncode == 7
        proxied = [*ask, "http://node1-40005.localhost:8080/"]
        assert cluster.login(proxied).stdout == "200"
        assert sorted(cluster.login(["srun", "--nodes=2", "hostname"]).stdout.split()) == ["node1", "node2"]


def test_options_change_a_site(cluster: Minicluster) -> None:
    with Minicluster.booted("--site=fat", "--nodes=2", "--cpus=6", suffix="changed") as changed:
        assert changed.login(["sinfo", "-h", "--format=%c %D"]).stdout == "6 2\n"
    refused = run([str(COMMAND), "up", "--site=thin"], timeout_s=30, check=False)
    expected = "minicluster: no site thin; there are accounting, fat, "
    assert (refused.returncode, refused.stderr.startswith(expected)) == (1, True)


def test_two_at_once(cluster: Minicluster) -> None:
    name = cluster_name("other")
    with Minicluster.booted("--nodes=2", suffix="other") as other:
        names = [
            which.login(["srun", "--nodes=2", "bash", "-c", "echo $SLURM_CLUSTER_NAME"]).stdout.split()
            for which in (cluster, other)
        ]
        assert names == [[cluster.name] * 2, [name] * 2]
    assert traces(name) == []
    assert cluster.login(["srun", "--nodes=2", "hostname"]).stdout.split()


# ---- what it leaves


def test_down_leaves_nothing() -> None:
    name = cluster_name("down")
    before = outside()
    with Minicluster.booted(suffix="down") as cluster:
        assert outside() == before
        cluster.login(["sbatch", "--nodes=3", "--wrap=srun sleep 4712"])
        wait_until(lambda: len(_sleepers("4712")) == 3, "job on three nodes", 20)
        cluster.kill(3)
        # The inits of switch, login and two nodes, munged, slurmctld and its script runner, two slurmd, the job.
        assert len(traces(name)) >= 12
    assert traces(name) == []
    assert outside() == before
    run([str(COMMAND), "--name", name, "down"], timeout_s=30, check=True)  # idempotent


@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name
)
@pytest.mark.parametrize("delay_s", [0.15, 0.25, 0.35])
def test_down_after_an_interrupted_up(signum: signal.Signals, delay_s: float) -> None:
    name = cluster_name("interrupted")
    before = outside()
    with running([str(COMMAND), "--name", name, "up"]) as up:
        time.sleep(delay_s)
        up.send_signal(signum)
        status = up.wait(timeout=60)
    if signum != signal.SIGKILL and status != 0:
        assert traces(name) == []  # it has cleaned up by itself
    run([str(COMMAND), "--name", name, "down"], timeout_s=60, check=True)
    assert traces(name) == []
    assert outside() == before


def test_a_failed_up_says_why_and_leaves_nothing() -> None:
    name = cluster_name("failed")
    failed = run([str(COMMAND), "--name", name, "up", "--cpus=70000"], timeout_s=60, check=False)
    assert failed.returncode == 1
    assert "Parse error in file /etc/slurm/slurm.conf" in failed.stderr
    assert re.search(
        r"^minicluster: slurm(ctld|d) of \w+ has ended with status 1$", failed.stderr, re.MULTILINE
    )
    assert traces(name) == []


def test_of_many_at_once_one_comes_up() -> None:
    name = cluster_name("many")
    command = [str(COMMAND), "--name", name]
    with contextlib.ExitStack() as stack:
        ups = [stack.enter_context(running([*command, "up"])) for _ in range(3)]
        assert sorted(up.wait(timeout=60) for up in ups) == [0, 1, 1]
    run([*command, "login", "srun", "--nodes=3", "hostname"], timeout_s=30, check=True)
    with contextlib.ExitStack() as stack:
        downs = [stack.enter_context(running([*command, "down"])) for _ in range(3)]
        assert [down.wait(timeout=60) for down in downs] == [0, 0, 0]
    assert traces(name) == []


def test_the_cluster_of_a_killed_test_process_is_swept() -> None:
    code = (
        "import sys, time; from slurmcluster import Minicluster\n"
        "with Minicluster.booted('--nodes=1', suffix='killed') as cluster:\n"
        "    print(cluster.name, flush=True)\n"
        "    time.sleep(300)\n"
    )
    argv = ["env", f"PYTHONPATH={Path(slurmcluster.__file__).parent}", sys.executable, "-c", code]
    with running(argv) as process:
        assert process.stdout
        name = process.stdout.readline().decode().strip()
    assert traces(name) != []
    sweep()
    assert traces(name) == []


# ---- what it refuses


def test_refusals(cluster: Minicluster, tmp_path: Path) -> None:
    def refusal(*argv: str) -> str:
        done = run([str(COMMAND), *argv], timeout_s=30, check=False)
        assert done.returncode == 1
        return done.stderr.removeprefix("minicluster: ").strip()

    name = cluster.name
    assert refusal("--name", name, "up") == f"{name} is already up in {cluster.folder}"
    assert refusal("--name", name, "start", "1") == "node1 is already up"
    assert (
        refusal("--name", name, "cut", "1", "--interface", "ib7")
        == "node1 has no interface ib7; it has eth0, ib0"
    )
    assert refusal("--name", "nosuch", "login", "id") == (
        "no cluster is up in /var/lib/minicluster-nosuch; `minicluster --name nosuch up` boots one"
    )
    (tmp_path / "precious").touch()
    assert (
        refusal("--dir", str(tmp_path), "down")
        == f"{tmp_path} is not the folder of a minicluster; it is not removed"
    )
    assert (
        refusal("--dir", str(tmp_path), "up")
        == f"{tmp_path} is not the folder of a minicluster; it is not removed"
    )
    assert (tmp_path / "precious").exists()


def test_only_root_may() -> None:
    python = "/usr/bin/python3"  # one that everybody may read
    argv = ["setpriv", "--reuid=65534", "--clear-groups", python, "-B", "-", "up"]
    code = (
        f"import sys; sys.path.insert(0, {str(COMMAND.parent)!r}); from command import main; sys.exit(main())"
    )
    done = subprocess.run(argv, input=code, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (
        1,
        "minicluster: must be run as root, to make namespaces (try sudo)\n",
    )
