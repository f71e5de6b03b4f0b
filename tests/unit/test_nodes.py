from mpiboot import nodes
from mpiboot.allocation import Allocation

TWO = Allocation("slurm", "7", "slurm-c-7", ("n1", "n2"), cpus_per_node=8)


def test_one_agent_per_node_with_all_its_cpus():
    assert nodes.command(TWO, "/e/bin/python", {"root": "/tmp"}) == [
        *("srun", "--overlap", "--mem=0", "--export=ALL"),
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", "--cpus-per-task", "8"),
        *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
        *("/e/bin/python", "-I", "-m", "mpiboot.node", '{"root": "/tmp"}'),
    ]


def test_answers_and_banners():
    output = b'welcome\n{"node": "n1", "cpus": 8}\n{"node": "n2", "clean": true}\n{"node": "n1", "cl'
    assert nodes.parse_answers(output) == {"n1": {"cpus": 8}}
    assert nodes.cleaned(output) == {"n2"}
