"""Records of submitted jobs: files that submit leaves, so that a pending job is known whatever the site makes of it.

Only the client imports this module; it imports `envpack.common.trust`.
"""

from pathlib import Path

from envpack.common.trust import make_private_folder


def record(home: Path, key: str) -> None:
    """Record that mpiboot has submitted the job with this key; `find.clear_ended` removes the record.

    Raises
    ------
    OSError
        The record could not be written.
    """
    folder = home / "submitted"
    make_private_folder(folder)
    (folder / key).touch(mode=0o600)


def records(home: Path) -> dict[str, Path]:
    """Return the record of each submitted job that is not known to have ended, by the job's key."""
    return {path.name: path for path in (home / "submitted").glob("*-*")}
