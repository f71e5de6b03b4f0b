"""What a Python lacks that was built against glibc 2.17 and Linux 3.10, as conda-forge's and uv's are (manylinux2014).

condachannel.py takes these names out of the interpreter of the tests' environments; tests/unit/test_old_glibc.py looks
for them in the sources.
"""

import re
import struct
from pathlib import Path

# By module: names of Python 3.10 to 3.14 that newer headers add; the version of glibc or Linux that has them first.
ABSENT = {
    "posix": {
        **dict.fromkeys(("copy_file_range", "memfd_create"), "glibc 2.27"),
        "getrandom": "glibc 2.25, Linux 3.17",
        "pidfd_open": "Linux 5.3",
        "O_TMPFILE": "glibc 2.19",
        "P_PIDFD": "glibc 2.36",
        **dict.fromkeys(("GRND_NONBLOCK", "GRND_RANDOM"), "glibc 2.25"),
        **dict.fromkeys(("MFD_ALLOW_SEALING", "MFD_CLOEXEC", "MFD_HUGETLB"), "glibc 2.27"),
        **dict.fromkeys(("RWF_DSYNC", "RWF_HIPRI", "RWF_NOWAIT", "RWF_SYNC"), "glibc 2.26"),
        "RWF_APPEND": "glibc 2.28",
        "POSIX_SPAWN_CLOSEFROM": "glibc 2.34",
        "PIDFD_NONBLOCK": "glibc 2.36",
        **dict.fromkeys(("SCHED_DEADLINE", "CLONE_NEWCGROUP", "CLONE_NEWTIME", "CLONE_PIDFD"), "Linux 4.6"),
        **dict.fromkeys(("ST_NOSYMFOLLOW", "EX_NOTFOUND", "statx"), "later than Linux 3.10"),
    },
    "_signal": {"pidfd_send_signal": "Linux 5.1"},
    "fcntl": {
        **dict.fromkeys(("F_OFD_GETLK", "F_OFD_SETLK", "F_OFD_SETLKW"), "Linux 3.15"),
        **dict.fromkeys(("F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_GROW", "F_SEAL_SEAL"), "Linux 3.17"),
        **dict.fromkeys(("F_SEAL_SHRINK", "F_SEAL_WRITE"), "Linux 3.17"),
        **dict.fromkeys(("FICLONE", "FICLONERANGE"), "Linux 4.5"),
    },
    "mmap": dict.fromkeys(("MADV_FREE", "MADV_COLD", "MADV_PAGEOUT", "MAP_FIXED_NOREPLACE"), "Linux 4.5"),
    "select": {"EPOLLEXCLUSIVE": "Linux 4.5"},
    "_socket": {
        "AF_VSOCK": "glibc 2.18",
        **dict.fromkeys(("IP_BIND_ADDRESS_NO_PORT", "TCP_NOTSENT_LOWAT", "SO_INCOMING_CPU"), "Linux 3.12"),
        **dict.fromkeys(("IPPROTO_MPTCP", "SO_BINDTOIFINDEX", "AF_QIPCRTR"), "Linux 4.7"),
    },
    "time": {"CLOCK_TAI": "glibc 2.21"},
}
# The public modules that show these names.
PUBLIC = {"posix": "os", "_signal": "signal", "_socket": "socket"}


def take_out(library: Path) -> None:
    """Rename every name of ABSENT in a file of the interpreter, so that no module has it, with `-S` and `-I` too.

    Modules are made from tables of names, which are strings among the file's constants. `os` shows no name that begins
    with an underscore.
    """
    data = bytearray(library.read_bytes())
    start, end = constants(data)
    names = b"|".join(name.encode() for names in ABSENT.values() for name in names)
    # A linker lets a string be the end of another, such as that of an audit event: os.pidfd_open.
    for match in re.finditer(rb"(?<!\w)(%s)\0" % names, bytes(data[start:end])):
        data[start + match.start()] = ord("_")
    library.write_bytes(data)


def constants(data: bytes | bytearray) -> tuple[int, int]:
    """Return where the section `.rodata` of an ELF file of 64 bits begins and ends (elf(5)); (0, 0) if it has none."""
    if data[:5] != b"\x7fELF\2":
        return 0, 0
    table, size, count, names = *struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    texts = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if data.startswith(b".rodata\0", texts + name):
            return offset, offset + length
    return 0, 0
