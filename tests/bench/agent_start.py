"""Measure the start of an agent, until its first answer: `/usr/bin/python3 tests/bench/agent_start.py --python PATH`.

A real channel of boot waits for it. The prefix of PATH, that of its base Python and the job directory lie behind sshfs,
in a mount namespace (file_requests.py); root only. PATH's environment must have mpiboot. Prints a line of JSON per run:
the agent's requests to the shared file system, those of an interpreter that does nothing, and seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import file_requests

ANSWER_TIMEOUT_S = 60.0
# Run by the environment's Python: makes the job directory and boot's end of the channel, prints the directory, and ends
# when the agent has answered and ended.
BOOT = f"""
import json, os, sys, time
from pathlib import Path
from mpiboot.boot import certificates
from mpiboot.boot.agent_program import write_agent_program
from mpiboot.boot.channel import Channel
from mpiboot.common.processes import host_identity, process_start
from mpiboot.common.version import VERSION
from mpiboot.protocol.channel_messages import (ChannelAddress, Orders)
from mpiboot.protocol.job_directory import JobDirectory, write_atomic
from mpiboot.protocol.messages import to_dict

home, root, node = sys.argv[1:]
directory = JobDirectory.create(Path(home), "local-bench-1")
certificates.make_job_secrets(directory.path, valid_for_s=600.0)
orders = Orders(number=0, first_node=node, n_nodes=1, root=root, job_key=directory.key, threads=1, prefix=None,
              pack_id=None, cancel_command=None)
channel = Channel([node], "127.0.0.1", directory, orders)
write_atomic(directory.channel, to_dict(ChannelAddress(
    version=VERSION, addresses=["127.0.0.1"], port=channel.port, node_variable="BENCH_NODE",
    host_identity=host_identity(), pid=os.getpid(), start=process_start(os.getpid()) or "")))
cpu, began = time.process_time(), time.monotonic()
write_agent_program(directory.agent_program)
wrote = {{"write_cpu_s": round(time.process_time() - cpu, 3), "write_s": round(time.monotonic() - began, 3),
         "program_bytes": directory.agent_program.stat().st_size}}
print(json.dumps({{"directory": str(directory.path), **wrote}}), flush=True)
answered = channel.wait(lambda: channel.nodes[node].answers, {ANSWER_TIMEOUT_S})
print(json.dumps({{"answered": bool(answered), "at": time.time()}}), flush=True)
sys.stdin.readline()  # the requests until here have been counted
channel.close_agents("measured")
channel.wait(lambda: channel.nodes[node].ended, {ANSWER_TIMEOUT_S})
channel.close()
"""


def prefixes(python: Path) -> list[Path]:
    """Return the folders of the environment: its prefix, and that of the Python that a venv is made of."""
    show = "import sys; print(sys.prefix); print(sys.base_prefix)"
    lines = subprocess.check_output([python, "-I", "-c", show], text=True).splitlines()
    return [Path(line).resolve() for line in dict.fromkeys(lines)]


def measure(python: Path, show: bool) -> dict[str, object]:
    """Run one agent."""
    with tempfile.TemporaryDirectory() as scratch:
        home, root = Path(scratch, "home"), Path(scratch, "root")
        for folder in (home, root):
            folder.mkdir(mode=0o700)
        # The agent has a mount namespace of its own, so that boot's requests are not counted.
        boot = subprocess.Popen(
            [*file_requests.unshare(), python, "-I", "-c", BOOT, home, root, "n1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert boot.stdin and boot.stdout
        made = json.loads(boot.stdout.readline())
        folders = [*prefixes(python), home]
        nothing = file_requests.count(folders, [python, "-I", "-S", "-B", "-c", "pass"])
        program = [python, "-I", "-S", "-B", f"{made['directory']}/agent.pyc", made["directory"]]
        environment = {**os.environ, "BENCH_NODE": "n1", "LD_HWCAP_MASK": "0"}  # the latter as in boot.agents
        with file_requests.behind(folders) as relays:
            began = time.time()
            agent = subprocess.Popen(
                file_requests.through_shell(program), stdin=subprocess.DEVNULL, cwd="/", env=environment
            )
            answer = json.loads(boot.stdout.readline())
            counted = file_requests.Counted.of(relays)
            cpu = cpu_s(agent.pid)
            boot.stdin.close()
            agent.wait(ANSWER_TIMEOUT_S)
        boot.wait(ANSWER_TIMEOUT_S)
        if show:
            for request in counted.requests:
                print(*request)
        return {
            "python": str(python),
            "answered": answer["answered"],
            "answer_s": round(answer["at"] - began, 3),
            "agent_cpu_s": cpu,
            **counted.summary(),
            "interpreter_alone": nothing.summary(),
            **{name: value for name, value in made.items() if name != "directory"},
        }


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="print each request")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    file_requests.enter_namespace()
    for _ in range(options.runs):
        print(json.dumps(measure(options.python.absolute(), options.show)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
