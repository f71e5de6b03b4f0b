"""The allocation as boot reads it, from records that real Slurms have printed (`jobs/VERSION.json`)."""

import json
import re
import socket
import time
from pathlib import Path

import pytest

from mpiboot.batch.allocation import Node
from mpiboot.batch.slurm import job as jobs
from mpiboot.batch.slurm import record
from mpiboot.batch.slurm.allocation import SYSTEM
from mpiboot.batch.slurm.record import MIB
from mpiboot.errors import AllocationError, BatchAwayError, BatchError, UsageError

RECORDS = {path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("jobs/*.json")}
RECORDED = RECORDS["22.05"]
EXCLUSIVE = RECORDED["--nodes=2 --exclusive"]


def read(recorded, environ=None, **changed):
    """Read an allocation; `changed` are other outputs of scontrol, by the word after `show`."""
    outputs = {
        "job": recorded["job"],
        "node": recorded["nodes"],
        "config": "Configuration data as of Unknown\n",
        **changed,
    }

    def run(command, **_):
        assert command[:2] == ["scontrol", "show"]
        answer = outputs["details" if "details" in outputs and "--details" in command else command[2]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SYSTEM.read(recorded["environ"] | (environ or {}), run)


# The options of sbatch; each node's CPUs, memory in MiB, and tasks; CPUs per task. Nodes 1 and 3 have four cores of two
# threads and 8035 MB, node 2 two cores and 6026 MB. DefMemPerCPU is 400 MB. Others' jobs may have a part of a node.
JOBS = [
    ("", [(2, 800, None), (2, 800, None)], None),
    ("--nodes=3", [(2, 800, None)] * 3, None),
    ("--nodes=2 --exclusive", [(8, 3200, None), (4, 1600, None)], None),
    ("--nodes=2 --exclusive --mem=0", [(8, 8035, None), (4, 6026, None)], None),
    ("--nodes=2 --ntasks-per-node=4", [(4, 1600, 4), (4, 1600, 4)], None),
    ("--nodes=2 --ntasks-per-node=1 --exclusive", [(8, 3200, 1), (4, 1600, 1)], None),
    ("--nodes=2 --ntasks-per-node=2 --cpus-per-task=3", [(6, 2400, 2), (6, 2400, 2)], 3),
    ("--nodes=2 -c 4", [(4, 1600, None), (4, 1600, None)], 4),
    ("--nodes=2 -c 1 --exclusive", [(8, 3200, None), (4, 1600, None)], None),
    ("--nodes=2 -c 4 --exclusive", [(8, 3200, None), (4, 1600, None)], 4),
    ("--nodes=2 --ntasks=2", [(2, 800, 1), (2, 800, 1)], None),
    ("--nodes=2 --ntasks=2 --exclusive", [(8, 3200, 1), (4, 1600, 1)], None),
    ("--nodes=2 --ntasks=8", [(6, 2400, 6), (2, 800, 2)], None),
    ("--nodes=2 --ntasks=9 --distribution=block", [(2, 800, 2), (8, 3200, 7)], None),
    ("--nodes=3 --ntasks=10", [(6, 2400, 6), (2, 800, 2), (2, 800, 2)], None),
    ("--nodes=2 --exclusive --hint=nomultithread", [(4, 1600, None), (2, 800, None)], None),
    ("--nodes=2 --hint=nomultithread --ntasks=4", [(3, 1200, 3), (1, 400, 1)], None),
    ("--nodes=2 --threads-per-core=1 --exclusive", [(4, 1600, None), (2, 800, None)], None),
    ("--nodes=2 --ntasks-per-core=1 --exclusive", [(8, 3200, 4), (4, 1600, 2)], None),
    ("--nodes=2 --ntasks-per-core=1 --ntasks=4", [(6, 2400, 2), (2, 800, 2)], None),
    ("--nodes=2 --ntasks-per-socket=2 --ntasks=4", [(2, 800, 2), (2, 800, 2)], None),
    ("--nodes=2 --ntasks-per-socket=2", [(2, 800, 2), (2, 800, 2)], None),
    ("--nodes=2 --gpus-per-node=2 --ntasks-per-gpu=1", [(2, 800, 2), (2, 800, 2)], None),
    ("--nodes=2 --gpus=4 --cpus-per-gpu=2", [(4, 1600, None), (4, 1600, None)], None),
    ("--nodes=2 --mem=1000M", [(2, 1000, None), (2, 1000, None)], None),
    ("--nodes=2 --mem=1G", [(2, 1024, None), (2, 1024, None)], None),
    ("--nodes=2 --mem=0", [(2, 8035, None), (2, 6026, None)], None),
    ("--nodes=2 --mem-per-cpu=100M --ntasks=4", [(2, 200, 2), (2, 200, 2)], None),
    ("--nodes=2 --gpus-per-node=2 --mem-per-gpu=200M", [(2, 400, None), (2, 400, None)], None),
    ("--nodes=2 --mincpus=4", [(4, 1600, None), (4, 1600, None)], None),
    ("--nodes=2 --ntasks=20 --overcommit --exclusive", [(8, 3200, 12), (4, 1600, 8)], None),
    # With variables of another job around sbatch: SLURM_NTASKS=3, SLURM_MEM_PER_NODE=123, SLURM_RESTART_COUNT=4 …
    ("leak", [(2, 800, None), (2, 800, None)], None),
]


@pytest.mark.parametrize(("options", "nodes", "per_task"), JOBS, ids=[options for options, *_ in JOBS])
def test_what_was_asked_and_given(options, nodes, per_task):
    allocation = read(RECORDED[options])
    assert [(node.cpus, node.memory_bytes // MIB, node.tasks) for node in allocation.nodes] == nodes
    assert (allocation.cpus_per_task, allocation.restart_count) == (per_task, 0)


# The same on nodes of eight cores of one thread, DefMemPerCPU 1004 MB, where the versions place tasks differently.
OTHER_JOBS = [
    ("--nodes=2 --exclusive", [(8, 8032, None)] * 2, None),
    ("--nodes=2 --ntasks-per-node=2 --cpus-per-task=3", [(6, 6024, 2)] * 2, 3),
    ("--nodes=2 --ntasks=2 --exclusive", [(8, 8032, 1)] * 2, None),
    ("--nodes=2 --exclusive --hint=nomultithread", [(8, 8032, None)] * 2, None),
    ("--nodes=2 --mem=1G", [(1, 1024, None)] * 2, None),
    ("--nodes=2 --time=UNLIMITED", [(1, 1004, None)] * 2, None),
    ("leak", [(1, 1004, None)] * 2, None),
]
BLOCK = [(7, 7028, 7), (1, 1004, 1)]
CYCLIC = [(4, 4016, 4), (4, 4016, 4)]


@pytest.mark.parametrize(
    ("version", "options", "nodes", "per_task"),
    [
        *((version, *job) for version in ("20.11", "24.11") for job in OTHER_JOBS),
        ("20.11", "--nodes=2 --ntasks=8", CYCLIC, None),
        ("24.11", "--nodes=2 --ntasks=8", BLOCK, None),
    ],
)
def test_the_oldest_and_the_newest_slurm(version, options, nodes, per_task):
    allocation = read(RECORDS[version][options])
    assert [(node.cpus, node.memory_bytes // MIB, node.tasks) for node in allocation.nodes] == nodes
    assert (allocation.cpus_per_task, allocation.restart_count) == (per_task, 0)
    assert (allocation.end_time is None) == ("UNLIMITED" in options)


def test_all_of_a_node():
    assert read(EXCLUSIVE).nodes[1] == Node(
        name="node2",
        cpus=4,
        memory_bytes=1600 * MIB,
        given_cpus=4,
        threads_per_core=2,
        devices="2 gpu",
        total_cpus=4,
        total_memory_bytes=6026 * MIB,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NPROCS": "2",
            "SLURM_TASKS_PER_NODE": "3(x2)",
        },
        {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_CPUS_PER_NODE": "1(x9)", "SLURM_TASKS_PER_NODE": "nonsense"},
        {"SLURM_MEM_PER_NODE": "1", "SLURM_MEM_PER_CPU": "1", "SLURM_RESTART_COUNT": "7"},
        {"SLURM_JOB_END_TIME": "1", "SLURM_HET_SIZE": "2", "SLURM_ARRAY_JOB_ID": "3", "SLURM_NNODES": "9"},
        {"SLURM_JOB_NODELIST": "other[1-9]", "SLURM_NODELIST": "other1", "SLURM_PACK_SIZE": "2"},
    ],
)
def test_variables_of_another_job_change_nothing(variables):
    assert read(EXCLUSIVE, variables) == read(EXCLUSIVE)


def test_content_of_a_job_name_is_not_parsed():
    name = "JobName=x NodeList=evil NumTasks=99 ArrayJobId=3\nNodes=node1 CPU_IDs=0-99 Mem=1 GRES= "
    forged = {
        **EXCLUSIVE,
        "job": EXCLUSIVE["job"].replace("JobName=j.sh ", name) + " Command=x Comment=HetJobId=3",
    }
    assert read(forged) == read(EXCLUSIVE)


def test_cores_that_slurm_counts_as_cpus_have_their_threads():
    """A site may set CPUs to the number of cores in slurm.conf."""
    nodes = "NodeName=node1 CoresPerSocket=4 CPUTot=4 NodeHostName=n RealMemory=8 Sockets=1 ThreadsPerCore=2"
    node = read(EXCLUSIVE, node=nodes).nodes[0]
    assert (node.cpus, node.total_cpus, node.threads_per_core) == (8, 8, 2)


def test_nodes_that_a_site_does_not_describe():
    nodes = read(EXCLUSIVE, node=BatchError("hidden", "x")).nodes
    assert nodes[0] == Node("node1", 8, 3200 * MIB, None, given_cpus=8, devices="2 gpu")


def test_a_site_that_hides_its_nodes():
    """PrivateData=nodes: `scontrol show job --details` of 22.05 crashes."""
    plain = re.sub(r" Nodes=\S+ CPU_IDs=\S* Mem=\d+ GRES=\S*", "", EXCLUSIVE["job"])
    crash = BatchError("scontrol: exit status -11", "x")
    hidden = BatchError("slurm_load_node error: Access/permission denied", "x")
    nodes = read({**EXCLUSIVE, "job": plain}, details=crash, node=hidden).nodes
    assert [(node.name, node.cpus, node.memory_bytes // MIB) for node in nodes] == [
        ("node1", 8, 3200),
        ("node2", 4, 1600),
    ]
    with pytest.raises(BatchAwayError):
        read(EXCLUSIVE, details=BatchAwayError("scontrol did not answer", "x"))


def test_without_cores_in_the_record_the_variable_counts():
    """select/linear."""
    text = EXCLUSIVE["job"].replace("CPU_IDs", "IDs")
    assert [(node.cpus, node.memory_bytes) for node in read({**EXCLUSIVE, "job": text}).nodes] == [
        (8, 8 * 400 * MIB),
        (4, 4 * 400 * MIB),
    ]
    with pytest.raises(AllocationError, match="names 2 nodes"):
        read({**EXCLUSIVE, "job": text}, {"SLURM_JOB_CPUS_PER_NODE": "8"})


@pytest.mark.parametrize(("version", "job_id"), [("20.11", 37), ("22.05", 41), ("24.11", 35)])
def test_a_component_of_a_heterogeneous_job_is_refused(version, job_id):
    with pytest.raises(
        UsageError, match=rf"job {job_id} is a component of the heterogeneous job {job_id}.*scancel {job_id}"
    ):
        read(RECORDS[version]["--nodes=1 -p single : --nodes=1 -p single"])


def test_a_task_of_an_array_is_refused():
    with pytest.raises(UsageError, match=r"job 4 is a task of the array 70.*scancel 70"):
        read(
            {**EXCLUSIVE, "job": EXCLUSIVE["job"].replace("JobId=4 ", "JobId=4 ArrayJobId=70 ArrayTaskId=1 ")}
        )


def test_a_job_without_nodes():
    text = EXCLUSIVE["job"].replace("node[1-2]", "(null)").replace("RUNNING", "PENDING")
    with pytest.raises(AllocationError, match="job 4 has no nodes; Slurm says that it is PENDING"):
        read({**EXCLUSIVE, "job": text})


# ---- where boot runs


@pytest.fixture(autouse=True)
def typed(monkeypatch):
    monkeypatch.setattr(jobs.sys, "argv", ["mpiboot", "boot", "--interface", "ib 0"])
    monkeypatch.setattr(jobs.sys, "executable", "/e/bin/python")


AGAIN = (
    "srun --overlap --mem=0 --export=ALL --jobid 4 --nodes=1 --ntasks=1 --nodelist node1 --cpu-bind=none "
    "/e/bin/python -I -m mpiboot boot --interface 'ib 0'"
)


@pytest.mark.parametrize(
    ("host", "variable", "problem"),
    [
        (
            "login.example.org",
            None,
            "login.example.org is not a node of job 4; mpiboot boots on the job's first node",
        ),
        ("login", "another", "login is not a node of job 4"),
        ("cn2.hpc.example.org", None, "node2 is not the first node of job 4"),
        ("cn2", "node2", "node2 is not the first node of job 4"),
    ],
)
def test_boot_elsewhere_is_refused_with_the_command_to_type(host, variable, problem, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    with pytest.raises(AllocationError) as refused:
        read(EXCLUSIVE, {"SLURMD_NODENAME": variable})
    assert refused.value.problem.startswith(problem)
    assert AGAIN in refused.value.remedy


def test_the_node_of_the_job_script_is_the_first(monkeypatch):
    """Slurm may order a job's nodes by their switches; `sbatch --batch=FEATURE` chooses one."""
    job = EXCLUSIVE["job"].replace("BatchHost=node1", "BatchHost=node2")
    monkeypatch.setattr(socket, "gethostname", lambda: "cn2")
    elsewhere = read({**EXCLUSIVE, "job": job}, {"SLURMD_NODENAME": "node2"})
    monkeypatch.setattr(socket, "gethostname", lambda: "cn1")
    assert list(elsewhere.nodes) == list(reversed(read(EXCLUSIVE).nodes))
    with pytest.raises(AllocationError, match=r"node1 is not the first node of job 4.*that one, node2"):
        read({**EXCLUSIVE, "job": job}, {"SLURMD_NODENAME": "node1"})


@pytest.mark.parametrize(
    ("host", "variable"), [("cn1.hpc.example.org", None), ("cn1", None), ("any", "node1"), ("cn1", "another")]
)
def test_the_first_node_is_known_by_its_name_or_its_host(host, variable, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert read(EXCLUSIVE, {"SLURMD_NODENAME": variable}) == read(EXCLUSIVE)


IN_A_STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}
STEP = "StepId=4.0 State=RUNNING Nodes=2 CPUs=8 Tasks=8 Name=slurm.sh"


def test_a_script_that_srun_starts_several_times_boots_in_none_and_one_says_why():
    with pytest.raises(AllocationError, match="srun has started the job script 8 times") as refused:
        read(EXCLUSIVE, IN_A_STEP, step=STEP)
    assert "with sbatch" in refused.value.remedy
    assert AGAIN in refused.value.remedy
    with pytest.raises(SystemExit) as ended:
        read(EXCLUSIVE, IN_A_STEP | {"SLURM_PROCID": "3"}, step=STEP)
    assert ended.value.code == 1


def test_variables_of_another_jobs_step_do_not_matter():
    step = BatchError("Invalid job id specified", "x")
    assert read(EXCLUSIVE, IN_A_STEP, step=step) == read(EXCLUSIVE)


def test_a_step_of_one_task_boots():
    one = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_TASKS_PER_NODE": "1"}
    assert read(EXCLUSIVE, one) == read(EXCLUSIVE)


def test_tasks_of_an_allocation_in_whose_step_boot_runs():
    """The step's own tasks stand in the variable."""
    one = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_TASKS_PER_NODE": "1"}
    allocation = read(RECORDED["--nodes=3 --ntasks=10"], one)
    assert [node.tasks for node in allocation.nodes] == [6, 2, 2]


# ---- the end


@pytest.mark.parametrize("lead_s", [-300, -2, 0, 2, 300])
def test_the_end_is_reckoned_by_slurmctlds_clock(lead_s, caplog):
    as_of = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + lead_s))
    end = read(EXCLUSIVE, config=f"Configuration data as of {as_of}\nClusterName = x").end_time
    known = read(EXCLUSIVE).end_time
    assert known == time.mktime((2026, 11, 27, 15, 33, 0, 0, 0, -1))
    assert end == pytest.approx(known - (lead_s if abs(lead_s) > 10 else 0), abs=2)
    assert ("slurmctld's clock" in caplog.text) == (abs(lead_s) > 10)


def test_a_job_without_a_time_limit_has_no_end():
    assert read(RECORDED["--nodes=2 --time=UNLIMITED"]).end_time is None


# ---- parsing


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[001-003,7],gpu-a1", ["n001", "n002", "n003", "n7", "gpu-a1"]),
        ("rack[0-1]node[8-10]", [f"rack{r}node{n}" for r in (0, 1) for n in (8, 9, 10)]),
        ("a-1-[2-3]-x,b", ["a-1-2-x", "a-1-3-x", "b"]),
        ("n[1,3]", ["n1", "n3"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("", []),
    ],
)
def test_lists_of_nodes(text, names):
    assert record.expand_nodes(text) == names


@pytest.mark.parametrize(
    ("text", "count"), [("0", 1), ("0-7", 8), ("0-1,4-5", 4), ("0,2,4", 3), ("0-127", 128), ("", 0)]
)
def test_ids_are_counted(text, count):
    assert record.count_ids(text) == count


@pytest.mark.parametrize(
    ("gres", "words"),
    [
        ("", ""),
        ("(null)", ""),
        ("gpu:2(IDX:0-1)", "2 gpu"),
        ("gpu:a100:2(IDX:0,3),gpu:v100:1(IDX:1),shard:4(0/4,4/4)", "2 gpu:a100, 1 gpu:v100, 4 shard"),
        ("gpu:tesla:1(S:0)", "1 gpu:tesla"),
        ("nvme", "nvme"),
    ],
)
def test_devices_in_words(gres, words):
    assert record.devices(gres) == words


@pytest.mark.parametrize(
    ("word", "size"),
    [
        ("0", 0),
        (None, 0),
        ("400", 400 * MIB),
        ("16000M", 16000 * MIB),
        ("1.50G", 1536 * MIB),
        ("2T", 2 * 1024**4),
        ("4096K", 4 * MIB),
        ("N/A", 0),
    ],
)
def test_sizes_of_memory(word, size):
    assert record.memory_bytes(word) == size


@pytest.mark.parametrize(
    ("total", "cpus", "counts"),
    [(2, [8, 8], [1, 1]), (8, [6, 2], [6, 2]), (5, [4, 4], [3, 2]), (9, [4, 2], [6, 3])],
)
def test_tasks_are_spread(total, cpus, counts):
    assert record.spread(total, cpus) == counts


@pytest.mark.parametrize(
    ("text", "counts"), [("8", [8]), ("8(x3)", [8, 8, 8]), ("8(x2),4", [8, 8, 4]), ("1,2", [1, 2])]
)
def test_compressed_counts(text, counts):
    assert record.compressed_counts(text) == counts


@pytest.mark.parametrize("text", ["", "x", "8(2)", "8,,8"])
def test_no_compressed_counts(text):
    with pytest.raises(AllocationError):
        record.compressed_counts(text)
