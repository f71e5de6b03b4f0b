"""A local socket between boot and the scheduler's preload: the preload tells, boot asks.

One JSON object per line, both ways, in the job's own 0700 folder on the first node. Each end sees at once when the
other dies: boot's death closes the scheduler, and the scheduler's death ends the job. Standard library only.
"""

import json
import os
import selectors
import socket
from pathlib import Path
from typing import Any

SOCKET_NAME = "boot.sock"


def socket_address(folder: int, name: str = SOCKET_NAME) -> str:
    """A path to the socket in the open folder, short enough for an address (108 bytes, unix(7))."""
    return f"/proc/self/fd/{folder}/{name}"


class Control:
    """Boot's end."""

    def __init__(self, folder: Path) -> None:
        (folder / SOCKET_NAME).unlink(missing_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(socket_address(self._folder))
        self._listener.listen(1)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peer: socket.socket | None = None
        self._partial = b""

    def poll(self, timeout_s: float) -> list[dict[str, Any]]:
        """Messages that came within `timeout_s`; `{"event": "disconnected"}` when the scheduler is gone."""
        messages: list[dict[str, Any]] = []
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._peer, _ = self._listener.accept()
                self._selector.unregister(self._listener)
                self._selector.register(self._peer, selectors.EVENT_READ)
            else:
                messages += self._read()
        return messages

    def _read(self) -> list[dict[str, Any]]:
        assert self._peer is not None
        try:
            data = self._peer.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(self._peer)
            self._peer.close()
            self._peer = None
            return [{"event": "disconnected"}]
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, command: str, **details: Any) -> bool:
        """Ask the scheduler's preload for something. False: there is nobody to ask."""
        if self._peer is None:
            return False
        try:
            self._peer.sendall(json.dumps({"command": command, **details}).encode() + b"\n")
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._selector.close()
        for end in (self._peer, self._listener):
            if end:
                end.close()
        os.close(self._folder)
