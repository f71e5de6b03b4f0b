"""The agents on all nodes of the job: starts them with one command, sends them orders, and collects each node's answer.

Only boot imports this module.
"""

import contextlib
import json
import os
import selectors
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from mpiboot.boot.context import Context
from mpiboot.common.units import show_duration
from mpiboot.errors import StageError
from mpiboot.protocol.node import HEARTBEAT_S, AgentOrders, StageOrder

# What each node's agent answered, by the node's name.
AgentAnswers = dict[str, dict[str, Any]]

STDERR_LENGTH_MAX = 2000


class Agents:
    """One agent per node, until the end of the job.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    orders : AgentOrders
        The orders that every agent gets when it starts.
    """

    def __init__(self, context: Context, orders: AgentOrders) -> None:
        self._nodes = context.allocation.node_names
        self._output = b""
        self._log = context.directory.ranks_log
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        agent = [sys.executable, "-I", "-m", "mpiboot.agent.agent", json.dumps(orders)]
        unset = context.system.unset_variables
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                context.system.on_every_node(context.allocation, agent),
                env={name: value for name, value in os.environ.items() if name not in unset},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # boot acts on a Ctrl-C in the terminal of a local job
            )
        # In a separate thread: the heartbeats must continue while a shared file system blocks boot.
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def _send_heartbeats(self) -> None:
        """Send heartbeats, which tell the agents that boot's node is alive."""
        assert self.process.stdin
        with contextlib.suppress(OSError, ValueError):  # `close` has closed stdin
            while True:
                time.sleep(HEARTBEAT_S)
                os.write(self.process.stdin.fileno(), b"\n")

    def order(self, order: StageOrder) -> None:
        """Give all agents an order; the next `answers` are those to it.

        Raises
        ------
        StageError
            The agents have ended.
        """
        assert self.process.stdin
        self._output = b""
        self._log_start = self._log.stat().st_size
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise StageError(
                f"the agents on the nodes have ended; they wrote to {self._log}",
                f"If nobody cancelled the job, see why they ended: cat {shlex.quote(str(self._log))}",
            ) from error

    def answers(self, timeout_s: float) -> AgentAnswers:
        """Wait for the answer of every node.

        Parameters
        ----------
        timeout_s : float, seconds
            How long to wait.

        Returns
        -------
        dict of str to dict
            Each node's answer, in the order of the allocation.

        Raises
        ------
        StageError
            Some nodes failed or did not answer: the message names each of them with its reason.
        """
        deadline = time.monotonic() + timeout_s
        while len(answers := parse_answers(self._output)) < len(self._nodes) and time.monotonic() < deadline:
            if not self._read(deadline - time.monotonic()):
                break
        waited = f" (waited {show_duration(timeout_s)})" if time.monotonic() >= deadline else ""
        return check_answers(self._nodes, answers, self._error_output() + waited)

    def _error_output(self) -> str:
        """Return what the agents, and the command that started them, wrote to stderr since the last order."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").strip()[-STDERR_LENGTH_MAX:]

    def _read(self, timeout_s: float) -> bool:
        """Read what comes within `timeout_s` seconds; return False at the end of the output."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            for key, _ in selector.select(max(0.0, timeout_s)):
                data = os.read(key.fd, 1 << 16)
                self._output += data
                return bool(data)
        return True

    def close(self, timeout_s: float) -> None:
        """Let each agent clean its node, and wait for all of them.

        Parameters
        ----------
        timeout_s : float, seconds
            How long to wait.
        """
        assert self.process.stdin and self.process.stdout
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        while not set(self._nodes) <= cleaned_nodes(self._output):
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not self._read(remaining_s):
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, deadline - time.monotonic()))
        if self.process.poll() is None:
            self.process.kill()  # the command waits for a lost node's agent
            self.process.wait()
        self.process.stdout.close()


def check_answers(nodes: Sequence[str], answers: AgentAnswers, error_output: str) -> AgentAnswers:
    """Return the answers in the order of `nodes`, or raise an error that names every node that failed.

    Parameters
    ----------
    nodes : sequence of str
        Names of all nodes.
    answers : dict of str to dict
        The answers so far; one with the key `error` is a failure.
    error_output : str
        What the agents wrote to stderr, shown as the reason for nodes that did not answer.

    Raises
    ------
    StageError
        Some nodes failed or did not answer.
    """
    failures = {node: answer["error"] for node, answer in answers.items() if "error" in answer}
    if failures or len(answers) < len(nodes):
        _fail(nodes, answers, failures, error_output)
    return {node: answers[node] for node in nodes}


def _fail(
    nodes: Sequence[str], answers: AgentAnswers, failures: dict[str, str], error_output: str
) -> NoReturn:
    lines = [f"  {node}: {error}" for node, error in failures.items()]
    # If one node's failure has ended the other agents, those did not fail themselves.
    silent = [node for node in nodes if node not in answers] if error_output or not failures else []
    if silent:
        lines.append(f"  {', '.join(silent)}: no answer. {error_output}".rstrip())
    count = len(silent) + len(failures)
    raise StageError(
        f"{count} of {len(nodes)} nodes could not be prepared:\n" + "\n".join(lines),
        "Correct these failures, or exclude the nodes, and submit the job again",
    )


def parse_answers(output: bytes) -> AgentAnswers:
    """Return each agent's answer, by the node's name."""
    return {line.pop("node"): line for line in json_lines(output) if "clean" not in line}


def cleaned_nodes(output: bytes) -> set[str]:
    """Return the nodes whose agents have cleaned up."""
    return {line["node"] for line in json_lines(output) if "clean" in line}


def json_lines(output: bytes) -> Iterator[dict[str, Any]]:
    """Yield the agents' lines of JSON; skip other lines, such as a site's banners."""
    for line in output.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and "node" in content:
            yield content
