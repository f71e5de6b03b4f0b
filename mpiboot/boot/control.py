"""Boot's end of the socket between boot and the scheduler's preload; `protocol.control` has the messages.

Only boot imports this module.
"""

import os
import selectors
import socket
from pathlib import Path
from typing import Any

from mpiboot.protocol.control import decode, encode
from mpiboot.protocol.node import BOOT_SOCKET_NAME, socket_address


class Control:
    """Boot's end of the socket to the scheduler.

    Parameters
    ----------
    folder : Path
        The job's folder on this node; the socket is made there.
    """

    def __init__(self, folder: Path) -> None:
        (folder / BOOT_SOCKET_NAME).unlink(missing_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(socket_address(self._folder, BOOT_SOCKET_NAME))
        self._listener.listen(1)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peer: socket.socket | None = None
        self._partial = b""

    def poll(self, timeout_s: float) -> list[dict[str, Any]]:
        """Wait for messages of the scheduler.

        Parameters
        ----------
        timeout_s : float, seconds
            How long to wait for the first.

        Returns
        -------
        list of dict
            The messages received, possibly none; `{"event": "disconnected"}` once the scheduler has disconnected.
        """
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
        return [decode(line) for line in lines]

    def send(self, command: str, **details: Any) -> bool:
        """Send a command to the scheduler; return False if it is not connected."""
        if self._peer is None:
            return False
        try:
            self._peer.sendall(encode({"command": command, **details}))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._selector.close()
        for end in (self._peer, self._listener):
            if end:
                end.close()
        os.close(self._folder)
