"""Count a command's requests to the shared file system: `file_requests.py FOLDER ... --command PROGRAM ARGUMENT ...`.

The command runs in a mount namespace where each FOLDER lies behind sshfs, at its own path and with nothing in the
client's cache, as on a node on which nobody has started Python yet. The requests that pass from sshfs to its server are
counted by kind. Needs root, sshfs and OpenSSH's sftp-server; the command's output goes to stderr.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import queue
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
)
MOUNT_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 120.0
IN_NAMESPACE = "FILE_REQUESTS_NAMESPACE"
# Types of requests (draft-ietf-secsh-filexfer-02, section 3): those that name a path, then those that name an open file.
PATH_KINDS = {
    3: "open",
    7: "lstat",
    9: "setstat",
    11: "opendir",
    13: "remove",
    14: "mkdir",
    15: "rmdir",
    16: "realpath",
    17: "stat",
    18: "rename",
    19: "readlink",
    20: "symlink",
}
OTHER_KINDS = {
    1: "init",
    4: "close",
    5: "read",
    6: "write",
    8: "fstat",
    10: "fsetstat",
    12: "readdir",
    200: "extended",
}


class Request(NamedTuple):
    """One request: its kind, and the path that it names; "" if it names none."""

    kind: str
    path: str


class Counted(NamedTuple):
    """The requests to the shared file system.

    Attributes
    ----------
    requests : list of Request
        All requests, folder by folder, in the order in which they were sent.
    read_bytes : int
        Bytes that the servers sent, including the protocol's headers.
    """

    requests: list[Request]
    read_bytes: int

    @classmethod
    def of(cls, relays: Sequence[Relay]) -> Counted:
        """Return the requests that the relays have counted so far."""
        requests = [request for relay in relays for request in relay.requests]
        return cls(requests, sum(relay.read_bytes for relay in relays))

    def summary(self) -> dict[str, object]:
        """Return the numbers of requests and of bytes.

        `without_reads` counts the requests for metadata; sshfs reads 32 KiB per request, other clients up to 1 MiB.
        `distinct` counts each path once per kind, as for a client that remembers for a while which files are missing.
        """
        kinds = collections.Counter(request.kind for request in self.requests)
        named = [request for request in self.requests if request.path]
        return {
            "requests": len(self.requests),
            "without_reads": len(self.requests) - kinds["read"],
            "distinct": len(set(named)),
            "by_kind": dict(kinds.most_common()),
            "read_bytes": self.read_bytes,
        }


class Relay:
    """Passes packets between sshfs and the server, and keeps the kind and path of each request."""

    def __init__(self, server: subprocess.Popen[bytes], delay_s: float = 0.0) -> None:
        assert server.stdin and server.stdout
        self.requests: list[Request] = []
        self.read_bytes = 0
        self._delay_s = delay_s
        self._delayed: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        from_sshfs, self.sshfs_stdout = os.pipe()
        self.sshfs_stdin, to_sshfs = os.pipe()
        for target, arguments in (
            (self._take_requests, (os.fdopen(from_sshfs, "rb"),)),
            (self._pass_requests, (server.stdin,)),
            (self._pass_answers, (server.stdout, to_sshfs)),
        ):
            threading.Thread(target=ignore_end(target), args=arguments, daemon=True).start()

    def _take_requests(self, source: BinaryIO) -> None:
        while len(head := source.read(4)) == 4:
            body = source.read(*struct.unpack(">I", head))
            self.requests.append(parse(body))
            self._delayed.put((time.monotonic() + self._delay_s, head + body))
        self._delayed.put((0.0, b""))

    def _pass_requests(self, target: BinaryIO) -> None:
        while True:
            due, packet = self._delayed.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not packet:
                break
            target.write(packet)
            target.flush()
        target.close()

    def _pass_answers(self, source: BinaryIO, target: int) -> None:
        while data := os.read(source.fileno(), 1 << 20):
            self.read_bytes += len(data)
            with memoryview(data) as view:
                while view:
                    view = view[os.write(target, view) :]
        os.close(target)


def ignore_end(run: Callable[..., None]) -> Callable[..., None]:
    """Return a function that ends without an error when the other side of its pipe has ended."""

    def run_quietly(*arguments: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            run(*arguments)

    return run_quietly


def parse(body: bytes) -> Request:
    """Return the kind and path of a request, from a packet without its length."""
    kind = body[0]
    if kind in PATH_KINDS:
        (length,) = struct.unpack_from(">I", body, 5)
        return Request(PATH_KINDS[kind], body[9 : 9 + length].decode(errors="replace"))
    return Request(OTHER_KINDS.get(kind, str(kind)), "")


@contextmanager
def behind_sshfs(folder: Path, delay_s: float = 0.0) -> Iterator[Relay]:
    """Put a folder behind sshfs, at its own path, for this process and those that it starts.

    Parameters
    ----------
    delay_s : float, seconds
        The latency of each request. Several requests are on their way at once, and keep their order.
    """
    sftp_server = next(path for path in SFTP_SERVERS if Path(path).exists())
    # Its working directory is the folder below the mount.
    server = subprocess.Popen([sftp_server], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    relay = Relay(server, delay_s)
    options = "passive,allow_other,default_permissions,no_contain_symlinks"
    sshfs = subprocess.Popen(
        ["sshfs", "-f", "-o", options, ":.", str(folder)],
        stdin=relay.sshfs_stdin,
        stdout=relay.sshfs_stdout,
    )
    os.close(relay.sshfs_stdin)
    os.close(relay.sshfs_stdout)
    try:
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while not os.path.ismount(folder):
            if time.monotonic() > deadline or sshfs.poll() is not None:
                raise RuntimeError(f"sshfs did not mount {folder} within {MOUNT_TIMEOUT_S:g} s")
            time.sleep(0.02)
        relay.requests.clear()
        relay.read_bytes = 0
        yield relay
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
        for process in (sshfs, server):
            process.kill()
            process.wait()


@contextmanager
def behind(folders: Sequence[Path], delay_s: float = 0.0) -> Iterator[list[Relay]]:
    """Put several folders behind sshfs. The Python that runs this serves them, so it must be in none of them."""
    for folder in folders:
        if Path(sys.executable).resolve().is_relative_to(folder) or Path(sys.prefix).is_relative_to(folder):
            raise SystemExit(f"run this by a Python that is not in {folder}: /usr/bin/python3")
    with ExitStack() as stack:
        yield [stack.enter_context(behind_sshfs(folder, delay_s)) for folder in folders]


def through_shell(command: Sequence[object]) -> list[str]:
    """Return a command that starts `command` through a shell.

    A parent's threads wait until its child has called exec. If the parent itself served the file that the child executes,
    both would wait for ever.
    """
    return ["/bin/sh", "-c", 'exec "$@"', "sh", *map(str, command)]


def count(folders: Sequence[Path], command: Sequence[object], delay_s: float = 0.0) -> Counted:
    """Run a command with the folders behind sshfs. This process must have a mount namespace of its own."""
    with behind(folders, delay_s) as relays:
        subprocess.run(
            through_shell(command),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=COMMAND_TIMEOUT_S,
            cwd="/",
            check=False,
        )
        return Counted.of(relays)


def enter_namespace() -> None:
    """Run this program again, in a mount namespace of its own."""
    if os.environ.get(IN_NAMESPACE) is None:
        os.environ[IN_NAMESPACE] = "1"
        command = unshare()
        os.execv(command[0], [*command, sys.executable, *sys.argv])


def unshare() -> list[str]:
    """Return a command that runs another one in a mount namespace of its own."""
    return [shutil.which("unshare") or "unshare", "--mount", "--propagation=private"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--command", nargs=argparse.REMAINDER, required=True, help="the rest of the line")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="of each request's way")
    parser.add_argument("--show", action="store_true", help="print each request")
    options = parser.parse_args()
    enter_namespace()
    counted = count([folder.resolve() for folder in options.folders], options.command, options.delay)
    if options.show:
        for request in counted.requests:
            print(*request)
    print(json.dumps(counted.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
