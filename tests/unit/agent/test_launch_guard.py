"""The guard of the launch: whose connections it shuts down, and what it does with sockets of other processes."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mpiboot.agent import launch_guard
from mpiboot.agent.launch_guard import LaunchGuard, TcpSocket, parse_sockets, sockets_of
from mpiboot.protocol.variables import JOB_KEY_VARIABLE

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:CAE5 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 14671698 1 0000000052534ea9
   1: 0200000A:DED9 0100000A:897D 01 00000000:00000238 00:00000000 00000000  1000        0 14671704 1 000000001a47f95c
   2: 0100007F:9048 0100007F:8E3D 06 00000000:00000000 03:00000C99 00000000     0        0 0 3 00000000de058871
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:9C40 01 00000000:00000000 00:00000000 00000000 65534        0 7 1 0000000000000000 20 4 30 10 -1
   1: 000080FE00000000FF00FC00010000FE:0401 000080FE00000000FF00FC00020000FE:0402 01 00000000:00000000 00:00000000 00000000     0        0 8 1 0000000000000000 20 4 30 10 -1
"""  # noqa: E501
LINK_LOCAL = bytes.fromhex("fe80000000000000 00fc00fffe000001")
# A launcher that reads the first byte of each connection blocking, and answers.
LAUNCHER = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        if first := connection.recv(1):
            connection.sendall(first)
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables are those of a little-endian host")
def test_tables_of_the_kernel():
    assert parse_sockets(TCP) == [
        TcpSocket((bytes(4), 0xCAE5), (bytes(4), 0), 0x0A, 3, 0, 14671698),
        TcpSocket((b"\x0a\0\0\x02", 0xDED9), (b"\x0a\0\0\x01", 0x897D), 0x01, 0x238, 1000, 14671704),
    ]
    mapped, link_local = parse_sockets(TCP6)
    assert mapped == TcpSocket((b"\x7f\0\0\x01", 8080), (b"\x7f\0\0\x01", 40000), 0x01, 0, 65534, 7)
    assert link_local.local == (LINK_LOCAL, 0x401)


@pytest.mark.parametrize(
    ("address", "unread_bytes", "is_pending", "overdue_after_s"),
    [
        ("10.9.9.9", 0, True, launch_guard.FOREIGN_HELLO_S),
        ("10.0.0.2", 0, True, launch_guard.NODE_HELLO_S),
        ("fe80::2", 0, True, launch_guard.NODE_HELLO_S),
        ("10.9.9.9", 568, True, None),  # the daemon's first message, behind a stranger's connection
        ("10.9.9.9", 0, False, None),  # the first message has been read
    ],
)
def test_whose_first_message_is_overdue(monkeypatch, address, unread_bytes, is_pending, overdue_after_s):
    clock = [100.0]
    monkeypatch.setattr(launch_guard.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(launch_guard, "is_pending", lambda pid, fd: is_pending)
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    connection = TcpSocket((bytes(4), 1), (packed, 2), 0x01, unread_bytes, os.getuid(), 3)
    guard = LaunchGuard("slurm-c-7", ["10.0.0.1", "10.0.0.2"])

    def is_silent(at_s):
        clock[0] = 100.0 + at_s
        return guard.is_silent(1, 5, connection)

    assert not is_silent(0.0)
    if overdue_after_s is None:
        assert not is_silent(3600.0)
    else:
        assert not is_silent(overdue_after_s * 0.9)
        assert is_silent(overdue_after_s * 1.1)


@pytest.fixture
def launcher(monkeypatch):
    """A process of the job's launch; yields it and its port."""
    monkeypatch.setattr(launch_guard, "GUARDED_PROGRAMS", {Path("/proc/self/exe").readlink().name})
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env={**os.environ, JOB_KEY_VARIABLE: "guarded-7"},
        stdout=subprocess.PIPE,
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_only_processes_of_the_job_are_guarded(launcher, monkeypatch):
    process, _ = launcher
    assert list(launch_guard.guarded_processes("guarded-7")) == [process.pid]
    assert list(launch_guard.guarded_processes("guarded-77")) == []
    monkeypatch.setattr(launch_guard, "GUARDED_PROGRAMS", {"prted"})
    assert list(launch_guard.guarded_processes("guarded-7")) == []


def test_a_connection_without_a_byte_reaches_no_guarded_process(launcher):
    process, port = launcher
    guard = LaunchGuard("guarded-7", [])
    guard.look([process.pid])
    with (
        socket.create_connection(("127.0.0.1", port), 5),
        socket.create_connection(("127.0.0.1", port), 5) as own,
    ):
        own.sendall(b"x")
        assert own.recv(1) == b"x"


def test_connections_of_the_job_are_left_alone(launcher):
    _, port = launcher
    guard = LaunchGuard("guarded-7", [])
    with socket.create_connection(("127.0.0.1", port), 5) as slow:  # before the first look
        slow.settimeout(5)
        over = threading.Event()
        thread = threading.Thread(target=guard.run, args=(over, 60))
        thread.start()
        try:
            with socket.create_connection(("127.0.0.1", port), 5):
                assert not over.wait(2 * launch_guard.LOOK_S)
                slow.sendall(b"y")
                assert slow.recv(1) == b"y"
        finally:
            over.set()
            thread.join()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_strangers_connection_is_shut_down(launcher):
    _, port = launcher
    stranger = f"""
import os, socket, sys
os.setuid(65534)
held = socket.socket()
held.connect(("127.0.0.1", {port}))
print(held.recv(1), flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", stranger], stdout=subprocess.PIPE)
    over = threading.Event()
    words = []
    # The connection is there before the guard, as that of a quick stranger.
    while not any(each.user == 65534 for each in parse_sockets(Path("/proc/net/tcp").read_text())):
        assert child.poll() is None
    thread = threading.Thread(target=lambda: words.append(LaunchGuard("guarded-7", []).run(over, 60)))
    thread.start()
    try:
        assert child.communicate(timeout=20)[0] == b"b''\n"
        with socket.create_connection(("127.0.0.1", port), 5) as own:
            own.sendall(b"x")
            assert own.recv(1) == b"x"
    finally:
        over.set()
        thread.join()
        child.kill()
        child.communicate()
    assert words == ["1 connections of strangers to the launcher were shut down"]


def test_a_stranger_who_cannot_be_shut_out_is_named(launcher, monkeypatch):
    def refuse(pid, fd):
        raise PermissionError(1, "pidfd_getfd: Operation not permitted")

    process, port = launcher
    monkeypatch.setattr(launch_guard, "duplicate", refuse)
    monkeypatch.setattr(launch_guard, "is_pending", lambda pid, fd: True)
    guard = LaunchGuard("guarded-7", [])
    over = threading.Event()
    over.set()
    guard.look([process.pid])
    assert guard.run(over, 60) == ""  # nobody has come
    with socket.create_connection(("127.0.0.1", port), 5):
        monkeypatch.setattr(launch_guard.os, "getuid", lambda: 12345)
        while not guard.left:
            guard.look([process.pid])
    assert "1 connections of strangers could not be shut down" in guard.run(over, 60)
    assert "Operation not permitted" in guard.run(over, 60)


def test_sockets_of_a_process_that_is_gone():
    assert sockets_of(2**22) == {}
