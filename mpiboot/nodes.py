"""The agents on all nodes of the job, started as one and heard one by one. Standard library only."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from mpiboot.allocation import Allocation
from mpiboot.errors import StageError
from mpiboot.launchers import SRUN
from mpiboot.units import show_duration

Answers = dict[str, dict[str, Any]]


def command(allocation: Allocation, python: str, orders: Mapping[str, Any]) -> list[str]:
    """The command that runs one `mpiboot.node` per node."""
    mine = [python, "-m", "mpiboot.node", json.dumps(orders)]
    if allocation.batch_system == "local":
        return mine
    count = str(len(allocation.nodes))
    return [
        *SRUN,
        *("--nodes", count, "--ntasks", count, "--ntasks-per-node", "1", "--cpus-per-task", "1"),
        # One node's failure must neither end the others' agents nor hide their answers.
        *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
        *mine,
    ]


class Agents:
    """One agent per node, from here until the end of the job."""

    def __init__(
        self, allocation: Allocation, orders: Mapping[str, Any], python: str = sys.executable
    ) -> None:
        self.allocation = allocation
        self.output = b""
        self.complaints = b""
        self.process = subprocess.Popen(
            command(allocation, python, orders),
            env={name: value for name, value in os.environ.items() if name != "SLURM_EXPORT_ENV"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal of a local job is boot's to act on
        )

    def ask(self, order: Mapping[str, Any]) -> None:
        """Give all agents an order; their `answers` are then those to it."""
        assert self.process.stdin
        self.output = self.complaints = b""
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
        nodes = self.allocation.nodes
        deadline = time.monotonic() + timeout_s
        while len(found := parse_answers(self.output)) < len(nodes) and time.monotonic() < deadline:
            if not self._read(deadline - time.monotonic()):
                break
        complaints = self.complaints.decode(errors="replace").strip()[-2000:]
        if time.monotonic() >= deadline:
            complaints += f" (waited {show_duration(timeout_s)})"
        if len(found) < len(nodes) or any("error" in answer for answer in found.values()):
            fail(nodes, found, complaints)
        return {node: found[node] for node in nodes}

    def _read(self, timeout_s: float) -> bool:
        """Take in what came; False when both pipes have ended."""
        assert self.process.stdout and self.process.stderr
        with selectors.DefaultSelector() as selector:
            for pipe in (self.process.stdout, self.process.stderr):
                selector.register(pipe, selectors.EVENT_READ)
            ended = 0
            for key, _ in selector.select(max(0.0, timeout_s)):
                data = os.read(key.fd, 1 << 16)
                ended += not data
                if key.fileobj is self.process.stdout:
                    self.output += data
                else:
                    self.complaints += data
        return not (ended and self.process.poll() is not None)

    def close(self, timeout_s: float) -> None:
        """Let each agent clean its node, and wait for that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=timeout_s)
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def fail(nodes: tuple[str, ...], found: Answers, complaints: str) -> Answers:
    failures = [f"  {node}: {answer['error']}" for node, answer in found.items() if "error" in answer]
    silent = [node for node in nodes if node not in found] if complaints or not failures else []
    if silent:
        failures.append(f"  {', '.join(silent)}: no answer. {complaints}")
    raise StageError(f"{len(failures)} of {len(nodes)} nodes could not be prepared:\n" + "\n".join(failures))


def parse_answers(output: bytes) -> Answers:
    """The JSON lines of `mpiboot.node`, by node; other lines (a site's banners) are passed over."""
    answers: Answers = {}
    for line in output.splitlines(keepends=True):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict) and "node" in answer:
            answers[answer.pop("node")] = answer
    return answers
