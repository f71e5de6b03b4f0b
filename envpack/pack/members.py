"""A member on its way into an archive, the order of members, and their tar headers. Only `envpack.pack` imports this."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envpack.archive.index import digest

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable

    from envpack.archive.relocations import Record

    # A file's content, read or mapped.
    Data = bytes | mmap.mmap

# In the order of an archive.
DIRECTORY, FILE, HARDLINK, SYMLINK = range(4)
BLOCK = 512
_TYPES = {FILE: b"0", HARDLINK: b"1", SYMLINK: b"2", DIRECTORY: b"5"}


@dataclass(slots=True)
class Member:
    """One file, folder or link on its way into an archive.

    Attributes
    ----------
    path : bytes
        Its path, relative to the prefix.
    kind : int
        `FILE`, `DIRECTORY`, `SYMLINK` or `HARDLINK`.
    mode : int
        Permission bits.
    mtime_ns : int
        Modification time, in nanoseconds since 1970.
    size : int
        Bytes of a file's content.
    source : bytes
        The path of the file with its content, unless `data` has it.
    data : bytes or None
        Its content, if that is in no file.
    link : bytes
        The target of a symlink, or the path of the member that a hard link shares.
    relocation : str
        "none"; "unknown" if it may hold the source prefix; "text" or "binary" if conda has put the prefix there;
        "managed" if conda has not, so that only an edited file may; "settings" for a `pyvenv.cfg`.
    rooms : tuple[int, ...]
        For "binary": the lengths in bytes of the placeholders that the prefix may have replaced, one per package.
    package_digests : tuple[bytes, ...]
        The digests that conda's records have for the installed file: the first 16 bytes of its sha256. A file that has
        none of them was edited; none are known of some files.
    bytecode : bool
        A `.pyc` file that follows from its source.
    inode : tuple[int, int]
        Device and inode number of the source; zeros if there is none.
    changed : tuple[int, int]
        The inode number of its source, and the source's status change time in nanoseconds.
    digest : bytes
        Set when it is packed: the digest of its content.
    offset : int
        Set when it is packed: where its content starts in the tar stream, in bytes.
    record : Record
        Set when it is packed: its relocation record; empty if it needs none.
    parts : dict[int, bytes]
        Set when it is packed, if it spans frames: the offset of each part -> the part's digest.
    suspect : bool
        Set when it is packed, if it spans frames: a part holds a text that may have to be relocated.
    edited : bool
        Set when it is packed: its content has none of `package_digests`.
    """

    path: bytes
    kind: int
    mode: int = 0o755
    mtime_ns: int = 0
    size: int = 0
    source: bytes = b""
    data: bytes | None = None
    link: bytes = b""
    relocation: str = "none"
    rooms: tuple[int, ...] = ()
    package_digests: tuple[bytes, ...] = ()
    bytecode: bool = False
    inode: tuple[int, int] = (0, 0)
    changed: tuple[int, int] = (0, 0)
    digest: bytes = bytes(16)
    offset: int = 0
    record: Record = field(default_factory=list)
    parts: dict[int, bytes] = field(default_factory=dict)
    suspect: bool = False
    edited: bool = False


def from_stat(path: bytes, source: bytes, info: os.stat_result) -> Member:
    """Return the member for a file or folder.

    Parameters
    ----------
    path : bytes
        The member's path, relative to the prefix.
    source : bytes
        The path of the source.
    info : os.stat_result
        The source's `lstat` result.
    """
    mode = stat.S_IMODE(info.st_mode) & 0o777
    if stat.S_ISDIR(info.st_mode):
        return Member(path, DIRECTORY, mode)
    changed = (info.st_ino, info.st_ctime_ns)
    # Its other names may be two links that are followed, so the number of names does not matter.
    inode = (info.st_dev, info.st_ino)
    return Member(path, FILE, mode, info.st_mtime_ns, info.st_size, source, inode=inode, changed=changed)


def arrange(members: Iterable[Member]) -> list[Member]:
    """Return members in the order of the archive: folders, files, bytecode, hard links, symlinks.

    Of two members with the same path, the later one counts, as for tar. Missing parent folders are added. All folders
    are made writable, as the staged copy could not be removed otherwise.
    """
    unique = {member.path: member for member in members}
    for path in list(unique):
        parent = path.rpartition(b"/")[0]
        while parent:
            above = unique.get(parent)
            if above is not None and above.kind == DIRECTORY:
                break
            # Members may lie behind a symlink to a folder: a real folder takes the symlink's place.
            unique[parent] = Member(parent, DIRECTORY)
            parent = parent.rpartition(b"/")[0]
    first: dict[tuple[object, ...], Member] = {}
    paths = sorted(unique)
    for path in paths:
        member = unique[path]
        if member.kind == DIRECTORY:
            member.mode |= 0o700
        elif member.kind == FILE and member.inode != (0, 0) and not path.endswith(b".pyc"):
            # Staging makes the run paths of programs and libraries relative to their folder.
            folder = path.rpartition(b"/")[0] if member.mode & 0o111 or b".so" in path else b""
            other = first.setdefault((member.inode, member.relocation, member.rooms, folder), member)
            if other is not member:
                unique[path] = Member(path, HARDLINK, member.mode, member.mtime_ns, link=other.path)
    return sorted((unique[path] for path in paths), key=part)


def part(member: Member) -> int:
    """Return which part of the archive a member lies in; within it, members are sorted by their paths."""
    return 2 * member.kind + member.bytecode


def order(member: Member) -> tuple[int, bytes]:
    """Return the key that sorts members in the order of the archive."""
    return part(member), member.path


def stamp(member: Member) -> bytes:
    """Return what names a member and its content without reading it: it changes with every change of its source."""
    content = b"%d %d %d" % (member.mtime_ns, *member.changed) if member.data is None else digest(member.data)
    numbers = (
        f"{member.kind} {member.mode} {member.size} {member.mtime_ns} {member.relocation} {member.rooms}"
    )
    return b"\0".join((member.path, member.link, *member.package_digests, content, numbers.encode()))


def newest_change_ns(member: Member) -> int:
    """Return when a member's source last changed, in nanoseconds since 1970; 0 if its content is in no file."""
    return 0 if member.data is not None else max(member.mtime_ns, member.changed[1])


