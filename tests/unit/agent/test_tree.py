"""The transport `tree`, between real agents' parts on this machine: TLS, staging children, and sources that fail.

Each node is an `Agent` that was given its orders without boot. What it stages is compared with what `direct` stages.
"""

import asyncio
import dataclasses
import errno
import json
import os
import sys
from pathlib import Path

import pytest
from envpack_trees import make_venv, stages
from envpack_trees import tree as content_of

import envpack.pack.archive_writer
import envpack.pack.frame_writer
from envpack.archive.damage import is_damaged
from envpack.archive.encoding import index_start, read_index
from envpack.pack.packing import pack
from envpack.stage import arrival
from envpack.stage.staging import stage
from mpiboot.agent import agent, archive_copy
from mpiboot.agent import tree as transport
from mpiboot.boot.certificates import make_job_secrets
from mpiboot.protocol import channel
from mpiboot.protocol.channel_messages import ArchivePart, ArchiveRequest, ChannelAddress, Orders, StageOrder
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.listener import Listener

NAMES = ["n1", "n2", "n3", "n4"]  # n2 and n3 take it from n1, n4 takes it from n2


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    prefix = make_venv(tmp_path_factory.mktemp("tree") / "env")
    (prefix / "share" / "large.bin").write_bytes(os.urandom(2_000_000))
    with pytest.MonkeyPatch.context() as patch:
        for module in (envpack.pack.frame_writer, envpack.pack.archive_writer):
            patch.setattr(module, "FRAME_BYTES", 1 << 16)
        path = pack(prefix, prefix.parent / "env.tar.zst", level=1).path
    assert len(read_index(path).frame_sizes) > 30
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = JobDirectory.create(tmp_path_factory.mktemp("home"), "slurm-c-7")
    make_job_secrets(made.path, valid_for_s=600)
    return made


class Node:
    """A node with its agent, and a listener for the others."""

    def __init__(self, name, directory, folder, archive):
        self.name = name
        self.root = folder / name
        self.root.mkdir()
        self.agent = agent.Agent(directory, ChannelAddress("", [], 0, None, "", 0, ""))
        self.agent.node = name
        self.agent.folder = self.root
        self.agent.orders = Orders(
            number=0,
            first_node="n1",
            n_nodes=len(NAMES),
            root=str(self.root),
            job_key=f"tree-{os.getpid()}",  # of no other test: an agent ends all processes of its job
            threads=2,
            prefix=None,
            pack_id=read_index(archive).pack_id,
            cancel_command=None,
        )
        self.requests = []
        self.serve = self.agent.answer_peer
        context = channel.server_context(directory.tls)
        self.listener = Listener("127.0.0.1", context, self.answer, len(NAMES))
        self.port = self.listener.port
        self.listening = asyncio.create_task(self.listener.run())

    async def answer(self, connection):
        await self.serve(connection)

    async def stage(self, order):
        """Return the report, or the error as a text."""
        try:
            return (await self.agent.stage(order)).stage
        except Exception as error:
            return str(error)

    async def end(self):
        self.listening.cancel()
        for task in [*self.agent.tasks]:
            task.cancel()
        await asyncio.wait([self.listening, *self.agent.tasks])
        self.agent.output.close()
        if copy := self.agent.copy:
            for descriptor in copy.descriptors:
                os.close(descriptor)


@pytest.fixture
def staged(directory, archive, tmp_path, monkeypatch):
    """Stage on all nodes, after `prepare(nodes)`; return each node's report or error, and the nodes."""
    child = tmp_path / "child.py"
    child.write_text("import sys\nfrom mpiboot.agent import stage_child\nsys.exit(stage_child.main())\n")
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, str(child), "job"])

    monkeypatch.setattr(archive_copy, "PART_BYTES", 100_000)
    monkeypatch.setattr(transport, "READ_BYTES", 100_000)
    index_at = index_start(archive)

    def run(prepare=lambda nodes: None, archive=archive):
        async def stage_all():
            nodes = {name: Node(name, directory, tmp_path, archive) for name in NAMES}
            prepare(nodes)
            peers = {name: ["127.0.0.1", node.port] for name, node in nodes.items()}
            order = StageOrder(1, str(archive), "tree", None, NAMES, index_at)
            for node in nodes.values():
                node.agent.peers = peers
            try:
                answers = await asyncio.gather(*(node.stage(order) for node in nodes.values()))
                copies = [node.agent.copy for node in nodes.values()]
                await asyncio.wait_for(settled(copies), 30)
                sizes = [os.fstat(copy.descriptors[0]).st_size for copy in copies]
                for copy in copies:
                    copy.free()
                assert [os.fstat(copy.descriptors[0]).st_size for copy in copies] == [0] * len(copies)
            finally:
                for node in nodes.values():
                    await node.end()
            return dict(zip(NAMES, answers, strict=True)), nodes, sizes

        return asyncio.run(asyncio.wait_for(stage_all(), 120))

    return run


