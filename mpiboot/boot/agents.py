"""The agents on all nodes of the job, started as one and heard one by one. Standard library only."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpiboot.batch import allocation as allocations
from mpiboot.batch.allocation import Allocation
from mpiboot.common.units import show_duration
from mpiboot.errors import StageError
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.node import HEARTBEAT_S

Answers = dict[str, dict[str, Any]]


class Agents:
    """One agent per node, from here until the end of the job."""

    def __init__(
        self, allocation: Allocation, orders: Mapping[str, Any], python: str = sys.executable
    ) -> None:
        self.allocation = allocation
        self.output = b""
        self.log = JobDirectory(Path(orders["job_directory"])).ranks_log
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        system = allocations.system(allocation.batch_system)
        agent = [python, "-I", "-m", "mpiboot.agent.agent", json.dumps(orders)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                system.on_every_node(allocation, agent),
                env={name: value for name, value in os.environ.items() if name not in system.unset_variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal of a local job is boot's to act on
            )
        # Not even a shared file system that hangs may silence boot.
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        """Let the agents know that boot's node is there."""
        assert self.process.stdin
        with contextlib.suppress(OSError, ValueError):  # it was closed
            while True:
                time.sleep(HEARTBEAT_S)
                os.write(self.process.stdin.fileno(), b"\n")

    def ask(self, order: Mapping[str, Any]) -> None:
        """Give all agents an order; their `answers` are then those to it."""
        assert self.process.stdin
        self.output = b""
        self.log_start = self.log.stat().st_size
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise StageError("the agents on the nodes have ended; was the job cancelled?") from error

    def answers(self, timeout_s: float) -> Answers:
        """What each node answered, in the order of the allocation.

        Raises
        ------
        StageError
            Some nodes failed or did not answer: all of them are named, each with its reason.
        """
        nodes = self.allocation.node_names
        deadline = time.monotonic() + timeout_s
        while len(found := parse_answers(self.output)) < len(nodes) and time.monotonic() < deadline:
            if not self._read(deadline - time.monotonic()):
                break
        complaints = self._complaints()
        if time.monotonic() >= deadline:
            complaints += f" (waited {show_duration(timeout_s)})"
        if len(found) < len(nodes) or any("error" in answer for answer in found.values()):
            fail(nodes, found, complaints)
        return {node: found[node] for node in nodes}

    def _complaints(self) -> str:
        """What the agents, and the command that started them, have written to stderr since the last order."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace").strip()[-2000:]

    def _read(self, timeout_s: float) -> bool:
        """Take in what came; False at the end of it."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            for key, _ in selector.select(max(0.0, timeout_s)):
                data = os.read(key.fd, 1 << 16)
                self.output += data
                return bool(data)
        return True

    def close(self, timeout_s: float) -> None:
        """Let each agent clean its node, and wait for all of them."""
        assert self.process.stdin and self.process.stdout
        wanted = set(self.allocation.node_names)
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        while (left_s := deadline - time.monotonic()) > 0 and not wanted <= cleaned(self.output):
            if not self._read(left_s):
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, deadline - time.monotonic()))
        if self.process.poll() is None:
            self.process.kill()  # it would wait for the lost node's agent
            self.process.wait()
        self.process.stdout.close()


def fail(nodes: tuple[str, ...], found: Answers, complaints: str) -> Answers:
    failures = [f"  {node}: {answer['error']}" for node, answer in found.items() if "error" in answer]
    silent = [node for node in nodes if node not in found] if complaints or not failures else []
    if silent:
        failures.append(f"  {', '.join(silent)}: no answer. {complaints}")
    count = len(silent) + sum("error" in answer for answer in found.values())
    raise StageError(f"{count} of {len(nodes)} nodes could not be prepared:\n" + "\n".join(failures))


def parse_answers(output: bytes) -> Answers:
    """What each node answered."""
    return {line.pop("node"): line for line in json_lines(output) if "clean" not in line}


def cleaned(output: bytes) -> set[str]:
    """The nodes whose agents have cleaned up."""
    return {line["node"] for line in json_lines(output) if "clean" in line}


def json_lines(output: bytes) -> Iterator[dict[str, Any]]:
    """The JSON lines of `mpiboot.node`; other lines (a site's banners) are passed over."""
    for line in output.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "node" in found:
            yield found
