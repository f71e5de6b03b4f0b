"""What boot runs once on each node: `python -m mpiboot.node prepare|clean ORDERS`, ORDERS and answer in JSON.

It starts from the shared file system on all nodes at once: standard library and zstandard only.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiboot.interfaces import interfaces
from mpiboot.security import check_trusted

MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


def node_name() -> str:
    """This node as the batch system calls it."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def own_folder(root: Path) -> Path:
    """`<root>/mpiboot-<uid>`: all that mpiboot writes on a node is in here."""
    return root / f"mpiboot-{os.getuid()}"


def job_folder(root: Path, job_key: str) -> Path:
    """The job's own folder on each node: spill files, MPI's session folders, sockets. Gone with the job."""
    return own_folder(root) / "jobs" / job_key


def file_system(path: Path) -> str:
    """The type of the file system that `path` is on (proc(5), mountinfo)."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            return words[words.index("-") + 1]
    return "unknown"


def memory_bytes() -> int:
    """This host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def prepare(orders: Mapping[str, Any]) -> dict[str, Any]:
    """Make the job's folder on this node, stage the environment, and say what this node has.

    Parameters
    ----------
    orders
        `root` (staging root), `job_key`, `archive` (None: nothing to stage), `pack_id`, `jobs` (writers).

    Returns
    -------
    dict
        `interfaces`, `memory_bytes`, `cpus`, `root_is_memory`, and `stage`: what envpack says of it, or None.
    """
    root = Path(orders["root"])
    make_own_folder(root)
    folder = job_folder(root, orders["job_key"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    answer: dict[str, Any] = {
        "interfaces": interfaces(),
        "memory_bytes": memory_bytes(),
        "cpus": os.cpu_count(),
        "root_is_memory": file_system(folder) in MEMORY_FILE_SYSTEMS,
        "stage": None,
    }
    if orders["archive"]:
        from envpack.stage import stage

        start = time.time()
        result = stage(orders["archive"], root, jobs=orders["jobs"], expected_pack_id=orders["pack_id"])
        answer["stage"] = {**asdict(result), "prefix": str(result.prefix), "start": start, "end": time.time()}
    return answer


def make_own_folder(root: Path) -> None:
    """`<root>/mpiboot-<uid>`, 0700 and ours; refused if someone else made it first."""
    folder = own_folder(root)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_trusted(folder, "directory")


def clean(orders: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the job's folder from this node."""
    folder = job_folder(Path(orders["root"]), orders["job_key"])
    shutil.rmtree(folder, ignore_errors=True)
    return {"removed": not folder.exists()}


def main() -> int:
    action, orders = sys.argv[1], json.loads(sys.argv[2])
    try:
        answer = {"prepare": prepare, "clean": clean}[action](orders)
    except Exception as error:  # the one boundary of this process: boot reports it with the node's name
        answer = {"error": f"{type(error).__name__}: {error}" if not str(error) else str(error)}
    print(json.dumps({"node": node_name(), **answer}), flush=True)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
