"""Linux namespaces from Python: fork an init into its own, enter another's, mount inside.

Only processes keep namespaces alive: no file pins one, and no mount is made outside a private mount namespace. So the
death of an init frees all of its resources.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
ALL = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
NS_GET_MNTNS_ID = 0x8008B705  # <linux/nsfs.h>
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

OnEnd = Callable[[int, int], None]

_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def renumber_mounts() -> None:
    """Take a new mount namespace whose number is lower than that of each later one.

    mount(2) refuses to bind-mount a mount namespace whose number is below that of the caller's own, as
    job_container/tmpfs must. Linux 6.18 numbers them for each CPU apart, so that a later one can have a lower number.
    """

    def number_on(cpu: int) -> int:
        os.sched_setaffinity(0, [cpu])
        unshare(CLONE_NEWNS)
        with Path("/proc/self/ns/mnt").open() as namespace:
            return int.from_bytes(fcntl.ioctl(namespace, NS_GET_MNTNS_ID, bytes(8)), sys.byteorder)

    cpus = os.sched_getaffinity(0)
    try:
        with contextlib.suppress(OSError):  # Linux 6.9 and earlier have no such request, and one sequence
            number_on(min(cpus, key=number_on))
    finally:
        os.sched_setaffinity(0, cpus)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    args = [text.encode() for text in (source, target, fstype)]
    status = _libc.mount(args[0], args[1], args[2], ctypes.c_ulong(flags), data.encode())
    _check(status, f"mount {source} on {target}")


def bind(source: str, target: str) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)


def tmpfs(target: str, mode: str = "0755", size_mb: int | None = None) -> None:
    size = f",size={size_mb}m" if size_mb else ""
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}{size}")


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0), "prctl")


@dataclass(frozen=True)
class Process:
    """A process known by pid and start time: the kernel may give the pid alone to another process."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _start_ticks(pid))

    @classmethod
    def read(cls, path: Path) -> Process | None:
        """Return the live process that `path` names, or None."""
        try:
            process = cls(*(int(word) for word in path.read_text().split()))
        except (FileNotFoundError, TypeError, ValueError):
            return None
        return process if process.alive() else None

    def write(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(f"{self.pid} {self.start_ticks}\n")
        partial.replace(path)

    def alive(self) -> bool:
        try:
            return _start_ticks(self.pid) == self.start_ticks
        except (FileNotFoundError, ProcessLookupError):
            return False

    def kill(self, timeout_s: float) -> None:
        """Send SIGKILL; return when the process is gone and, if it is an init, its whole pid namespace."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive():
                return
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not select.select([pidfd], [], [], timeout_s)[0]:
                raise TimeoutError(f"process {self.pid} is still there {timeout_s:g} s after SIGKILL")
        finally:
            os.close(pidfd)

    def enter(self, flags: int = ALL) -> None:
        """Move the caller into this process's namespaces (into its pid namespace: the next child)."""
        pidfd = os.pidfd_open(self.pid)
        try:
            if not self.alive():
                raise ProcessLookupError(f"process {self.pid} has ended")
            _check(_libc.setns(pidfd, flags), f"setns of process {self.pid}")
        finally:
            os.close(pidfd)


def _start_ticks(pid: int) -> int:
    # proc(5), /proc/pid/stat: field 22, counted after the command's closing parenthesis; 'Z' and 'X' are dead.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


class Init:
    """An init that `spawn` has forked. It waits for `release` before it does anything."""

    def __init__(self, name: str, process: Process, gate: socket.socket) -> None:
        self.name, self.process, self._gate = name, process, gate

    def release(self) -> None:
        self._gate.sendall(b"go")

    def wait_ready(self, deadline: float) -> None:
        """Wait until its setup is done; raise RuntimeError with its message if the setup failed."""
        self._gate.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            answer = self._gate.recv(65536).decode()
        except TimeoutError:
            raise TimeoutError(f"{self.name} is not set up in time") from None
        finally:
            self._gate.close()
        if answer != "ready":
            raise RuntimeError(f"{self.name} failed to start: {answer or 'it was killed'}")


def spawn(
    name: str,
    setup: Callable[[], OnEnd],
    *,
    parent: Process | None,
    pid_file: Path,
    log: Path,
    timeout_s: float,
    flags: int = ALL,
) -> Init:
    """Fork an init into new namespaces below `parent`'s. It waits for `Init.release`, then runs `setup`.

    What `setup` returns is called with (pid, wait status) of every process that ends there.

    The pid file is written before the init is released, so an interrupted caller leaves no init that `down` cannot find:
    an init whose caller died before the release ends by itself.
    """
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.settimeout(timeout_s)
    helper = os.fork()
    if helper == 0:
        _exit_with(lambda: _fork_init(name, setup, parent, theirs, log, flags))
    theirs.close()
    os.waitpid(helper, 0)
    # The kernel translates the sender's pid into our pid namespace: unix(7), SCM_CREDENTIALS.
    credentials_size = struct.calcsize("3i")
    message, ancillary, _, _ = ours.recvmsg(65536, socket.CMSG_SPACE(credentials_size))
    if message != b"hello":
        raise RuntimeError(f"{name} failed to start: {message.decode() or 'it was killed'}")
    process = Process.of(struct.unpack("3i", ancillary[0][2][:credentials_size])[0])
    process.write(pid_file)
    return Init(name, process, ours)


def _fork_init(
    name: str, setup: Callable[[], OnEnd], parent: Process | None, gate: socket.socket, log: Path, flags: int
) -> None:
    """Fork twice: a process that joins or makes a pid namespace puts only its next child into it."""
    die_with_parent()
    if parent is not None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        parent.enter()
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
    else:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        unshare(flags)
    except OSError as error:
        gate.sendall(str(error).encode())
        return
    if os.fork() == 0:
        _exit_with(lambda: _be_init(name, setup, gate, output))


def _be_init(name: str, setup: Callable[[], OnEnd], gate: socket.socket, output: int) -> None:
    os.setsid()
    os.umask(0o022)
    os.chdir("/")
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    _close_all_but(gate.fileno())  # the init must not keep the caller's pipes and locks open
    _libc.prctl(PR_SET_NAME, f"mc-{name}".encode()[:15], 0, 0, 0)
    gate.sendall(b"hello")
    if gate.recv(2) != b"go":
        return
    try:
        on_end = setup()
    except Exception as error:
        traceback.print_exc()
        gate.sendall(str(error).encode()[:60000])
        return
    gate.sendall(b"ready")
    gate.close()
    while True:
        try:
            on_end(*os.wait())
        except ChildProcessError:
            time.sleep(0.5)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _exit_with(body: Callable[[], None]) -> None:
    """Run `body` in a forked child and end it there, whatever happens: the caller's code must not run twice."""
    status = 1
    try:
        body()
        status = 0
    except Exception:
        with contextlib.suppress(Exception):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(status)


def run_inside(process: Process, exec_command: Callable[[], None]) -> int:
    """Run a child inside `process`'s namespaces and return its exit status (128 + n where signal n ended it).

    The child is in this process's group, so it gets the terminal's signals directly. This process passes SIGTERM and
    SIGHUP on to the child, which dies with it.
    """
    for signum in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    process.enter()
    child = os.fork()
    if child == 0:
        for signum in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, signal.SIG_DFL)
        _exit_with(exec_command)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code
