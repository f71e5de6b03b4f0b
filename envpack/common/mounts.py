"""File systems, from the kernel's mount table (proc(5), /proc/PID/mounts)."""

from __future__ import annotations

from pathlib import Path

# Their files lie in the node's memory.
_MEMORY = ("tmpfs", "ramfs")
# A whole cluster reads them, so opening many small files there is slow.
_SHARED = (
    "9p", "afs", "beegfs", "ceph", "cifs", "cvmfs", "fuse.", "fhgfs", "glusterfs", "gpfs", "lustre", "nfs", "ocfs2",
    "orangefs", "panfs", "pvfs2", "smb", "virtiofs", "vast", "wekafs",
)  # fmt: skip


def file_system(path: Path, mounts: str | None = None) -> tuple[str, str]:
    """Return the type and mount point of the file system that holds a path.

    Parameters
    ----------
    path : Path
        An absolute path. Symlinks in it are followed.
    mounts : str, optional
        The content of /proc/self/mounts (default: read it).

    Returns
    -------
    tuple[str, str]
        For example `("nfs4", "/home")`; two empty strings if there is no mount table.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
        except OSError:
            return "", ""
    path = path.resolve()
    best = ("", "")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Octal escapes for blanks: proc(5).
        point = (
            fields[1]
            .replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\")
        )
        inside = point == "/" or path == Path(point) or Path(point) in path.parents
        # A later mount on the same point covers the earlier one.
        if inside and len(point) >= len(best[1]):
            best = (fields[2], point)
    return best


def is_shared(kind: str) -> bool:
    """Tell whether a file system of this type is one that many hosts mount."""
    return kind.startswith(_SHARED)


def is_memory(kind: str) -> bool:
    """Tell whether a file system of this type keeps its files in memory."""
    return kind in _MEMORY
