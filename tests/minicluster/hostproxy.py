"""A proxy as on front ends of the web: http://HOST-PORT.localhost:8080/… is http://HOST:PORT/…, with that Host header.

The browser's Origin stays what it was, so it differs from Host. A program of its own: `python3 hostproxy.py 8080`.
"""

import re
import socket
import socketserver
import sys
import threading

TARGET = re.compile(rb"^Host: ([\w.-]+)-(\d+)\.localhost(?::\d+)?\r$", re.IGNORECASE | re.MULTILINE)
CONNECTION = re.compile(rb"^Connection: keep-alive\r$", re.IGNORECASE | re.MULTILINE)
HEAD_LIMIT_BYTES = 65536


class Handler(socketserver.BaseRequestHandler):
    """One request, or one websocket."""

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.request.recv(HEAD_LIMIT_BYTES)
            head += received
            if not received or len(head) > HEAD_LIMIT_BYTES:
                return
        target = TARGET.search(head)
        if target is None:
            self.request.sendall(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")
            return
        host, port = target[1].decode(), int(target[2])
        head = CONNECTION.sub(b"Connection: close\r", TARGET.sub(f"Host: {host}:{port}\r".encode(), head))
        try:
            server = socket.create_connection((host, port), timeout=10)
        except OSError:
            self.request.sendall(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n")
            return
        server.settimeout(None)
        with server:
            server.sendall(head)
            answers = threading.Thread(target=copy, args=(server, self.request), daemon=True)
            answers.start()
            copy(self.request, server)
            answers.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Send what comes from `source` to `target` until either ends."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("", int(sys.argv[1])), Handler).serve_forever()
