"""Keeps strangers from holding up the start of the ranks.

Open MPI's launcher and daemons wait without a time limit for the first message on a connection, and do nothing else
meanwhile: PMIx 5.0 (`ptl/base`, on the loopback) as soon as it has accepted the connection, PRRTE 3.0 (`oob/tcp`, on all
addresses) once a part of the message has arrived. No parameter changes that. So while the ranks start, the agent
duplicates these processes' sockets (pidfd_getfd(2)): it sets their listening sockets to pass on only connections on which
something has arrived, and shuts down strangers' connections, whatever these have sent. Once the ranks are up, they no
longer need these processes.

Only the agent imports this module. It imports `common.processes` and `protocol.variables`.
"""

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mpiboot.common.processes import process_ids
from mpiboot.protocol.variables import JOB_KEY_VARIABLE

# The guarded programs: those of Open MPI 5, then those of Open MPI 4. MPICH's launcher never blocks on a read.
GUARDED_PROGRAMS = frozenset(("prterun", "prted", "orterun", "orted"))
LOOK_S = 0.05
# After a look, the guard pauses four times as long as the look took, and so uses at most a fifth of a core. While
# strangers come it pauses only for LOOK_AGAIN_S, because the next one may be waiting in the queue.
PAUSE_RATIO = 4.0
LOOK_AGAIN_S = 0.001
# How long a connection from another host may be without a first message: from one of the job's nodes, and from elsewhere.
# A daemon sends its first message as soon as it has connected.
NODE_HELLO_S = 5.0
FOREIGN_HELLO_S = 0.02
# How long the kernel holds back a connection on which nothing has arrived (tcp(7), TCP_DEFER_ACCEPT).
DEFER_S = 3600
BACKLOG = 1 << 16  # the kernel takes less: net.core.somaxconn

# Linux 5.3 and 5.6; the same numbers on all architectures. A Python built for older kernels has no function for them.
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_ESTABLISHED, _LISTEN = 0x01, 0x0A  # net/tcp_states.h
_STATES = ("01", "0A")
_MAPPED_IPV4 = bytes(10) + b"\xff\xff"


End = tuple[bytes, int]  # packed address, and port


class TcpSocket(NamedTuple):
    """One line of /proc/net/tcp or /proc/net/tcp6 (proc_net_tcp(5)).

    Attributes
    ----------
    local, remote : End
        Both ends.
    state : int
        As in `net/tcp_states.h`.
    unread_bytes : int
        How many bytes have arrived that the process has not read.
    user : int
        The owner's user id.
    inode : int
        Identifies the socket; 0 if no process has accepted it yet.
    """

    local: End
    remote: End
    state: int
    unread_bytes: int
    user: int
    inode: int


def parse_sockets(text: str) -> list[TcpSocket]:
    """Return the listening sockets and established connections in the text of /proc/net/tcp or /proc/net/tcp6."""
    return [
        TcpSocket(_end(local), _end(remote), int(state, 16), int(queues[9:], 16), int(user), int(inode))
        for line in text.splitlines()[1:]
        for _, local, remote, state, queues, _, _, user, _, inode in [line.split(maxsplit=10)[:10]]
        if state in _STATES
    ]


def _end(text: str) -> End:
    """Return address and port of a text such as `0100007F:1F90`, whose words are in the host's byte order."""
    digits, _, port = text.partition(":")
    words = (int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8))
    return b"".join(words).removeprefix(_MAPPED_IPV4), int(port, 16)