async def settled(copies):
    while not all(copy.is_whole or copy.failure for copy in copies):
        await asyncio.sleep(0.02)


def opened(monkeypatch):
    """Return the list of the nodes' reads of the archive, which fills up."""
    reads = []
    real = transport._read
    monkeypatch.setattr(
        transport, "_read", lambda file, at, view: reads.append(len(view)) or real(file, at, view)
    )
    return reads


@pytest.mark.parametrize(
    ("node", "expected"),
    [("n0", []), ("n1", ["n0"]), ("n2", ["n0"]), ("n3", ["n1", "n0"]), ("n6", ["n2", "n0"])],
)
def test_sources(node, expected):
    assert transport.sources([f"n{number}" for number in range(7)], node) == expected


def test_every_node_is_reached_within_few_steps():
    tree = [str(number) for number in range(1000)]
    above = [transport.sources(tree, node) for node in tree]
    assert max(map(len, above)) == 9
    parents = [sources[0] for sources in above if sources]
    assert max(parents.count(node) for node in tree) == transport.FAN_OUT


def test_the_pace_of_a_source(monkeypatch):
    pace = transport.Pace()
    for _ in range(100):
        pace.note(0.3, 1 << 20)
    with pytest.raises(ConnectionError, match=r"too slow: \d\.\d MB in 1\d s"):
        for _ in range(30):
            pace.note(2.0, 1 << 20)
    pace = transport.Pace()
    with pytest.raises(ConnectionError, match="it has itself got nothing for 120 s"):
        for _ in range(61):
            pace.note(2.0, 0)


def test_all_nodes_stage_and_one_reads(staged, archive, tmp_path, monkeypatch):
    reads = opened(monkeypatch)
    answers, nodes, sizes = staged()
    size = archive.stat().st_size
    assert sum(reads) == size
    direct = tmp_path / "direct"
    direct.mkdir()
    expected = stage(archive, direct, transport="tree", jobs=2)
    for name, node in nodes.items():
        report = answers[name]
        assert report.items() >= {
            "transport": "tree", "reused": False, "bytes_read": size, "files": expected.files,
            "size_bytes": expected.size_bytes, "jobs": 2, "pack_id": expected.pack_id,
        }.items()  # fmt: skip
        assert "passed_by" not in report
        assert len(content_of(Path(report["prefix"]))) == len(content_of(expected.prefix))
        assert stages(node.root) == [Path(report["prefix"]).name]
        assert [path.name for path in node.root.iterdir()] == [f"mpiboot-{os.geteuid()}"]
    assert sizes == [arrival.HEAD.size + size] * 4


# ---- sources that fail


async def take_request(connection):
    message, _ = await connection.receive()
    assert isinstance(message, ArchiveRequest)
    return message


async def parts_of(node, connection):
    """Yield what a good node sends, a bit at a time, once it has all."""
    request = await take_request(connection)
    while not node.agent.copy or not node.agent.copy.is_whole:
        await connection.send(ArchivePart())
        await asyncio.sleep(0.05)
    copy = node.agent.copy
    for at in range(request.start, copy.size, 50_000):
        yield os.pread(copy.descriptors[0], min(50_000, copy.size - at), at)


def ends_midway(node):
    async def serve(connection):
        number = 0
        async for part in parts_of(node, connection):
            await connection.send(ArchivePart(), part)
            number += 1
            if number == 20:
                return

    node.serve = serve


def stalls_midway(node):
    async def serve(connection):
        number = 0
        async for part in parts_of(node, connection):
            await connection.send(ArchivePart(), part)
            number += 1
            if number == 20:
                await asyncio.sleep(60)

    node.serve = serve


def is_slow(node):
    async def serve(connection):
        async for part in parts_of(node, connection):
            for start in range(0, len(part), 1000):
                await connection.send(ArchivePart(), part[start : start + 1000])
                await asyncio.sleep(0.15)

    node.serve = serve


