"""MPI's listening sockets are closed once the ranks have started; real sockets stand for MPI's."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.preloads import mpi_ports


@pytest.fixture
def mpi(monkeypatch):
    """Two listening sockets, a connection and a pipe, in a process that has imported MPI."""
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", object())
    before = mpi_ports.listening_sockets()  # of other tests' servers
    monkeypatch.setattr(mpi_ports, "CLOSE_AFTER_S", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::", 0), family=socket.AF_INET6) as other,
        socket.create_connection(one.getsockname()) as connection,
        one.accept()[0],
    ):
        found = mpi_ports.listening_sockets()
        mine = {number: inode for number, inode in found.items() if number not in before}
        assert set(mine) == {one.fileno(), other.fileno()}
        yield SimpleNamespace(one=one, other=other, connection=connection, sockets=mine)


def listens(address):
    try:
        socket.create_connection(address, 5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_they_are_closed_and_their_descriptors_stay_in_use(mpi):
    address, port = mpi.one.getsockname(), mpi.other.getsockname()[1]
    assert listens(address)
    mpi_ports.close_listening(mpi.sockets)
    assert not listens(address)
    assert not listens(("::1", port))
    assert {Path(f"/proc/self/fd/{number}").readlink() for number in mpi.sockets} == {Path(os.devnull)}
    assert not any(os.get_inheritable(number) for number in mpi.sockets)
    mpi.connection.getpeername()


def test_another_file_under_the_same_number_is_left_alone(mpi):
    address = mpi.one.getsockname()
    mpi_ports.close_listening({number: inode + 1 for number, inode in mpi.sockets.items()})
    mpi_ports.close_listening({10_000: 1})
    assert listens(address)


def test_a_scheduler_waits_for_its_first_worker(mpi):
    async def start():
        scheduler = SimpleNamespace(workers={})
        mpi_ports.close_when_started(scheduler, mpi.sockets)
        await asyncio.sleep(4 * mpi_ports.CLOSE_AFTER_S)
        assert listens(mpi.one.getsockname())
        scheduler.workers["tls://127.0.0.1:1"] = object()
        address = mpi.one.getsockname()
        while listens(address):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(start(), 5))


def test_a_nanny_does_not_wait(mpi):
    async def start():
        address = mpi.one.getsockname()
        mpi_ports.close_when_started(SimpleNamespace(), mpi.sockets)
        while listens(address):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(start(), 5))


def test_a_process_without_mpi_has_none():
    with socket.create_server(("127.0.0.1", 0)):
        assert "mpi4py.MPI" in sys.modules or mpi_ports.listening_sockets() == {}
