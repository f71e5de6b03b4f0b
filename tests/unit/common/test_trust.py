"""What may be trusted, with a real second user where root can make one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from envpack.errors import MalformedValueError
from mpiboot.common import trust
from mpiboot.errors import SecurityError

OTHER_UID = 54321


@pytest.fixture
def second_user():
    if os.geteuid() != 0:
        reason = (
            "a second user can be made only by root: sudo python -m pytest tests/unit/common/test_trust.py"
        )
        (pytest.fail if os.environ.get("MPIBOOT_REQUIRE_CLUSTER") == "1" else pytest.skip)(reason)
    return OTHER_UID


def directory(path: Path, mode=0o700, uid=None) -> Path:
    path.mkdir(parents=True)
    path.chmod(mode)
    if uid is not None:
        os.chown(path, uid, -1)
    return path


def link(path: Path, target, uid=None) -> Path:
    path.symlink_to(target)
    if uid is not None:
        os.lchown(path, uid, -1)
    return path


@pytest.fixture
def place():
    """A folder straight below /tmp: sticky, root's, as on every node."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_ours_alone_is_trusted(place):
    trust.check_trusted(directory(place / "job"), "directory")
    (place / "job/file").touch(mode=0o600)
    trust.check_trusted(place / "job/file", "file")


def test_our_own_links_on_the_way_are_trusted(place):
    directory(place / "real/job")
    link(place / "absolute", place / "real")
    link(place / "relative", "real/../real")
    for name in ("absolute", "relative", "real/../relative", "real/."):
        trust.check_trusted(place / name / "job", "directory")


def test_a_sticky_folder_on_the_way_is_trusted(place):
    directory(place / "tmp", 0o1777)
    trust.check_trusted(directory(place / "tmp/job"), "directory")


def test_a_relative_path(place, monkeypatch):
    directory(place / "job", 0o701)
    monkeypatch.chdir(place)
    with pytest.raises(SecurityError, match=f"{place}/job cannot be trusted"):
        trust.check_trusted("job", "directory")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda p: directory(p / "job", 0o710),
            "{p}/job cannot be trusted: it is open to others (mode 0710)",
        ),
        (
            lambda p: directory(p / "job", 0o702),
            "{p}/job cannot be trusted: it is open to others (mode 0702)",
        ),
        (lambda p: (p / "job").touch(0o600), "{p}/job cannot be trusted: it is not a directory"),
        (lambda p: link(p / "job", directory(p / "x")), "{p}/job cannot be trusted: it is a symbolic link"),
        (lambda p: link(p / "job", "job"), "{p}/job cannot be trusted: it is a symbolic link"),
    ],
)
def test_what_is_not_ours_alone_is_refused(place, make, says):
    make(place)
    with pytest.raises(SecurityError) as refusal:
        trust.check_trusted(place / "job", "directory")
    assert str(refusal.value).startswith(says.format(p=place))


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o2775])
def test_a_folder_that_others_can_write_on_the_way_is_refused(place, mode):
    directory(place / "shared/job")
    (place / "shared").chmod(mode)
    with pytest.raises(SecurityError) as refusal:
        trust.check_trusted(place / "shared/job", "directory")
    assert str(refusal.value) == (
        f"{place}/shared/job cannot be trusted: {place}/shared can be written by others (mode {mode:04o}). "
        f"If you trust what is in there: chmod go-w {place}/shared"
    )


def test_a_loop_of_links_is_refused(place):
    link(place / "a", "b")
    link(place / "b", "a")
    with pytest.raises(SecurityError, match="Too many levels of symbolic links"):
        trust.check_trusted(place / "a/job", "directory")


def test_a_file_on_the_way_is_refused(place):
    (place / "file").touch()
    with pytest.raises(SecurityError, match=f"{place}/link/job cannot be trusted: .*Not a directory"):
        trust.check_trusted(link(place / "link", "file") / "job", "directory")


