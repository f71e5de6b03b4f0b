"""Collect a conda environment's files: conda-pack knows conda's records, placeholders, missing and clobbered files.

Only `envpack.pack` imports this module. conda-pack is imported when it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from fnmatch import fnmatch
from pathlib import Path

from envpack.errors import BrokenEnvironmentError
from envpack.pack.members import FILE, Member, from_stat, omitted

# conda-pack omits these from a base environment: other environments, the package cache and the like.
OMITTED = frozenset(
    ("pkgs", "envs", "conda-bld", ".conda_lock", "users", "conda-recipes", ".index", ".unionfs", ".nonadmin")
)

REPAIR = "Repair the environment, or create it anew"


def collect(prefix: Path) -> tuple[list[Member], list[str]]:
    """Return a conda environment's members, and warnings for the user.

    Raises
    ------
    BrokenEnvironmentError
        conda's records cannot be read, or files that conda installed are missing; the message lists packages and files.
    """
    from conda_pack.core import CondaEnv, CondaPackException

    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env = CondaEnv.from_prefix(os.fspath(prefix), ignore_editable_packages=True)
        except CondaPackException as exc:
            problem = f"cannot pack {prefix}: {str(exc).strip().removesuffix('.')}"
            raise BrokenEnvironmentError(problem, REPAIR) from exc
        except (OSError, ValueError, KeyError) as exc:
            raise BrokenEnvironmentError(
                f"cannot pack {prefix}: conda's records in {prefix / 'conda-meta'} cannot be read: {exc!r}",
                REPAIR,
            ) from exc
    uncached = _uncached(prefix) if caught else {}
    members: list[Member] = []
    skipped: list[str] = []
    changed: list[str] = []
    for file in env.files:
        member = _member(prefix, file, uncached)
        if member is None:
            skipped.append(file.target)
            continue
        members.append(member)
        bytecode = file.target.endswith(".pyc")  # Python writes stale ones again
        if file.file_mode is None and not bytecode and _was_changed(prefix / file.target, member):
            changed.append(file.target)
    members += _activation()
    if changed:
        messages.append(
            f"{len(changed)} files of conda packages were edited in {prefix}; the packages' versions were packed, not "
            f"your edits: {', '.join(sorted(changed)[:5])}"
        )
    if skipped:
        messages.append(omitted(skipped))
    return members, messages


def _member(prefix: Path, file: object, uncached: dict[str, tuple[str, str]]) -> Member | None:
    source = os.fsencode(file.source)  # type: ignore[attr-defined]
    target = file.target  # type: ignore[attr-defined]
    mode = file.file_mode  # type: ignore[attr-defined]
    placeholder = file.prefix_placeholder or ""  # type: ignore[attr-defined]
    path = os.fsencode(os.path.normpath(target))
    try:
        info = os.lstat(source)
    except FileNotFoundError:
        # The package cache has lost this file; the environment still has it.
        source = os.fsencode(prefix / target)
        mode = "unknown"
        info = os.lstat(source)
    member = from_stat(path, source, info, mode or "none", os.fsencode(placeholder))
    if member is None or member.kind != FILE:
        return member
    if mode is None and fnmatch(target, "conda-meta/*.json"):
        member.data = _conda_meta(Path(os.fsdecode(source)))
        member.size = len(member.data)
        member.inode = (0, 0)
    elif mode == "binary" and path.startswith(b"bin/python"):
        # conda-unpack does not relocate the interpreter either.
        member.relocation = "none"
    elif mode == "unknown" and target in uncached:
        placeholder, sha256 = uncached[target]
        member.data = restored(
            Path(os.fsdecode(source)).read_bytes(), os.fsencode(prefix), os.fsencode(placeholder)
        )
        if hashlib.sha256(member.data).hexdigest() == sha256:
            member.relocation, member.placeholder = "binary", os.fsencode(placeholder)
            member.inode = (0, 0)
        else:
            # Somebody has changed it since conda installed it: it is packed as it is.
            member.data = None
    return member


def restored(data: bytes, prefix: bytes, placeholder: bytes) -> bytes:
    """Return a binary as its package has it: undo conda's replacement of the placeholder by the prefix.

    Parameters
    ----------
    data : bytes
        The installed binary.
    prefix, placeholder : bytes
        The environment's prefix, and the longer text that it replaced.
    """

    def undo(match: re.Match[bytes]) -> bytes:
        text = match.group(1)
        room = (len(placeholder) - len(prefix)) * text.count(prefix)
        return text.replace(prefix, placeholder) + match.group(2)[room:]

    return re.sub(b"(" + re.escape(prefix) + rb"[^\0]*)(\0+)", undo, data)


def _was_changed(path: Path, member: Member) -> bool:
    """Tell whether a file in the environment differs in size from the package's version, which is packed."""
    if member.kind != FILE or member.data is not None or os.fsencode(path) == member.source:
        return False
    try:
        return path.lstat().st_size != member.size
    except OSError:
        return False


def _conda_meta(path: Path) -> bytes:
    """Return a package's record as conda-pack writes it: without the paths that it was installed from."""
    record = json.loads(path.read_bytes())
    for field in ("extracted_package_dir", "package_tarball_full_path"):
        if field in record:
            record[field] = ""
    if record.get("link") and "source" in record["link"]:
        record["link"]["source"] = ""
    return json.dumps(record, indent=True, sort_keys=True).encode()


def _uncached(prefix: Path) -> dict[str, tuple[str, str]]:
    """Return path -> (placeholder, sha256) for the binaries of packages that the package cache no longer has."""
    binaries = {}
    for path in (prefix / "conda-meta").glob("*.json"):
        record = json.loads(path.read_bytes())
        if Path((record.get("link") or {}).get("source") or "/nonexistent").exists():
            continue
        for item in (record.get("paths_data") or {}).get("paths") or []:
            if item.get("file_mode") == "binary" and item.get("prefix_placeholder"):
                binaries[item["_path"]] = (item["prefix_placeholder"], item.get("sha256") or "")
    return binaries


def _activation() -> list[Member]:
    """Return the activate scripts that conda-pack adds to every archive."""
    import conda_pack

    folder = Path(conda_pack.__file__).parent / "scripts" / "posix"
    members = []
    for name in ("activate", "deactivate", "activate.fish"):
        source = os.fsencode(folder / name)
        member = from_stat(os.fsencode(f"bin/{name}"), source, os.lstat(source))
        if member is not None:
            members.append(member)
    return members