def damages(node):
    async def serve(connection):
        number = 0
        async for part in parts_of(node, connection):
            number += 1
            if number == 20:
                part = bytes(len(part))
            await connection.send(ArchivePart(), part)

    node.serve = serve


def damages_the_index(node):
    async def serve(connection):
        async for part in parts_of(node, connection):
            await connection.send(ArchivePart(), part[:60] + b"?" + part[61:])

    node.serve = serve


def claims_a_huge_index(node):
    async def serve(connection):
        await take_request(connection)
        await connection.send(ArchivePart(), b"\xff" * 1000)
        await asyncio.sleep(60)

    node.serve = serve


def starves(node):
    async def serve(connection):
        await take_request(connection)
        while True:
            await connection.send(ArchivePart())
            await asyncio.sleep(0.1)

    node.serve = serve


def does_not_listen(node):
    node.port = 1


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (ends_midway, "the connection was closed"),
        (stalls_midway, "nothing was heard for 2 s"),
        (is_slow, "too slow: "),
        (damages, " differs from its checksum"),
        (damages_the_index, "the index differs from its checksum"),
        (claims_a_huge_index, "an index of 18446744073709551615 bytes"),
        (starves, "it has itself got nothing for 4 s"),
        (does_not_listen, "Connection refused"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_source_that_fails_is_passed_by(staged, archive, monkeypatch, fault, why):
    """n2 takes the archive from n1, but fails to pass it on: n4 takes it, or the rest of it, from n1."""
    monkeypatch.setattr(transport, "SLOW_S", 2.0)
    monkeypatch.setattr(transport, "SLOW_BYTES", 100_000)  # a busy machine sends more
    monkeypatch.setattr(transport, "STARVED_S", 4.0)
    monkeypatch.setattr(archive_copy, "NOTHING_NEW_S", 0.2)
    reads = opened(monkeypatch)
    answers, _, _ = staged(lambda nodes: fault(nodes["n2"]))
    assert [set(answer) >= {"pack_id"} for answer in answers.values()] == [True] * 4, answers
    assert answers["n4"]["passed_by"].startswith("n2: ")
    assert why in answers["n4"]["passed_by"]
    assert "n1" not in answers["n4"]["passed_by"]
    assert [name for name in NAMES if "passed_by" in answers[name]] == ["n4"]
    assert sum(reads) == archive.stat().st_size


def test_the_file_itself_is_the_last_source(staged, archive, monkeypatch):
    reads = opened(monkeypatch)
    answers, _, _ = staged(lambda nodes: [damages(nodes["n1"]), ends_midway(nodes["n2"])])
    assert [set(answer) >= {"pack_id"} for answer in answers.values()] == [True] * 4, answers
    assert answers["n4"]["passed_by"].count("; ") == 1
    size = archive.stat().st_size
    assert size < sum(reads) < 4 * size  # nobody reads again what it has


# ---- nodes that fail


def test_a_full_disk_fails_one_node_alone(staged, monkeypatch):
    real, copy_class = archive_copy.write_at, archive_copy.ArchiveCopy
    full = []

    def write_at(file, data, offset):
        if file in full and offset > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data, offset)

    monkeypatch.setattr(archive_copy, "write_at", write_at)

    def fill_disk(nodes):
        class Full(copy_class):
            def __init__(self, folder, number, stages):
                super().__init__(folder, number, stages)
                if folder.name == "n2":
                    full.append(self.descriptors[0])

        monkeypatch.setattr(archive_copy, "ArchiveCopy", Full)

    answers, nodes, _ = staged(fill_disk)
    assert answers["n2"].startswith(
        f"cannot keep the archive below {nodes['n2'].root}/mpiboot-{os.geteuid()}: No space left on device. "
        "Submit the job with --transport direct"
    )
    assert stages(nodes["n2"].root) == []
    assert [set(answers[name]) >= {"pack_id"} for name in ("n1", "n3", "n4")] == [True] * 3, answers
    assert answers["n4"]["passed_by"].startswith("n2: ")


