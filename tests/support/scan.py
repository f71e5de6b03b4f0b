"""A stranger's port scan that holds what it finds. Tests run it on hosts as `/usr/bin/python3 -c THIS ORDERS`.

It finds listening TCP ports as a user without rights can: on a node from /proc/net/tcp, from elsewhere by a connect to
every port. To each it opens connections of every kind (KINDS), holds them, and opens again what was closed to it.

ORDERS, in JSON: `addresses` to scan; `local`, whether they are this host's; `each`, how many connections of each kind;
`end`, a file whose appearance ends the scan. Every second it prints a line of JSON: `ports`, those with a connection held
now, or closed to it since the line before; `held` and `closed`, numbers of connections; `full_scans`.
"""

import contextlib
import json
import os
import resource
import select
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

TICK_S = 1.0
# How long to wait for a port that neither accepts nor refuses a connection.
CONNECT_TIMEOUT_S = 2.0
AT_ONCE = 256
# Two passes over all ports are this far apart, so that the scan leaves this machine's processors to the cluster.
REST_S = 15.0


def whole_hello():
    """Return the first message of a TLS handshake, which a client then does not continue."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


# What a connection of each kind sends first; the slow ones send one byte more each second.
KINDS = {
    "silent": b"",
    "garbage": b"\xff" * 8 + os.urandom(4000),
    "half of an HTTP head": b"GET /status HTTP/1.1\r\nHost: node\r\nX-Slow: ",
    "half of a TLS hello": whole_hello()[:100],
    "a TLS hello": whole_hello(),
}
SLOW = "half of an HTTP head"


class Scan:
    def __init__(self, orders):
        self.addresses, self.local, self.each = orders["addresses"], orders["local"], orders["each"]
        self.end = orders["end"]
        self.poll = select.epoll()
        self.held = {}  # descriptor -> (socket, (address, port), kind)
        self.missing = {}  # (address, port) -> kinds to open
        self.closed = self.full_scans = 0
        self.touched = set()

    def found(self, address, port):
        """Note a port; its connections are opened with the next tick."""
        if (address, port) not in self.missing:
            self.missing[address, port] = [kind for kind in KINDS for _ in range(self.each)]

    def listed(self):
        """Note this host's listening ports, which every user may read (proc(5))."""
        for name in ("tcp", "tcp6"):
            with Path("/proc/net", name).open() as file:
                next(file)
                for line in file:
                    local, state = line.split()[1:4:2]
                    if state != "0A":
                        continue
                    host, port = local.split(":")
                    if name == "tcp":
                        address = socket.inet_ntoa(struct.pack("=I", int(host, 16)))
                    else:  # of an address that IPv4 can reach, or of this host alone
                        address = "0.0.0.0" if not int(host, 16) else "127.0.0.1"
                    for each in self.addresses if address == "0.0.0.0" else [address]:
                        self.found(each, int(port, 16))

    def sweep(self):
        """Connect to all ports of all addresses; yield after every AT_ONCE ports."""
        for address in self.addresses:
            for first in range(1, 65536, AT_ONCE):
                self.connects(address, range(first, min(first + AT_ONCE, 65536)))
                yield

    def connects(self, address, ports):
        poll = select.epoll()
        pending = {}
        for port in ports:
            if (address, port) in self.missing:
                continue
            sock = socket.socket()
            sock.setblocking(False)
            status = sock.connect_ex((address, port))
            if status in (0, 115):  # EINPROGRESS
                pending[sock.fileno()] = sock, port
                poll.register(sock, select.EPOLLOUT)
            else:
                sock.close()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while pending and (left_s := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left_s):
                sock, port = pending.pop(descriptor)
                poll.unregister(descriptor)
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    self.found(address, port)
                    # Closed with a reset, as scanners do: the listener may find it gone.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
        for sock, _ in pending.values():
            sock.close()
        poll.close()

    def open_missing(self):
        for (address, port), kinds in self.missing.items():
            for _ in range(len(kinds)):
                kind = kinds.pop()
                sock = socket.socket()
                sock.settimeout(CONNECT_TIMEOUT_S / 4)
                try:
                    sock.connect((address, port))
                    sock.setblocking(False)
                    sock.send(KINDS[kind])
                except OSError:
                    sock.close()
                    kinds.append(kind)
                    break  # full, or no longer there: again with the next tick
                self.held[sock.fileno()] = sock, (address, port), kind
                self.poll.register(sock, select.EPOLLRDHUP)
                self.touched.add((address, port))

    def forget_closed(self, seconds):
        """Note for `seconds` which connections end."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            for descriptor, _ in self.poll.poll(left_s):
                sock, place, kind = self.held.pop(descriptor)
                self.poll.unregister(descriptor)
                sock.close()
                self.missing[place].append(kind)
                self.closed += 1

    def feed_slowly(self):
        for sock, _, kind in self.held.values():
            if kind == SLOW:
                with contextlib.suppress(OSError):
                    sock.send(b"x")

    def run(self):
        sweep, rest_until = (iter(()) if self.local else self.sweep()), 0.0
        while not Path(self.end).exists():
            began = time.monotonic()
            if self.local:
                self.listed()
            elif began > rest_until:
                while time.monotonic() < began + TICK_S:
                    try:
                        next(sweep)
                    except StopIteration:
                        self.full_scans += 1
                        sweep, rest_until = self.sweep(), began + REST_S
                        break
            self.open_missing()
            self.feed_slowly()
            self.forget_closed(max(0.05, TICK_S - (time.monotonic() - began)))
            self.report()

    def report(self):
        places = {place for _, place, _ in self.held.values()} | self.touched
        ports = sorted(f"{address}:{port}" for address, port in places)
        self.touched = set()
        said = {"ports": ports, "held": len(self.held), "closed": self.closed, "full_scans": self.full_scans}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.nice(10)
    Scan(json.loads(sys.argv[1])).run()
