import pytest

from mpiboot.batch.allocation import Allocation, Node
from mpiboot.boot import agents as nodes

TWO = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 8)))
UNEQUAL = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 1)))


@pytest.mark.parametrize(("allocation", "cpus"), [(TWO, ("--cpus-per-task", "8")), (UNEQUAL, ())])
def test_one_agent_per_node_with_all_its_cpus(allocation, cpus):
    assert nodes.command(allocation, "/e/bin/python", {"root": "/tmp"}) == [
        *("srun", "--overlap", "--mem=0", "--export=ALL"),
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", *cpus),
        *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
        *("/e/bin/python", "-I", "-m", "mpiboot.agent.agent", '{"root": "/tmp"}'),
    ]


def test_answers_and_banners():
    output = b'welcome\n{"node": "n1", "cpus": 8}\n{"node": "n2", "clean": true}\n{"node": "n1", "cl'
    assert nodes.parse_answers(output) == {"n1": {"cpus": 8}}
    assert nodes.cleaned(output) == {"n2"}