def test_unused_stages_make_room_for_the_copy(staged, monkeypatch):
    real = archive_copy.write_at
    old = Path(f"mpiboot-{os.geteuid()}/old-0123456789abcdef")

    def write_at(file, data, offset):
        folder = Path(f"/proc/self/fd/{file}").readlink().parent
        if offset > 500_000 and (folder / old).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data, offset)

    def leave_an_old_stage(nodes):
        (nodes["n2"].root / old).mkdir(parents=True)
        (nodes["n2"].root / old.parent).chmod(0o700)
        os.utime(nodes["n2"].root / old, (1, 1))

    monkeypatch.setattr(archive_copy, "write_at", write_at)
    answers, nodes, _ = staged(leave_an_old_stage)
    assert {name: answers[name]["evicted"] for name in NAMES} == {
        "n1": [],
        "n2": [old.name],
        "n3": [],
        "n4": [],
    }
    assert stages(nodes["n2"].root) == [Path(answers["n2"]["prefix"]).name]


def test_a_copy_that_is_freed_while_it_is_written_takes_no_room(tmp_path, monkeypatch):
    """Nodes with an older stage are staged before all of the archive has arrived."""
    real = archive_copy.write_at
    head = arrival.head(b"index") + b"index"

    async def receive():
        copy = archive_copy.ArchiveCopy(tmp_path, 1, tmp_path)

        def free_first(file, data, offset):
            copy.free()
            real(file, data, offset)

        monkeypatch.setattr(archive_copy, "write_at", free_first)
        copy.learn(json.dumps({"frames": {"sizes": [9], "checks": [0]}}).encode())
        copy.take(head)
        size = os.fstat(copy.descriptors[0]).st_size
        for descriptor in copy.descriptors:
            os.close(descriptor)
        return size

    assert asyncio.run(receive()) == 0


def test_a_node_that_cannot_stage_passes_the_archive_on(staged, archive, monkeypatch):
    """Its staging root is refused, once it has learned the frames."""
    answers, _, _ = staged(lambda nodes: nodes["n2"].root.chmod(0o777))
    assert "everybody may replace files there" in answers["n2"]
    assert [set(answers[name]) >= {"pack_id"} for name in ("n1", "n3", "n4")] == [True] * 3, answers
    assert "passed_by" not in answers["n4"]


def test_a_stager_that_ends_without_a_word(staged, tmp_path):
    answers, _, _ = staged(lambda nodes: (tmp_path / "child.py").write_text("raise SystemExit(3)"))
    for name in NAMES:
        assert "ended with status 3, without a result" in answers[name]


def test_another_archive_than_the_one_submitted_is_refused(staged, archive):
    def expect_another(nodes):
        orders = nodes["n3"].agent.orders
        nodes["n3"].agent.orders = dataclasses.replace(orders, pack_id="0" * 64)

    answers, _, _ = staged(expect_another)
    assert "is not the expected archive" in answers["n3"]
    assert [set(answers[name]) >= {"pack_id"} for name in ("n1", "n2", "n4")] == [True] * 3, answers


def test_a_damaged_archive_is_every_nodes_answer(staged, archive, tmp_path):
    damaged = tmp_path / "damaged.tar.zst"
    data = bytearray(archive.read_bytes())
    starts = read_index(archive).frame_starts()
    data[starts[20] + 10] ^= 1
    damaged.write_bytes(data)
    answers, _, _ = staged(archive=damaged)
    for name in NAMES:
        assert f"{damaged} is damaged: frame 20 of " in answers[name]
        assert "Submit the job again: the environment is then packed anew" in answers[name]
    assert is_damaged(damaged)


def test_an_archive_that_is_gone(staged, tmp_path, archive):
    gone = tmp_path / "gone.tar.zst"
    gone.write_bytes(archive.read_bytes())
    answers, _, _ = staged(lambda nodes: gone.unlink(), archive=gone)
    for name in NAMES:
        assert f"No such file or directory: '{gone}'" in answers[name]


def test_one_that_was_cut_short(staged, archive, tmp_path):
    short = tmp_path / "short.tar.zst"
    short.write_bytes(archive.read_bytes())
    answers, _, _ = staged(lambda nodes: os.truncate(short, 1000), archive=short)
    assert "its size does not fit its index" in answers["n1"]


# ---- the file


def test_what_is_written_lies_at_its_offset(tmp_path):
    descriptor = archive_copy.nameless_file(tmp_path, "copy")
    archive_copy.write_at(descriptor, memoryview(b"abc"), 2)
    assert os.pread(descriptor, 9, 0) == b"\0\0abc"
    os.close(descriptor)
