"""The agents on all nodes of the job: starts them with one command, gives them orders, and collects each node's answer.

The batch system's command only starts the agents. Boot and agents exchange all messages through `boot.channel`.

Only boot imports this module. It imports `boot.channel` and `boot.agent_program`.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from envpack.common.places import host_name
from mpiboot.batch import registry
from mpiboot.boot.agent_program import write_agent_program
from mpiboot.boot.channel import NODES_SHOWN, Answer, Channel
from mpiboot.boot.choose_interface import preferred_first
from mpiboot.boot.context import Context
from mpiboot.common.interfaces import interfaces
from mpiboot.common.patterns import matches
from mpiboot.common.ports import other_ports
from mpiboot.common.processes import host_identity, process_start
from mpiboot.common.units import show_duration
from mpiboot.common.version import VERSION
from mpiboot.errors import LaunchError, StageError
from mpiboot.protocol.channel_messages import (
    AllStaged,
    ChannelAddress,
    Failure,
    Launch,
    NodeReport,
    Orders,
    Peers,
    StageOrder,
    StageReport,
)
from mpiboot.protocol.job_directory import write_atomic
from mpiboot.protocol.messages import to_dict
from mpiboot.protocol.variables import DEVICES, LINKER_PLAIN_SEARCH

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
LAST_WORDS_LENGTH_MAX = 2000
LAST_WORDS_BYTES_MAX = 4 * LAST_WORDS_LENGTH_MAX
# A batch system may start the agent of a slow node late.
REPORTS_TIMEOUT_S = 600.0
# After the start command has ended, an agent may still dial within this time.
DIAL_GRACE_S = 5.0
# An agent that has lost its connection dials boot again within this time, unless its node is cut off.
REDIAL_GRACE_S = 3.0
# How long the start command may take to end after the last agent has ended.
END_GRACE_S = 2.0
KILL_GRACE_S = 1.0

Kind = TypeVar("Kind", NodeReport, StageReport)


class Agents:
    """One agent per node, until the end of the job.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot; the job's secrets are made.
    orders : Orders
        The orders that every agent gets when it has dialled.
    """

    def __init__(self, context: Context, orders: Orders) -> None:
        self._context = context
        self._all_have_dialled = False
        self._log = context.directory.ranks_log
        self._log_start = self._log.stat().st_size
        several = context.system.several_hosts
        try:
            self._channel = Channel(
                context.allocation.node_names,
                "" if several else LOOPBACK,
                context.directory,
                orders,
                other_ports(context.config.worker_port),
            )
        except OSError as error:
            raise LaunchError(f"{host_name()}: {error}", "See what listens there: ss -ltnp") from error
        try:
            addresses = preferred_first(interfaces(), context.config.interface) if several else []
            if len(context.allocation.nodes) == 1:
                addresses.append(LOOPBACK)  # the host may have no other address
            address = ChannelAddress(
                version=VERSION,
                addresses=addresses,
                port=self._channel.port,
                node_variable=context.system.node_variable,
                host_identity=host_identity(),
                pid=os.getpid(),
                start=process_start(os.getpid()) or "",
            )
            self._address = to_dict(address)
            write_atomic(context.directory.channel, self._address)
            write_agent_program(context.directory.agent_program)
            self.process = self._start()
        except BaseException:
            self._channel.close()
            raise

    def _start(self) -> "subprocess.Popen[bytes]":
        """Run the batch system's command that starts an agent on every node."""
        context = self._context
        # -S: site-packages of a slow file system is not searched; -B: nothing is written there.
        agent = [sys.executable, "-I", "-S", "-B", str(context.directory.agent_program)]
        environ = context.job_environment(os.environ)
        # If the batch system gives devices, it numbers those of each node, or the node has none.
        facts = registry.facts(context.allocation.batch_system)
        if any(name in environ for name in facts.device_variables):
            environ = {name: value for name, value in environ.items() if not matches(name, DEVICES)}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                context.system.on_every_node(context.allocation, [*agent, str(context.directory.path)]),
                env=environ | LINKER_PLAIN_SEARCH,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # boot acts on a Ctrl-C in the terminal of a local job
            )

    def reports(self) -> dict[str, NodeReport]:
        """Wait for every node's report, the answer to the orders that its agent got when it dialled.

        Returns
        -------
        dict of str to NodeReport
            By the node's name, in the order of the allocation.

        Raises
        ------
        StageError
            Some nodes failed or did not answer: the message names each of them with its reason.
        """
        reports = self._answers(0, NodeReport, REPORTS_TIMEOUT_S)
        self._all_have_dialled = True
        self._stop_start()
        return reports

    def _stop_start(self) -> None:
        """Stop the start command, if the batch system can do without it; a job that is resumed may have continued it."""
        if self._all_have_dialled and self._context.system.stop_start:
            self.process.send_signal(signal.SIGSTOP)

    def introduce(self, addresses: Mapping[str, list[str | int]]) -> None:
        """Send every agent the addresses of the others: host and port, by the node's name."""
        self._channel.post(Peers(dict(addresses)))

    def stage(self, order: StageOrder, timeout_s: float) -> dict[str, StageReport]:
        """Let every agent stage the environment, and wait up to `timeout_s` seconds for the reports.

        Raises
        ------
        StageError
            Some nodes failed or did not answer: the message names each of them with its reason.
        """
        self._channel.post(order)
        reports = self._answers(order.number, StageReport, timeout_s)
        self._channel.post(AllStaged())
        return reports

    def guard_launch(self, seconds: float) -> None:
        """Let every agent keep strangers from holding up the launch for that many seconds; 0 ends this."""
        self._channel.post(Launch(seconds))

    def _answers(self, number: int, kind: type[Kind], timeout_s: float) -> dict[str, Kind]:
        deadline = time.monotonic() + timeout_s
        start_ended_at: float | None = None

        def missing() -> list[str]:
            return [name for name, state in self._channel.nodes.items() if number not in state.answers]

        while missing() and time.monotonic() < deadline:
            self._channel.wait(lambda: not missing(), min(1.0, deadline - time.monotonic()))
            self._note_unreached()
            states = self._channel.nodes
            if self.process.poll() is not None:
                start_ended_at = start_ended_at or time.monotonic()
                if time.monotonic() - start_ended_at > DIAL_GRACE_S and all(
                    not states[name].connection and not states[name].lost_at for name in missing()
                ):
                    break
            if missing() and all(states[name].ended for name in missing()):
                break
        waited = f" (waited {show_duration(timeout_s)})" if time.monotonic() >= deadline else ""
        answers = {
            name: state.answers[number]
            for name, state in self._channel.nodes.items()
            if number in state.answers
        }
        ended = {name: state.ended for name, state in self._channel.nodes.items() if state.ended}
        return check_answers(self._channel.nodes, kind, answers, ended, self._last_words() + waited)

    def _note_unreached(self) -> None:
        """Note the agents that have ended because they did not reach boot: nobody else reports that."""
        with contextlib.suppress(OSError):
            for line in self._context.directory.unreached.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # half-written, or by several nodes at once
                    node, reason = json.loads(line)
                    self._channel.note_unreached(node, reason)

    def _last_words(self) -> str:
        """Return the end of what the agents, and the command that started them, have printed."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - LAST_WORDS_BYTES_MAX))
            return log.read().decode(errors="replace").strip()[-LAST_WORDS_LENGTH_MAX:]

    def settle_output(self) -> None:
        """Wait a moment until the log has the last output of ranks that have ended."""
        self._channel.settle_output()

    def note_changes(self) -> None:
        """Write to the job's events, and to boot's log, which agents were lost and which are back."""
        self._stop_start()
        done = {
            "agent-silent": "an agent that lives dials again; its ranks are left alone meanwhile",
            "lost-agent": "the job goes on; a cut-off node is cleaned by its own agent",
        }
        nodes_of: dict[tuple[str, str], list[str]] = {}
        while self._channel.changes:
            event, node, detail = self._channel.changes.popleft()
            self._context.events.write(event, host=node, detail=detail, done=done.get(event, ""))
            nodes_of.setdefault((event, detail), []).append(node)
        for (event, detail), nodes in nodes_of.items():
            more = f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""
            logger.warning("%s%s: %s: %s", ", ".join(nodes[:NODES_SHOWN]), more, event, detail)

    def are_replaced(self) -> bool:
        """Whether another boot uses the job directory, because the batch system has started the job again elsewhere."""
        try:
            return bool(json.loads(self._context.directory.channel.read_text()) != self._address)
        except (OSError, ValueError):
            return False

    def close(self, reason: str, timeout_s: float) -> None:
        """Let each agent clean its node, and wait for all agents that can be reached.

        Parameters
        ----------
        reason : str
            Why the job ends.
        timeout_s : float, seconds
            How long to wait.
        """
        deadline = time.monotonic() + timeout_s
        self.note_changes()
        self._channel.close_agents(reason)
        states = self._channel.nodes.values()
        if self._channel.wait(
            lambda: all(state.ended or not state.connection for state in states), timeout_s
        ):
            lost_s = min(REDIAL_GRACE_S, deadline - time.monotonic())
            self._channel.wait(lambda: all(state.ended or not state.lost_at for state in states), lost_s)
        wait_s = max(0.1, deadline - time.monotonic())
        if all(state.ended for state in states):
            wait_s = min(wait_s, END_GRACE_S)
        if self._all_have_dialled and self._context.system.stop_start:
            wait_s = 0.0  # it is stopped
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_s)
        if self.process.poll() is None:
            self.process.kill()  # the command waits for a lost node's agent, or for a stranger who has connected to it
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel waits for a file system
                self.process.wait(KILL_GRACE_S)
        self._channel.close()


def check_answers(
    nodes: Sequence[str] | Mapping[str, Any],
    kind: type[Kind],
    answers: Mapping[str, Answer],
    ended: Mapping[str, str],
    last_words: str,
) -> dict[str, Kind]:
    """Return the answers in the order of `nodes`, or raise an error that names every node that failed.

    Parameters
    ----------
    nodes : sequence of str
        Names of all nodes.
    kind : type
        The type of a good answer; any other is a `Failure`.
    answers : mapping of str to Answer
        The answers so far.
    ended : mapping of str to str
        Why agents have ended.
    last_words : str
        What the agents and their start command have printed, shown for nodes that neither answered nor ended.

    Raises
    ------
    StageError
        Some nodes failed or did not answer.
    """
    good = {node: answer for node in nodes if isinstance(answer := answers.get(node), kind)}
    if len(good) == len(nodes):
        return good
    failures = {node: answer.error for node in nodes if isinstance(answer := answers.get(node), Failure)}
    failures |= {node: ended[node] for node in nodes if node not in answers and node in ended}
    lines = [f"  {node}: {error}" for node, error in failures.items()]
    silent = [node for node in nodes if node not in good and node not in failures]
    if silent:
        lines.append(f"  {', '.join(silent)}: no answer. {last_words}".rstrip())
    raise StageError(
        f"{len(nodes) - len(good)} of {len(nodes)} nodes could not be prepared:\n" + "\n".join(lines),
        "Correct these failures, or exclude the nodes, and submit the job again",
    )