def tar_header(member: Member) -> bytes:
    """Return a member's header blocks, in GNU tar's format (tar manual, "Basic Tar Format")."""
    path = member.path + b"/" if member.kind == DIRECTORY else member.path
    blocks = b""
    if len(path) > 100:
        blocks += _long(b"L", path)
    if len(member.link) > 100:
        blocks += _long(b"K", member.link)
    size = member.size if member.kind == FILE else 0
    seconds = max(0, member.mtime_ns // 1_000_000_000)
    return blocks + _block(path, member.mode, size, seconds, _TYPES[member.kind], member.link)


def padding(size: int) -> bytes:
    """Return the NUL bytes that fill the last tar block of a file of this size."""
    return bytes(-size % BLOCK)


def header_bytes(member: Member) -> int:
    """Return the size of `tar_header(member)` in bytes, without making it."""
    path = len(member.path) + (member.kind == DIRECTORY)
    size = BLOCK
    for length in (path, len(member.link)):
        if length > 100:
            size += 2 * BLOCK + length // BLOCK * BLOCK
    return size


def _long(kind: bytes, value: bytes) -> bytes:
    content = value + b"\0"
    return _block(b"././@LongLink", 0o644, len(content), 0, kind, b"") + content + padding(len(content))


def _block(name: bytes, mode: int, size: int, seconds: int, kind: bytes, link: bytes) -> bytes:
    block = bytearray(BLOCK)
    block[0 : min(100, len(name))] = name[:100]
    block[100:108] = b"%07o\0" % mode
    block[108:124] = b"0000000\0" * 2
    block[124:136] = _number(size)
    block[136:148] = _number(seconds)
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + min(100, len(link))] = link[:100]
    block[257:265] = b"ustar  \0"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int) -> bytes:
    if value < 8**11:
        return b"%011o\0" % value
    return b"\x80" + value.to_bytes(11, "big")
