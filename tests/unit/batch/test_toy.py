"""A new batch system is one folder, one job script and one line: this test adds one to a copy of the sources.

The toy batch system has a single command, `toy`, which the test writes: `toy submit`, `toy show`, `toy stop`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]

FOLDER = {
    "__init__.py": '''\
"""Toy."""

from mpiboot.batch.facts import Facts

FACTS = Facts(name="toy", title="Toy", command="toy", job_variable="TOY_JOB", variables=("TOY_",))
''',
    "submission.py": '''\
"""Toy's command, as the client uses it."""

from mpiboot.batch.job_state import JobState
from mpiboot.batch.submission import Submission
from mpiboot.batch.system import CommandBatchSystem
from mpiboot.batch.toy import FACTS

PHASES = {"waits": "pending", "works": "running", "is-done": "ended"}


class Toy(Submission):
    facts = FACTS

    def submit_command(self, config, script, arguments, *, environ, variables=(), output_folder=None):
        return ["toy", "submit", f"--nodes={config.nodes}", *config.batch_arg, str(script), *arguments]

    def parse_submitted(self, output):
        return output.strip()

    def states_command(self, job_ids):
        return ["toy", "show", *job_ids]

    def jobs_command(self):
        return ["toy", "show"]

    def parse_states(self, output):
        words = [line.split() for line in output.splitlines()]
        return [JobState(job_id, "mpiboot", PHASES.get(word, "running"), word) for job_id, word in words]

    def cancel_command(self, job_id):
        return ["toy", "stop", job_id]


def batch_system():
    return CommandBatchSystem(Toy())
''',
    "allocation.py": '''\
"""A job of Toy's, from inside."""

from mpiboot.batch.allocation import Allocation, AllocationSystem, Node


class ToyAllocation(AllocationSystem):
    several_hosts = True

    def read(self, environ, run):
        job_id = environ["TOY_JOB"]
        nodes = tuple(Node(name, cpus=2) for name in environ["TOY_NODES"].split())
        return Allocation("toy", job_id, f"toy-cluster-{job_id}", nodes)

    def on_every_node(self, allocation, command):
        return ["toy", "everywhere", *command]

    def cancel_command(self, job_id):
        return ["toy", "stop", job_id]


SYSTEM = ToyAllocation()
''',
}
# Jobs are files in $QUEUE, which hold their state.
COMMAND = """\
#!/bin/sh
action=$1; shift
cd "${QUEUE:?}" || exit 1
case $action in
submit) echo "$@" > "$QUEUE.submitted"; echo waits > 7; echo 7 ;;
show) for job in ${*:-*}; do [ -e "$job" ] && echo "$job $(cat "$job")"; done; true ;;
stop) echo is-done > "$1" ;;
esac
"""
PROGRAM = """\
import os, pathlib
import mpiboot
from mpiboot.client.find import find_job, live_jobs

job = mpiboot.submit(nodes=3, no_stage=True, batch_arg=["--color=red"], mpi="openmpi")
print(job, job.directory.path.name, job.state)
pathlib.Path(os.environ["QUEUE"], "7").write_text("works")
print(find_job("7"), [(live.job_id, state.phase) for live, state in live_jobs()])
print(job.stop().show())
"""

INSIDE = """\
import os
from mpiboot.batch import allocation, registry

job = allocation.read_allocation(os.environ)
system = allocation.system(job.batch_system)
print(job.job_key, job.node_names, system.on_every_node(job, ["agent"]), system.cancel_command(job.job_id))
print(registry.describes_a_job("TOY_JOB"))
"""


@pytest.fixture
def toy(tmp_path):
    """A copy of the sources with the toy batch system in it; gives the environment of programs that use it."""
    sources = tmp_path / "sources"
    for room in ("mpiboot", "envpack"):
        shutil.copytree(CHECKOUT / room, sources / room, ignore=shutil.ignore_patterns("__pycache__"))
    # One folder,
    for name, text in FOLDER.items():
        (sources / "mpiboot/batch/toy").mkdir(exist_ok=True)
        (sources / "mpiboot/batch/toy" / name).write_text(text)
    # one job script,
    (sources / "mpiboot/jobscripts/toy.sh").write_text("#!/bin/bash\n")
    # and one line.
    registry = sources / "mpiboot/batch/registry.py"
    registry.write_text(registry.read_text().replace("NAMES = (\n", 'NAMES = (\n    "toy",\n'))
    for folder in ("bin", "queue"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/toy").write_text(COMMAND)
    (tmp_path / "bin/toy").chmod(0o755)
    return {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(sources),
        "HOME": str(tmp_path),
        "MPIBOOT_HOME": str(tmp_path / "home"),
        "QUEUE": str(tmp_path / "queue"),
    }


def types(toy, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env=toy, cwd=toy["HOME"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_of_a_new_batch_system_is_submitted_asked_and_stopped(toy, tmp_path):
    assert types(toy, "-c", PROGRAM).splitlines() == [
        "<mpiboot.Job 7 on toy> toy-cluster-7 waits",
        "<mpiboot.Job 7 on toy> [('7', 'running')]",
        "is-done",
    ]
    words = (tmp_path / "queue.submitted").read_text().split()
    nodes, color, script, *arguments = (word for word in words if "--client-networks" not in word)
    assert (nodes, color, Path(script).name) == ("--nodes=3", "--color=red", "toy.sh")
    assert arguments == [f"--env={sys.prefix}", "--mpi=openmpi", "--no-stage", f"--home={tmp_path}/home"]


def test_the_command_line_knows_the_new_batch_system(toy):
    assert "toy" in types(toy, "-m", "mpiboot", "submit", "--help")
    line = types(toy, "-m", "mpiboot", "submit", "--dry-run", "--batch-system", "toy", "--no-stage")
    assert "toy submit --nodes=1 " in line
    assert types(toy, "-m", "mpiboot", "jobscript", "toy") == "#!/bin/bash\n"


def test_boot_finds_the_new_batch_system_by_its_variable(toy):
    assert types({**toy, "TOY_JOB": "7", "TOY_NODES": "a b"}, "-c", INSIDE).splitlines() == [
        "toy-cluster-7 ('a', 'b') ['toy', 'everywhere', 'agent'] ['toy', 'stop', '7']",
        "True",
    ]
