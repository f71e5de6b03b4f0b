"""mpiboot's process on each node, `agent.pyc JOB_DIRECTORY`, from the job's first to its last second.

It dials boot, prepares the node, stages the environment, and starts the node's ranks. When boot asks, when it gets
SIGTERM, or when it has not heard of boot for too long, it ends the job's processes on this node and removes the job's
folder. (A program started only then would be too late: a batch system may start none in a job that is being cancelled.)
All nodes start the agent at once from the shared file system, so one file holds all its code (`agent.program_start`).

No other module imports this one. It may import what `boot.agent_program` puts into that file.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.common.locks import hold_folder
from envpack.common.mounts import file_system, is_memory
from envpack.common.places import host_name, user_folder
from mpiboot.agent import finding, stage_child
from mpiboot.agent.adopt import Ranks
from mpiboot.agent.folders import clean, make_job_folder
from mpiboot.agent.launch_guard import LaunchGuard
from mpiboot.agent.output import RanksOutput
from mpiboot.agent.threads import in_thread
from mpiboot.common.confinement import allowed_cpus, memory_limit_bytes
from mpiboot.common.faults import unexpected
from mpiboot.common.interfaces import interfaces, unusable_interfaces
from mpiboot.common.processes import host_identity, host_memory_bytes, process_ids, process_start
from mpiboot.common.trust import check_trusted, open_trusted
from mpiboot.common.units import show_duration
from mpiboot.common.version import VERSION
from mpiboot.errors import MpibootError, StageError
from mpiboot.protocol import channel
from mpiboot.protocol.channel import Connection
from mpiboot.protocol.channel_messages import (
    AllStaged,
    ArchiveRequest,
    ChannelAddress,
    Close,
    Ended,
    Failure,
    Heartbeat,
    Hello,
    Launch,
    NodeReport,
    Orders,
    Peers,
    Question,
    Refused,
    Sighting,
    StageOrder,
    StageReport,
    shorten,
)
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.listener import Listener
from mpiboot.protocol.node import start_failure
from mpiboot.protocol.variables import JOB_KEY_VARIABLE

if TYPE_CHECKING:
    from mpiboot.agent.archive_copy import ArchiveCopy

# Keep the sum of this and the graces in sweep.py below the shortest time that a batch system leaves a cancelled job
# between SIGTERM and SIGKILL, after which it kills the agents.
LEFTOVERS_GRACE_S = 2.5
CANCEL_TIMEOUT_S = 30.0
# Several agents may find at the same time that the first node is lost. Their cancel commands are this far apart.
CANCEL_STEP_S = 0.5
REDIAL_S = 1.0
ADOPT_TIMEOUT_S = 30.0
PREPARE_TIMEOUT_S = 600.0
CLEAN_TIMEOUT_S = 20.0
# How long a call on the shared file system may take. The file system may hang when the network is cut.
FILES_TIMEOUT_S = 5.0
# For another job's stager, which holds a stage alone while it mends it.
HOLD_TIMEOUT_S = 60.0
FLUSH_S = 2.0
GUARD_GRACE_S = 60.0
ADDRESS_MAX_BYTES = 1 << 16
# The longest line that the staging child may print. With a tree, its first line has 20 bytes per MiB of the environment.
LINE_MAX_BYTES = 1 << 24

Answer = NodeReport | StageReport | Failure


@dataclass(frozen=True)
class Ending:
    """Why the agent ends.

    Attributes
    ----------
    reason : str
        The reason, as the log shows it.
    status : int
        The agent's exit status.
    job_ends : bool
        Whether the whole job ends, so that the job directory must be cleared even if boot was killed.
    """

    reason: str
    status: int = 0
    job_ends: bool = False


class RefusedError(Exception):
    """Boot does not take this agent."""


def main() -> int:
    if sys.argv[1] == stage_child.FLAG:
        return stage_child.main()
    directory = JobDirectory(Path(sys.argv[1]))
    # Boot acts on the terminal's and the walltime's signals.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        check_trusted(directory.path, "directory")
        address = ChannelAddress.from_json(open_trusted(directory.channel, ADDRESS_MAX_BYTES))
        return asyncio.run(run(directory, address))
    except (OSError, ValueError, MpibootError) as error:
        print(f"mpiboot: the agent on {host_name()} cannot start: {error}", file=sys.stderr)
    except Exception as error:
        print(f"mpiboot: the agent on {host_name()} ends: {unexpected(error)}", file=sys.stderr)
    return 1


async def run(directory: JobDirectory, address: ChannelAddress) -> int:
    return await Agent(directory, address).run()


def has_stage(prefix: Path, pack_id: str | None) -> bool:
    """Return whether the node has a stage that a stager would use: not one from before a reboot, for example."""
    if not prefix.is_dir():
        return False
    from envpack.stage.marker import is_trusted

    return is_trusted(prefix, pack_id)


class Agent:
    """The agent of this node.

    Parameters
    ----------
    directory : JobDirectory
        The job's directory.
    address : ChannelAddress
        Where boot listens.
    """

    def __init__(self, directory: JobDirectory, address: ChannelAddress) -> None:
        variable = address.node_variable
        self.node = (os.environ.get(variable) if variable else None) or host_name()
        self.directory = directory
        self.address = address
        self.context = channel.client_context(directory.tls)
        self.connection: Connection | None = None
        self.orders: Orders | None = None
        self.answers: dict[int, Answer] = {}
        self.begun: set[int] = set()
        self.peers: dict[str, list[str | int]] = {}
        self.folder: Path | None = None
        self.ranks: Ranks | None = None
        self.stager: asyncio.subprocess.Process | None = None
        self.copy: ArchiveCopy | None = None
        self.launch_is_over = threading.Event()
        self.output = RanksOutput()
        # Seconds since boot was last heard of, without the time in which the job was suspended.
        self.silent_s = 0.0
        # Boot's sign of life on the shared file system, read when the silence began.
        self.sign_before: bytes | None = None
        # Why the last attempt to reach boot failed.
        self.last_fault = "it has not answered yet"
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.tasks: set[asyncio.Task[None]] = set()
        self.executing: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until there is a reason to end; then clean the node, and return the exit status."""
        cancelled = Ending("SIGTERM came: the job was cancelled, or somebody ended the agent", job_ends=True)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.end, cancelled)
        loop.set_exception_handler(self._note_fault)
        self.start(self.follow_boot())
        self.start(self.watch_silence())
        return (await self.close(await self.ending)).status

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start a task. If it fails, the agent ends."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.end(Ending(unexpected(error), status=1))

    def _note_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error in the service of one connection; the agent does not end."""
        if error := context.get("exception"):
            self.output.say(f"mpiboot: the agent on {self.node}: {unexpected(error)}\n".encode())

    def end(self, ending: Ending) -> None:
        """Let the agent end. Only the first call counts: its reason is reported."""
        if not self.ending.done():
            self.ending.set_result(ending)

    # The connection to boot.

    async def follow_boot(self) -> None:
        """Dial boot and follow its orders; dial again whenever the connection is lost."""
        while True:
            try:
                self.connection, orders = await channel.dial_first(
                    self.address.addresses, self.address.port, self.context, self.greet
                )
                self.silent_s = 0.0
                self.output.connect(self.connection)
                await self.follow(self.connection, orders)
            except RefusedError as error:
                return self.end(Ending(f"boot refuses it: {error}", status=1))
            except OSError as error:
                self.last_fault = str(error)
                lost = f"mpiboot: the agent on {self.node} has lost boot: {error}"
                if self.connection:
                    self.output.connect(None)
                    self.output.say(f"{lost}\n".encode())
            finally:
                if self.connection:
                    self.connection.close()
                    self.output.connect(None)
                self.connection = None
            if self.boot_has_ended():
                return self.end(Ending("boot has ended without closing the job", job_ends=True))
            # Vary the pause, so that agents that lost boot at the same time do not all dial again at the same time.
            await asyncio.sleep(REDIAL_S * (0.5 + os.getpid() % 100 / 100))

    async def greet(self, connection: Connection) -> Orders:
        """Exchange the first messages with boot.

        Raises
        ------
        RefusedError
            Boot does not take this agent.
        OSError
            The other side is not boot.
        """
        await connection.send(Hello(VERSION, self.node, host_name(), os.getpid()))
        answer, _ = await connection.receive()
        if isinstance(answer, Refused):
            raise RefusedError(answer.reason)
        if not isinstance(answer, Orders):
            raise ConnectionError(f"{type(answer).__name__} came instead of orders")
        return answer

    async def follow(self, connection: Connection, orders: Orders) -> None:
        """Follow boot's orders; raise OSError when the connection is lost."""
        heartbeats = self.start(self.send_heartbeats(connection))
        try:
            self.orders = orders
            self.execute(orders, self.prepare)
            for answer in list(self.answers.values()):  # boot may not have got them on an earlier connection
                connection.post(answer)
            while True:
                message, _ = await connection.receive()
                self.silent_s = 0.0
                match message:
                    case StageOrder():
                        self.execute(message, self.stage)
                    case Peers(addresses):
                        self.peers = addresses
                    case AllStaged():
                        if self.copy:
                            self.copy.free()
                    case Launch(seconds):
                        self.start(self.guard_launch(seconds))
                    case Close(reason):
                        self.end(Ending(reason))
        finally:
            heartbeats.cancel()

    async def send_heartbeats(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(channel.HEARTBEAT_S)
                await connection.send(Heartbeat())

    def execute(self, order: Any, act: Callable[[Any], Awaitable[Answer]]) -> None:
        """Start to execute an order, and send boot the answer; do nothing if it was started before or the agent ends."""
        if order.number not in self.begun and not self.ending.done():
            self.begun.add(order.number)
            self.executing = self.start(self._execute(order, act))

    async def _execute(self, order: Any, act: Callable[[Any], Awaitable[Answer]]) -> None:
        try:
            answer = await act(order)
        except Exception as error:
            answer = Failure(order.number, shorten(str(error) or type(error).__name__))
        self.answers[order.number] = answer
        if self.connection:
            self.connection.post(answer)

    def boot_has_ended(self) -> bool:
        """Whether boot's process is gone; False if that cannot be seen from here."""
        is_here = host_identity() == self.address.host_identity
        return is_here and process_start(self.address.pid) != self.address.start

    async def is_replaced(self) -> bool:
        """Whether another boot runs the job: the batch system has started it again, in the same job directory."""
        try:
            content = await in_thread(
                FILES_TIMEOUT_S, open_trusted, self.directory.channel, ADDRESS_MAX_BYTES
            )
            return ChannelAddress.from_json(content) != self.address
        except (OSError, ValueError, MpibootError):
            return False  # the job directory was cleared, or its file system is slow

    # Orders.

    async def prepare(self, orders: Orders) -> NodeReport:
        """Make the job's folder on this node, listen for the node's ranks and the other agents, and report."""
        self.folder = await in_thread(
            PREPARE_TIMEOUT_S, make_job_folder, Path(orders.root), orders.job_key, orders.job_variables
        )
        self.ranks = Ranks(self.folder, self.node, self.output.writer, self.output.reader)
        asyncio.get_running_loop().add_reader(self.ranks.listener, self.accept_rank)
        port = 0
        if orders.n_nodes > 1:
            low, high = orders.ports or (0, 0)
            listener = Listener(
                "",
                channel.server_context(self.directory.tls),
                self.answer_peer,
                orders.n_nodes,
                range(low, high + 1),
            )
            self.start(listener.run())
            port = listener.port
        prefix = orders.prefix
        return NodeReport(
            number=orders.number,
            interfaces=interfaces(orders.interface),
            memory_bytes=host_memory_bytes(),
            cpus=os.cpu_count() or 1,
            root_is_memory=is_memory(file_system(self.folder)[0]),
            has_stage=prefix is not None and has_stage(Path(prefix), orders.pack_id),
            port=port,
            unusable_interfaces=unusable_interfaces(),
            allowed_cpus=allowed_cpus(),
            memory_limit_bytes=memory_limit_bytes(),
        )

    def accept_rank(self) -> None:
        """Let the fork server start the rank whose stand-in has connected."""
        assert self.ranks
        with contextlib.suppress(OSError):  # the stand-in has ended
            connection, _ = self.ranks.listener.accept()
            self.start(self.adopt(connection))

    async def adopt(self, connection: socket.socket) -> None:
        """Start one rank. A stand-in that fails, or takes too long, does not affect the node's other ranks."""
        assert self.ranks
        try:
            await in_thread(ADOPT_TIMEOUT_S, self.ranks.adopt, connection)
        except Exception as error:
            self.output.say(f"{start_failure(error)}\n".encode())

    async def stage(self, order: StageOrder) -> StageReport:
        """Stage the environment in a child process; with a tree, while the archive arrives.

        Raises
        ------
        StageError
            The child ended without a result.
        OSError
            Staging failed; the message is the child's.
        """
        orders = self.orders
        assert orders and self.folder
        copy = None
        if self.node in order.tree:
            # Import them only here: at the start of every agent, they would open three more files.
            from mpiboot.agent import archive_copy, tree

            copy = self.copy = archive_copy.ArchiveCopy(self.folder, order.number, user_folder(orders.root))
            tree.start_filling(copy, order, self.node, self.peers, self.context)
        task = {
            "archive": order.archive,
            "root": orders.root,
            "threads": orders.threads,
            "pack_id": orders.pack_id,
            "transport": order.transport,
            "carried": order.carried,
            "copy": copy and copy.descriptors,
        }
        pipe = asyncio.subprocess.PIPE
        self.stager = await asyncio.create_subprocess_exec(
            *(sys.executable, *sys.orig_argv[1:-1], stage_child.FLAG),
            env={**os.environ, JOB_KEY_VARIABLE: orders.job_key},
            stdin=pipe,
            stdout=pipe,
            stderr=self.output.writer,
            pass_fds=copy.descriptors if copy else (),
            limit=LINE_MAX_BYTES,
        )
        if self.ending.done():  # while the process was starting
            self.stager.terminate()
        assert self.stager.stdin and self.stager.stdout
        self.stager.stdin.write(json.dumps(task).encode())
        self.stager.stdin.close()
        line = await self.stager.stdout.readline()
        if copy and copy.learn(line):
            line = await self.stager.stdout.readline()
        status = await self.stager.wait()
        try:
            result = json.loads(line)
        except ValueError as error:
            raise StageError(
                f"the process that stages the environment ended with status {status}, without a result",
                "See what it has printed: mpiboot logs",
            ) from error
        if "error" in result:
            raise OSError(copy.explain(result["error"]) if copy else result["error"])
        # Until this agent ends, another job that is short of room keeps the stage, even if the ranks start much later.
        await in_thread(HOLD_TIMEOUT_S, hold_folder, result["stage"]["prefix"])
        if copy:
            result["stage"]["evicted"] += copy.evicted
        if copy and copy.passed_by:
            result["stage"]["passed_by"] = "; ".join(copy.passed_by)
        return StageReport(order.number, result["stage"])

    async def guard_launch(self, seconds: float) -> None:
        """Keep strangers from holding up the launcher for `seconds`, or until boot ends that; 0 only ends it."""
        self.launch_is_over.set()
        if not seconds or not self.orders:
            return
        over = self.launch_is_over = threading.Event()
        addresses = [str(host) for host, _ in self.peers.values()]
        try:
            guard = LaunchGuard(self.orders.job_key, addresses)
            words = await in_thread(seconds + GUARD_GRACE_S, guard.run, over, seconds)
        except Exception as error:  # the launch may go well without a guard
            words = f"the launcher is not guarded against strangers: {error}"
        if words:
            self.output.say(f"mpiboot: {self.node}: {words}\n".encode())

    # Silence.

    async def watch_silence(self) -> None:
        """Count the seconds in which nothing is heard of boot; after SILENCE_S, decide how to end."""
        while not self.ending.done():
            began = time.monotonic()
            await asyncio.sleep(1.0)
            before, self.silent_s = self.silent_s, self.silent_s + min(time.monotonic() - began, 2.0)
            if before < channel.CONNECTION_SILENCE_S <= self.silent_s:
                self.sign_before = await self.read_sign()
            if self.silent_s >= channel.SILENCE_S:
                await self.judge()

    async def read_sign(self) -> bytes | None:
        """Read boot's sign of life on the shared file system; None if that cannot be read."""
        try:
            return await in_thread(FILES_TIMEOUT_S, self.directory.heartbeat.read_bytes)
        except OSError:  # and TimeoutError
            return None

    async def answer_peer(self, connection: Connection) -> None:
        """Answer another agent's question whether boot lives, or its request for the archive."""
        while True:
            message, _ = await connection.receive()
            match message:
                case Question():
                    await connection.send(Sighting(self.silent_s < channel.CONNECTION_SILENCE_S))
                case ArchiveRequest():
                    from mpiboot.agent import tree

                    return await tree.answer(connection, message, lambda: self.copy)
                case _:
                    return  # the other side mistakes this agent for boot

    async def judge(self) -> None:
        """Decide how to end after SILENCE_S without boot: cancel the job if the first node is lost, else end alone."""
        silence = show_duration(channel.SILENCE_S)
        if self.orders is None:
            unreached = f"boot could not be reached for {silence}: {self.last_fault}"
            firewall = (
                "If a firewall is between the nodes, name ports that it leaves open: --worker-port LOW:HIGH"
            )
            return self.end(Ending(f"{unreached}. {firewall}", status=1))
        asked = finding.to_be_asked(self.peers, self.node, self.orders.first_node)
        sightings = await finding.ask([self.peers[name] for name in asked], self.context)
        if await self.is_replaced():
            return self.end(Ending("the job was started again: another boot runs it", status=1))
        sign = await self.read_sign()
        has_changed = None if sign is None or self.sign_before is None else sign != self.sign_before
        if self.silent_s < channel.SILENCE_S:
            return  # boot is back
        first = self.orders.first_node
        if not finding.first_node_is_lost(sightings, has_changed):
            return self.end(
                Ending(f"this node is cut off: nothing was heard of boot, on {first}, for {silence}")
            )
        position = sorted([*asked, self.node]).index(self.node)
        reason = f"the first node, {first}, is lost: nothing was heard of it for {silence}"
        await self.cancel_job(self.orders, reason, position * CANCEL_STEP_S)
        self.end(Ending(reason, job_ends=True))

    async def cancel_job(self, orders: Orders, reason: str, delay_s: float) -> None:
        """Cancel the job after `delay_s` seconds, and record why.

        Some batch systems let a job go on without its first node.
        """
        if orders.cancel_command is None:
            return
        await asyncio.sleep(delay_s)
        if self.ending.done():
            return
        # The cancelled job's SIGTERM must not interrupt what follows.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # The command may be on a file system of the lost node.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            command = await asyncio.create_subprocess_exec(
                *orders.cancel_command, stdin=asyncio.subprocess.DEVNULL
            )
            if await asyncio.wait_for(command.wait(), CANCEL_TIMEOUT_S) == 0:
                await in_thread(FILES_TIMEOUT_S, self.record_loss, reason)

    def record_loss(self, reason: str) -> None:
        """Write the job's last event, which boot can no longer write: nothing else records why the job was cancelled."""
        events = EventLog(self.directory.events)
        events.write("closed", reason=reason, detail="", exit_status=1, host=self.node)
        events.close()

    # The end.

    async def close(self, ending: Ending) -> Ending:
        """End the job's processes on this node, remove its folder, and report why; return what was reported.

        A step that fails stops no other.
        """
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.launch_is_over.set()
        faults = []
        for part in (
            self._free_descriptors,
            self._continue_start,
            self._end_stager,
            self._end_ranks,
            self._clean,
            self._clear,
        ):
            try:
                await part(ending)
            except Exception as error:
                faults.append(f"{error or type(error).__name__}")
        if faults:
            left = f"{ending.reason}; something of the job may be left on this node: {'; '.join(faults)}"
            ending = Ending(left, status=1, job_ends=ending.job_ends)
        await self.say_why(ending)
        return ending

    async def _free_descriptors(self, _: Ending) -> None:
        """Raise the limit of open files to the hard limit, so that the clean-up does not run out of descriptors."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def _continue_start(self, _: Ending) -> None:
        """After boot's death, continue the command that started the agents, which boot has stopped."""
        if self.boot_has_ended():
            continue_stopped(str(self.directory.agent_program))

    async def _end_stager(self, _: Ending) -> None:
        if self.stager and self.stager.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.stager.terminate()
        if self.executing:
            await asyncio.wait({self.executing}, timeout=LEFTOVERS_GRACE_S)

    async def _end_ranks(self, _: Ending) -> None:
        """Start no more ranks."""
        if self.ranks:
            asyncio.get_running_loop().remove_reader(self.ranks.listener)
            self.ranks.close()

    async def _clean(self, _: Ending) -> None:
        """Clean the node in a thread, while the event loop reads the ranks' last output."""
        if self.folder and self.orders:
            arguments = self.folder, self.orders.job_variables, LEFTOVERS_GRACE_S
            try:
                await in_thread(CLEAN_TIMEOUT_S, clean, *arguments)
            except RuntimeError:  # no thread can be started
                clean(*arguments)

    async def _clear(self, ending: Ending) -> None:
        """Clear the job directory of secrets if boot may have been killed before it did so.

        The first node's agent always does it. Another one does it if the job ends and it cannot reach boot, or if it sees
        that boot's process is gone. None does it if the job was started again.
        """
        is_first = self.orders and self.node == self.orders.first_node
        is_alone = self.orders and ending.job_ends and not self.connection
        if (is_first or is_alone or self.boot_has_ended()) and not await self.is_replaced():
            await in_thread(FILES_TIMEOUT_S, self.directory.clear)

    async def say_why(self, ending: Ending) -> None:
        """Tell boot why the agent ends; without a connection, write it to the job's log, or print it."""
        words = f"mpiboot: the agent on {self.node} ends: {ending.reason}\n"
        try:
            await self.output.finish(FLUSH_S)
            if self.connection:
                self.connection.post(Ended(shorten(ending.reason)))
                await self.connection.end(FLUSH_S)
                return
            last = self.output.close() + words.encode(errors="backslashreplace")
            await in_thread(FILES_TIMEOUT_S, append, self.directory.ranks_log, last)
            line = json.dumps([self.node, ending.reason]) + "\n"
            await in_thread(FILES_TIMEOUT_S, append, self.directory.unreached, line.encode())
        except Exception:
            print(words, end="", file=sys.stderr, flush=True)


def continue_stopped(program: str) -> None:
    """Continue the command that started the agents, which boot has stopped: the batch system waits for it."""
    for pid in process_ids():
        with contextlib.suppress(OSError):
            if program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGCONT)


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
