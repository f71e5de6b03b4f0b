"""A conda environment's files, from conda-pack: it knows conda's records, placeholders, missing and clobbered files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from fnmatch import fnmatch
from pathlib import Path

from envpack.errors import BrokenEnvironmentError
from envpack.pack.members import FILE, Member, from_stat

# Other environments, the package cache and the like, which conda-pack leaves out of a base environment.
LEFT_OUT = frozenset(
    ("pkgs", "envs", "conda-bld", ".conda_lock", "users", "conda-recipes", ".index", ".unionfs", ".nonadmin")
)


def collect(prefix: Path) -> tuple[list[Member], list[str]]:
    """Return a conda prefix's members, and warnings.

    Raises
    ------
    BrokenEnvironmentError
        Files that conda installed are missing: lists packages and files.
    """
    from conda_pack.core import CondaEnv, CondaPackException

    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env = CondaEnv.from_prefix(os.fspath(prefix), ignore_editable_packages=True)
        except CondaPackException as exc:
            raise BrokenEnvironmentError(f"cannot pack {prefix}: {str(exc).strip()}") from exc
        except (OSError, ValueError, KeyError) as exc:
            raise BrokenEnvironmentError(
                f"cannot pack {prefix}: conda's records in {prefix / 'conda-meta'} cannot be read: {exc!r}; "
                "repair the environment, or create it anew"
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
        bytecode = file.target.endswith(".pyc")  # made anew by every Python that finds it stale
        if file.file_mode is None and not bytecode and _was_changed(prefix / file.target, member):
            changed.append(file.target)
    members += _activation()
    if changed:
        found.append(
            f"{len(changed)} files of conda packages were changed in {prefix}; packed is, as by conda-pack, what the "
            f"packages have: {', '.join(sorted(changed)[:5])}"
        )
    if skipped:
        found.append(f"left out, as neither file, folder nor link: {', '.join(sorted(skipped)[:5])}")
    return members, found


def _member(prefix: Path, file: object, uncached: dict[str, tuple[str, str]]) -> Member | None:
    source = os.fsencode(file.source)  # type: ignore[attr-defined]
    target = file.target  # type: ignore[attr-defined]
    mode = file.file_mode  # type: ignore[attr-defined]
    placeholder = file.prefix_placeholder or ""  # type: ignore[attr-defined]
    path = os.fsencode(os.path.normpath(target))
    try:
        info = os.lstat(source)
    except FileNotFoundError:
        # The package cache has lost this one file; the environment has it.
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
        # As conda-unpack, which leaves the interpreter alone.
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
            # Not as conda installed it: left as it is.
            member.data = None
    return member


def restored(data: bytes, prefix: bytes, placeholder: bytes) -> bytes:
    """Undo what conda did to a binary when it installed it: give each path its placeholder, and its size, back."""

    def undo(match: re.Match[bytes]) -> bytes:
        text = match.group(1)
        room = (len(placeholder) - len(prefix)) * text.count(prefix)
        return text.replace(prefix, placeholder) + match.group(2)[room:]

    return re.sub(b"(" + re.escape(prefix) + rb"[^\0]*)(\0+)", undo, data)


def _was_changed(path: Path, member: Member) -> bool:
    """Tell whether a file that should be as its package has it, is not."""
    if member.kind != FILE or member.data is not None or os.fsencode(path) == member.source:
        return False
    try:
        return path.lstat().st_size != member.size
    except OSError:
        return False


def _conda_meta(path: Path) -> bytes:
    """Return a package's record without the places it came from, written as conda-pack writes it."""
    record = json.loads(path.read_bytes())
    for field in ("extracted_package_dir", "package_tarball_full_path"):
        if field in record:
            record[field] = ""
    if record.get("link") and "source" in record["link"]:
        record["link"]["source"] = ""
    return json.dumps(record, indent=True, sort_keys=True).encode()


def _uncached(prefix: Path) -> dict[str, tuple[str, str]]:
    """Return the placeholders of packages that are in the package cache no more: path -> (placeholder, sha256)."""
    found = {}
    for path in (prefix / "conda-meta").glob("*.json"):
        record = json.loads(path.read_bytes())
        if Path((record.get("link") or {}).get("source") or "/nonexistent").exists():
            continue
        for item in (record.get("paths_data") or {}).get("paths") or []:
            if item.get("file_mode") == "binary" and item.get("prefix_placeholder"):
                found[item["_path"]] = (item["prefix_placeholder"], item.get("sha256") or "")
    return found


def _activation() -> list[Member]:
    """Return conda-pack's own activate scripts, which it adds to every archive."""
    import conda_pack

    folder = Path(conda_pack.__file__).parent / "scripts" / "posix"
    members = []
    for name in ("activate", "deactivate", "activate.fish"):
        source = os.fsencode(folder / name)
        member = from_stat(os.fsencode(f"bin/{name}"), source, os.lstat(source))
        if member is not None:
            members.append(member)
    return members
