"""Run under mpirun with 2 to 4 ranks (`make test-mpi`): the `mpi` transport on real MPI libraries."""

import os
from pathlib import Path

import pytest

mpi4py = pytest.importorskip("mpi4py")
pytestmark = pytest.mark.mpi(min_size=2)

SIZE_BYTES = 40 * 1024**2 + 17  # two whole chunks, and part of a third


@pytest.fixture(scope="module")
def comm():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def folder(comm, tmp_path_factory):
    """One folder for all ranks, as the shared file system is."""
    return comm.bcast(tmp_path_factory.mktemp("shared") if comm.rank == 0 else None, root=0)


def content(size_bytes):
    return (b"0123456789abcdef" * (size_bytes // 16 + 1))[:size_bytes]


def test_every_rank_gets_every_byte_and_only_one_reads(comm, folder, monkeypatch):
    from mpiboot.agent import broadcast

    path = str(folder / "archive")
    if comm.rank == 0:
        (folder / "archive").write_bytes(content(SIZE_BYTES))
    comm.Barrier()
    opened = []
    monkeypatch.setattr(
        os, "open", lambda name, flags, real=os.open: opened.append(name) or real(name, flags)
    )
    received = b"".join(bytes(chunk) for chunk in broadcast.broadcast(comm, path, SIZE_BYTES))
    assert received == content(SIZE_BYTES)
    assert opened == ([path] if comm.rank == 0 else [])


def make_archive(folder):
    """The archive of a small venv."""
    import sys
    import venv

    from envpack.pack.packing import pack

    venv.create(folder / "env", symlinks=True)
    package = folder / f"env/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/thing"
    package.mkdir()
    (package / "data.bin").write_bytes(content(SIZE_BYTES))
    result = pack(folder / "env", folder / "env.tar.zst")
    return str(result.path), result.pack_id


@pytest.fixture
def orders(comm, folder):
    archive, pack_id = comm.bcast(make_archive(folder) if comm.rank == 0 else None, root=0)
    root = folder / f"node{comm.rank}"
    root.mkdir(mode=0o700)
    return {"archive": archive, "pack_id": pack_id, "root": str(root), "threads": 2}


def test_every_node_is_staged_then_reused(comm, folder, orders):
    from mpiboot.agent import broadcast

    first = broadcast.stage_broadcast(comm, orders)["stage"]
    assert (first["transport"], first["reused"]) == ("mpi", False)
    (data,) = Path(first["prefix"]).glob("lib/python3*/site-packages/thing/data.bin")
    assert data.read_bytes() == content(SIZE_BYTES)
    again = broadcast.stage_broadcast(comm, orders)["stage"]
    assert (again["prefix"], again["reused"]) == (first["prefix"], True)


def test_a_node_that_cannot_says_so_and_holds_up_nobody(comm, folder, orders):
    from mpiboot.agent import broadcast

    broken = comm.rank == comm.size - 1
    if broken:
        orders["root"] += "/none"
    answer = broadcast.stage_broadcast(comm, orders)
    assert list(answer) == ["error" if broken else "stage"]
    assert not broken or "/none" in answer["error"]


def test_another_archive_than_the_one_submitted_is_refused_everywhere(comm, folder, orders):
    from mpiboot.agent import broadcast

    answer = broadcast.stage_broadcast(comm, {**orders, "pack_id": "0" * 64})
    assert "Submit the job again" in answer["error"]
