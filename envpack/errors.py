"""What can go wrong, by name.

EnvpackError                     one line for the user: what failed, the path, why, and what to do
├── NotAnEnvironmentError        the prefix is neither a conda environment nor a venv
├── BrokenEnvironmentError       files are missing, unreadable, or change while they are packed
├── ArchiveError                 the archive cannot be used
│   ├── NotAnArchiveError        no envpack index at its end: foreign, or cut short
│   ├── ArchiveVersionError      made by another version of envpack
│   ├── CorruptArchiveError      content differs from what the index promises; names the member
│   ├── HostileArchiveError      a member would be written outside the staged prefix, or is no file, link or folder
│   └── WrongArchiveError        not the archive that was asked for: replaced since it was packed
├── StageRootError               the staging root is not safe, or cannot run programs
├── NoSpaceError                 not enough bytes or inodes on the node
├── PrefixTooLongError           the staged prefix does not fit where a binary holds its placeholder
└── StageFailedError             writing the copy failed for another reason
"""


class EnvpackError(Exception):
    """Base of all: `str(error)` is the whole message, `exit_status` what the command line returns."""

    exit_status = 1


class NotAnEnvironmentError(EnvpackError):
    pass


class BrokenEnvironmentError(EnvpackError):
    pass


class ArchiveError(EnvpackError):
    pass


class NotAnArchiveError(ArchiveError):
    pass


class ArchiveVersionError(ArchiveError):
    pass


class CorruptArchiveError(ArchiveError):
    pass


class HostileArchiveError(ArchiveError):
    pass


class WrongArchiveError(ArchiveError):
    pass


class StageRootError(EnvpackError):
    pass


class NoSpaceError(EnvpackError):
    pass


class PrefixTooLongError(EnvpackError):
    pass


class StageFailedError(EnvpackError):
    pass