def test_what_is_missing_is_no_question_of_trust(place):
    with pytest.raises(FileNotFoundError):
        trust.check_trusted(place / "job", "directory")
    with pytest.raises(FileNotFoundError):
        trust.open_trusted(place / "file", 10)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda p, uid: directory(p / "job", uid=uid),
            "job cannot be trusted: it belongs to uid 54321, not to root",
        ),
        (
            lambda p, uid: os.chown(directory(p / "theirs/job").parent, uid, -1),
            "theirs belongs to uid 54321, who could swap",
        ),
        (
            lambda p, uid: link(p / "theirs", directory(p / "mine/job").parent, uid),
            "theirs belongs to uid 54321, who could swap",
        ),
        (
            lambda p, uid: (
                directory(p / "mine/job"),
                link(p / "first", "second"),
                link(p / "second", "mine", uid),
            ),
            "second belongs to uid 54321, who could swap",
        ),
    ],
    ids=["planted directory", "their parent", "their link", "their link behind ours"],
)
def test_a_second_user_s_work_is_refused(place, second_user, make, says):
    make(place, second_user)
    path = next(p / "job" for p in (place / "first", place / "theirs", place) if (p / "job").exists())
    with pytest.raises(SecurityError) as refusal:
        trust.check_trusted(path, "directory")
    assert says in str(refusal.value)
    assert "MPIBOOT_HOME" in str(refusal.value)


def test_root_s_folders_are_trusted_and_root_s_endpoint_is_not(place, second_user):
    place.chmod(0o755)
    directory(place / "home", 0o755)
    directory(place / "home/job", uid=second_user)
    (place / "home/file").touch(0o600)
    os.seteuid(second_user)
    try:
        trust.check_trusted(place / "home/job", "directory")
        with pytest.raises(SecurityError, match=r"it belongs to root \(uid 0\), not to uid 54321"):
            trust.check_trusted(place / "home/file", "file")
    finally:
        os.seteuid(0)


# ---- reading ----------------------------------------------------------------------------------------------


def test_a_trusted_file_is_read(place):
    (place / "file").touch(0o600)
    (place / "file").write_bytes(b"12345")
    assert trust.open_trusted(place / "file", 5) == b"12345"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_bytes(b"123456"), "it has more than 5 bytes"),
        (lambda file: file.chmod(0o640), r"it is open to others \(mode 0640\)"),
        (lambda file: (file.unlink(), os.mkfifo(file, 0o600)), "it is not a regular file"),
        (lambda file: (file.unlink(), file.mkdir(0o700)), "it is not a regular file"),
        (
            lambda file: file.rename(file.with_name("x")).parent.joinpath("file").symlink_to("x"),
            "it is a symbolic link",
        ),
    ],
    ids=["too big", "mode", "fifo", "directory", "link"],
)
def test_a_file_not_to_be_trusted_is_not_read(place, make, says):
    (place / "file").touch(0o600)
    make(place / "file")
    with pytest.raises(SecurityError, match=f"{place}/file cannot be trusted: {says}"):
        trust.open_trusted(place / "file", 5)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda file: file.chmod(0o640), "If you trust its content: chmod go-rwx {file}"),
        (lambda file: file.write_bytes(b"123456"), "Submit the job again, once it is removed: rm {file}"),
        (
            lambda file: (file.unlink(), file.mkdir(0o700)),
            "Somebody else may have put it there: remove it, or set MPIBOOT_HOME to a folder of your own",
        ),
    ],
    ids=["mode", "too big", "directory"],
)
def test_a_file_not_to_be_trusted_has_a_remedy(place, make, remedy):
    (place / "file").touch(0o600)
    make(place / "file")
    with pytest.raises(SecurityError) as error:
        trust.open_trusted(place / "file", 5)
    assert str(error.value).endswith(". " + remedy.format(file=place / "file"))