class LaunchGuard:
    """Guards the processes of one job's launch on this node.

    Parameters
    ----------
    job_key : str
        The job's key, which its processes have in their environment.
    nodes : collection of str
        IPv4 addresses from which the job's nodes connect.

    Attributes
    ----------
    left : set of int
        Inodes of strangers' connections that could not be shut down.
    """

    def __init__(self, job_key: str, nodes: Collection[str]) -> None:
        self._job_key = job_key
        self._nodes = {socket.inet_aton(address) for address in nodes}
        # Inodes of sockets: listening ones that defer, connections with a first message, and those of strangers.
        self._deferred: set[int] = set()
        self._settled: set[int] = set()
        self._shut: set[int] = set()
        self.left: set[int] = set()
        self._pending_since: dict[int, float] = {}
        self._failure: Exception | None = None

    def run(self, stop: threading.Event, seconds: float) -> str:
        """Guard for that many seconds, or until `stop` is set; return a sentence on what was shut down, "" if nothing."""
        give_up_at = time.monotonic() + seconds
        processes: list[int] = []
        more = False
        while not stop.is_set() and (began := time.monotonic()) < give_up_at:
            if not more:
                processes = list(guarded_processes(self._job_key))
            more = bool(processes) and self.look(processes)
            spent_s = time.monotonic() - began
            stop.wait(LOOK_AGAIN_S if more else max(LOOK_S, PAUSE_RATIO * spent_s))
        words = []
        if self._shut:
            words.append(f"{len(self._shut)} connections of strangers to the launcher were shut down")
        if self.left:
            words.append(
                f"{len(self.left)} connections of strangers could not be shut down, and may have held up the launch: "
                f"{self._failure}"
            )
        return "; ".join(words)

    def look(self, processes: Collection[int]) -> bool:
        """Look at all connections of some processes once; return whether more strangers may wait."""
        # List descriptors before the kernel's tables: a socket that opens in between is found by the next look.
        opened = {pid: sockets_of(pid) for pid in processes}
        files = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        table = [each for file in files if file.exists() for each in parse_sockets(file.read_text())]
        by_inode = {each.inode: each for each in table}
        # The user at the other end of a connection, unless that is on another host.
        users = {(each.remote, each.local): each.user for each in table if each.state == _ESTABLISHED}
        n_shut, ports = len(self._shut), set[int]()
        for pid, descriptors in opened.items():
            sockets = {fd: by_inode[inode] for fd, inode in descriptors.items() if inode in by_inode}
            ports |= self._look_at(pid, sockets, users)
        waiting = (each for each in table if not each.inode and each.local[1] in ports)
        own = os.getuid()
        return len(self._shut) > n_shut or any(users.get(each[:2], own) != own for each in waiting)

    def _look_at(
        self, pid: int, sockets: Mapping[int, TcpSocket], users: Mapping[tuple[End, End], int]
    ) -> set[int]:
        """Look at the sockets of one process; return the ports on which it listens."""
        ports = {each.local[1] for each in sockets.values() if each.state == _LISTEN}
        for fd, each in sockets.items():
            if each.state == _LISTEN:
                if each.inode not in self._deferred:
                    self._deferred.add(each.inode)
                    self._act(pid, fd, each, defer_accept)
            elif each.local[1] in ports:
                user = users.get(each[:2])
                if self.is_silent(pid, fd, each) if user is None else user != os.getuid():
                    done = self._act(pid, fd, each, shut_down)
                    (self._shut if done else self.left).add(each.inode)
        return ports

    def is_silent(self, pid: int, fd: int, connection: TcpSocket) -> bool:
        """Whether the first message on a connection from another host is overdue.

        This host does not know the owner of the other end. The job's daemons connect from `nodes` or from an IPv6
        address, so such a connection gets more time.
        """
        if connection.inode in self._settled:
            return False
        if not is_pending(pid, fd):
            self._settled.add(connection.inode)
            return False
        if connection.unread_bytes:
            return False
        address, now = connection.remote[0], time.monotonic()
        may_be_ours = address in self._nodes or len(address) > 4
        since = self._pending_since.setdefault(connection.inode, now)
        return now - since >= (NODE_HELLO_S if may_be_ours else FOREIGN_HELLO_S)

    def _act(self, pid: int, fd: int, expected: TcpSocket, act: Callable[[socket.socket], None]) -> bool:
        """Act on a socket of another process; return False if that failed although the socket still exists."""
        try:
            with duplicate(pid, fd) as its_socket:
                # The descriptor may belong to another socket by now.
                if os.fstat(its_socket.fileno()).st_ino == expected.inode:
                    act(its_socket)
        except (OSError, ImportError) as error:
            if getattr(error, "errno", None) not in (errno.ESRCH, errno.EBADF, errno.ENOTCONN):
                self._failure = error
                return False
        return True


def guarded_processes(job_key: str) -> Iterator[int]:
    """Yield the ids of this job's processes that run one of GUARDED_PROGRAMS."""
    mark = f"{JOB_KEY_VARIABLE}={job_key}".encode()
    for pid in process_ids():
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            if (
                process.stat().st_uid == os.getuid()
                and (process / "exe").readlink().name in GUARDED_PROGRAMS
                and mark in (process / "environ").read_bytes().split(b"\0")
            ):
                yield pid


def sockets_of(pid: int) -> dict[int, int]:
    """Return the inode of each socket of a process, by its descriptor (proc_pid_fd(5))."""
    result = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                kind, _, inode = os.readlink(entry.path).partition(":")  # noqa: PTH115 - read often
                if kind == "socket":
                    result[int(entry.name)] = int(inode.strip("[]"))
    return result


def is_pending(pid: int, fd: int) -> bool:
    """Whether Open MPI still waits for a connection's first message. Later it makes the connection non-blocking."""
    with contextlib.suppress(OSError):  # it was closed meanwhile
        for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("flags:"):
                return not int(line.split()[1], 8) & os.O_NONBLOCK
    return False


def duplicate(pid: int, fd: int) -> socket.socket:
    """Return a duplicate of another process's socket.

    Raises
    ------
    OSError
        This process may not trace the other one (PTRACE_MODE_ATTACH_REALCREDS in ptrace(2)), or it has ended.
    """
    import ctypes  # here, because it would be one more file to read at the start of every agent

    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, number: int, *arguments: int) -> int:
        descriptor = int(libc.syscall(number, *arguments))
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
        return descriptor

    pidfd = call("pidfd_open", _PIDFD_OPEN, pid, 0)
    try:
        return socket.socket(fileno=call("pidfd_getfd", _PIDFD_GETFD, pidfd, fd, 0))
    finally:
        os.close(pidfd)


def defer_accept(listener: socket.socket) -> None:
    """Set a listening socket to pass on only connections on which something has arrived, and lengthen its queue."""
    listener.listen(BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_S)


def shut_down(connection: socket.socket) -> None:
    """Shut a connection down, so that the process that reads it sees its end."""
    connection.shutdown(socket.SHUT_RDWR)
