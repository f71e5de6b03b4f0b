"""Count what a command asks of the shared file system: `file_requests.py FOLDER [FOLDER ...] -- COMMAND [ARGUMENT ...]`.

The command runs in a mount namespace where each FOLDER lies behind sshfs, at its own path and with nothing in the
client's cache, as on a node on which nobody has started Python yet. The requests that pass from sshfs to its server are
counted by kind. Needs root, sshfs and OpenSSH's sftp-server; the command's output goes to stderr.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
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
# draft-ietf-secsh-filexfer-02, section 3; those that name a path, and those that name an open file.
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
    """One request: its kind, and the path that it names, if it names one."""

    kind: str
    path: str


class Counted(NamedTuple):
    """What one command cost.

    Attributes
    ----------
    requests : list of Request
        All requests, in their order.
    read_bytes : int
        Bytes that the servers sent, with the protocol's headers.
    seconds : float
        Duration of the command.
    returncode : int
        Its exit status.
    """

    requests: list[Request]
    read_bytes: int
    seconds: float
    returncode: int

    def by_kind(self) -> dict[str, int]:
        return dict(collections.Counter(request.kind for request in self.requests).most_common())


class Relay:
    """Passes packets between sshfs and the server, and keeps the kind and path of each request."""

    def __init__(self, server: subprocess.Popen[bytes], delay_s: float = 0.0) -> None:
        assert server.stdin and server.stdout
        self.requests: list[Request] = []
        self.read_bytes = 0
        self._delay_s = delay_s
        from_sshfs, self.sshfs_stdout = os.pipe()
        self.sshfs_stdin, to_sshfs = os.pipe()
        for target, arguments in (
            (self._pass_requests, (os.fdopen(from_sshfs, "rb"), server.stdin)),
            (self._pass_answers, (server.stdout, to_sshfs)),
        ):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def _pass_requests(self, source: BinaryIO, target: BinaryIO) -> None:
        while len(head := source.read(4)) == 4:
            body = source.read(*struct.unpack(">I", head))
            self.requests.append(parse(body))
            if self._delay_s:
                time.sleep(self._delay_s)
            target.write(head + body)
            target.flush()
        target.close()

    def _pass_answers(self, source: BinaryIO, target: int) -> None:
        while data := os.read(source.fileno(), 1 << 20):
            self.read_bytes += len(data)
            with memoryview(data) as view:
                while view:
                    view = view[os.write(target, view) :]
        os.close(target)


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
        Added to each request.
    """
    sftp_server = next(path for path in SFTP_SERVERS if Path(path).exists())
    # The server keeps the folder open: its root is the folder as it was before the mount.
    server = subprocess.Popen([sftp_server, "-d", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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


def count(folders: Sequence[Path], command: Sequence[str], delay_s: float = 0.0) -> Counted:
    """Run a command with the folders behind sshfs. This process must have a mount namespace of its own."""
    with ExitStack() as stack:
        relays = [stack.enter_context(behind_sshfs(folder, delay_s)) for folder in folders]
        began = time.monotonic()
        # A shell between: until a child has called exec, the threads of this process wait, which serve the file system.
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=COMMAND_TIMEOUT_S,
            cwd="/",
        )
        seconds = time.monotonic() - began
        return Counted(
            [request for relay in relays for request in relay.requests],
            sum(relay.read_bytes for relay in relays),
            seconds,
            done.returncode,
        )


def main(argv: Sequence[str]) -> int:
    if "--" not in argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    if os.environ.get("FILE_REQUESTS_NAMESPACE") is None:
        os.environ["FILE_REQUESTS_NAMESPACE"] = "1"
        unshare = shutil.which("unshare") or "unshare"
        os.execv(unshare, [unshare, "--mount", "--propagation=private", sys.executable, *sys.argv])
    split = argv.index("--")
    folders = [Path(word).resolve() for word in argv[1:split]]
    counted = count(folders, argv[split + 1 :], float(os.environ.get("DELAY_S", 0)))
    if os.environ.get("SHOW"):
        for request in counted.requests:
            print(*request)
    print(
        json.dumps(
            {
                "requests": len(counted.requests),
                "by_kind": counted.by_kind(),
                "read_bytes": counted.read_bytes,
                "seconds": round(counted.seconds, 3),
                "returncode": counted.returncode,
            }
        )
    )
    return counted.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv))