def test_a_file_without_secrets_may_be_read_by_others_and_not_written(place):
    (place / "file").touch()
    (place / "file").chmod(0o644)
    assert trust.open_trusted(place / "file", 5, secret=False) == b""
    for mode in (0o664, 0o646):
        (place / "file").chmod(mode)
        with pytest.raises(SecurityError, match=rf"it is open to others \(mode {mode:04o}\)"):
            trust.open_trusted(place / "file", 5, secret=False)


def test_a_second_user_s_file_is_not_read(place, second_user):
    (place / "file").touch(0o600)
    os.chown(place / "file", second_user, -1)
    with pytest.raises(SecurityError, match="it belongs to uid 54321"):
        trust.open_trusted(place / "file", 5)


def test_trust_needs_the_standard_library_alone():
    root = Path(trust.__file__).parents[2]
    script = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from mpiboot.common.trust import check_trusted; check_trusted('/', 'file')"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    assert "SecurityError: / cannot be trusted: it is not a regular file" in done.stderr


# ---- what is removed --------------------------------------------------------------------------------------


def test_a_directory_of_files_is_removed(place):
    (directory(place / "tls") / "key").touch()
    trust.remove_files(place / "tls")
    assert list(place.iterdir()) == []
    trust.remove_files(place / "tls")


def test_no_link_is_followed(place):
    (directory(place / "elsewhere") / "thesis").touch()
    link(place / "tls", place / "elsewhere")
    with pytest.raises(OSError, match="Not a directory"):
        trust.remove_files(place / "tls")
    assert (place / "elsewhere/thesis").exists()


@pytest.mark.parametrize(
    ("uid_map", "is_trusted"),
    [
        ("         0          0 4294967295\n", False),  # no namespace of its own
        ("0 1000 1\n1 100000 65536\n", False),  # a container that maps user 65534, too
        ("0 1000 1\n1 100000 60000\n", True),
        ("61001 61001 1\n", True),
    ],
)
def test_in_a_user_namespace_root_may_seem_to_be_nobody(place, second_user, monkeypatch, uid_map, is_trusted):
    """As in rootless containers, where / belongs to nobody."""
    (place / "uid_map").write_text(uid_map)
    monkeypatch.setattr(trust, "_UID_MAP", place / "uid_map")
    folder = directory(place / "root/job")
    os.chown(place / "root", int(Path("/proc/sys/kernel/overflowuid").read_text()), -1)
    if is_trusted:
        trust.check_trusted(folder, "directory")
    else:
        with pytest.raises(SecurityError, match=f"{place}/root belongs to"):
            trust.check_trusted(folder, "directory")


def test_a_projects_folder_that_the_user_vouches_for(place, second_user, monkeypatch):
    """The group's head owns it, and the group may write: mode 2770."""
    project = place / "project"
    folder = directory(project / "me/jobs")
    os.chown(project, second_user, -1)
    project.chmod(0o2770)
    with pytest.raises(SecurityError, match=f"export MPIBOOT_TRUSTED_FOLDERS={project}"):
        trust.check_trusted(folder, "directory")
    monkeypatch.setenv("MPIBOOT_TRUSTED_FOLDERS", f"/elsewhere:{project}/")
    trust.check_trusted(folder, "directory")
    folder.chmod(0o770)  # only folders on the way
    with pytest.raises(SecurityError, match="is open to others"):
        trust.check_trusted(folder, "directory")


def test_trusted_folders_are_paths_as_in_every_variable():
    environ = {"MPIBOOT_TRUSTED_FOLDERS": "~/a::$B/c/", "HOME": "/home/me", "B": "/b"}
    assert trust.trusted_folders(environ) == {Path("/home/me/a"), Path("/b/c")}
    with pytest.raises(MalformedValueError, match="'project' is a relative path"):
        trust.trusted_folders({"MPIBOOT_TRUSTED_FOLDERS": "project"})
