"""A job's secrets, and what may be trusted: TLS files, the dashboard's token, owners and modes.

Boot runs this from a slow shared file system, so it imports the standard library alone; `cryptography` is
imported where certificates are made, for checking trust needs none of it.

    <job directory>/tls/     0700
        ca.pem               the job's own authority; its key is thrown away once the three are signed
        <role>.pem           certificate of scheduler, worker, client
        <role>-key.pem       its key
        token                what the dashboard and the HTTP routes ask for
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import hmac
import ipaddress
import os
import pwd
import secrets
import shlex
import stat
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mpiboot.errors import SecurityError

if TYPE_CHECKING:
    from cryptography import x509

    StrPath = str | os.PathLike[str]

ROLES = ("scheduler", "worker", "client")
SECRET_NAMES = ("ca.pem", *(f"{role}{end}.pem" for role in ROLES for end in ("", "-key")), "token")

# Named first among the preloads of scheduler, worker and nanny (see mpiboot/preloads/secure.py).
GUARD_PRELOAD = "mpiboot.preloads.secure"
JOB_DIRECTORY_VARIABLE = "MPIBOOT_JOB_DIRECTORY"

_BACKDATE_S = 3600.0  # clocks of two nodes differ
_MARGIN_S = 24 * 3600.0  # an administrator may lengthen a running job
_YEAR_S = 365 * 24 * 3600.0
_SECRET_MAX_BYTES = 64 * 1024
_LINKS_MAX = 40  # Linux's own limit, path_resolution(7)


# ---- a job's secrets ------------------------------------------------------------------------------------


def make_job_secrets(
    job_directory: StrPath,
    *,
    valid_for_s: float | None,
    host_names: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> None:
    """Make the TLS files and the token of one job.

    Parameters
    ----------
    job_directory : path
        The job's directory, made by its owner with mode 0700.
    valid_for_s : float, seconds, or None
        The time left to the job. Certificates hold from an hour ago to a day after it; None: for a year.
    host_names : sequence of str, default ()
        The job's nodes. Dask compares no names; `curl --cacert` and browsers do, under `--dashboard-tls`.
    addresses : sequence of str, default ()
        Their IP addresses on the job's interface, which the dashboard's link has.

    Raises
    ------
    SecurityError
        The directory is not to be trusted, has secrets already, or could not be written.
    """
    job_directory = _dask_path(job_directory)
    check_trusted(job_directory, "directory")
    contents = _make_pems(_YEAR_S if valid_for_s is None else valid_for_s + _MARGIN_S, host_names, addresses)
    contents["token"] = secrets.token_urlsafe(32).encode()
    tls = job_directory / "tls"
    try:
        tls.mkdir()
        tls.chmod(0o700)  # whatever the umask
    except FileExistsError as error:
        raise SecurityError(
            f"{tls}: there are secrets of an earlier boot; remove them: rm -r {shlex.quote(str(tls))}"
        ) from error
    except OSError as error:
        raise SecurityError(f"{tls}: the job's secrets could not be written: {error.strerror}") from error
    try:
        for name, content in contents.items():
            _write_new(tls / name, content)
    except OSError as error:
        remove_job_secrets(job_directory)
        raise SecurityError(
            f"{error.filename or tls}: the job's secrets could not be written: {error.strerror}; "
            "check the quota of that file system (quota, df -h)"
        ) from error


def load_cryptography() -> None:
    """Import what `make_job_secrets` needs, when there is time for it."""
    from cryptography import x509  # noqa: F401
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: F401


def remove_job_secrets(job_directory: StrPath) -> None:
    """Remove what `make_job_secrets` made, if it is there. Two may try at once.

    Parameters
    ----------
    job_directory : path
        The job's directory.
    """
    tls = Path(job_directory) / "tls"
    with contextlib.suppress(FileNotFoundError):
        # By descriptor, never through a link: what is emptied here must be the job's own folder.
        directory = os.open(tls, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with os.scandir(directory) as entries:
                for name in [entry.name for entry in entries]:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
        tls.rmdir()


def read_token(job_directory: StrPath) -> str:
    """Read the token of a job.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    str
        The token. It belongs into no log and on no command line.

    Raises
    ------
    SecurityError
        There is none, or it is not to be trusted.
    """
    return _read_secret(Path(job_directory) / "tls" / "token").decode("ascii", "replace").strip()


def check_rank_secrets(job_directory: StrPath) -> None:
    """Refuse to start a rank that lacks one of the job's secrets, so that nothing starts unencrypted.

    Parameters
    ----------
    job_directory : path
        The job's directory, as this node sees it.

    Raises
    ------
    SecurityError
        Some are missing, unreadable, empty, or open to others; names all of them.
    """
    tls = _dask_path(job_directory) / "tls"
    faults = []
    try:
        check_trusted(tls, "directory")
    except FileNotFoundError:
        faults.append(f"{tls}: there is no such directory")
    except SecurityError as error:
        faults.append(str(error))
    else:
        for name in SECRET_NAMES:
            try:
                _read_secret(tls / name)
            except SecurityError as error:
                faults.append(str(error))
    if faults:
        raise SecurityError(
            f"{os.uname().nodename}: this rank lacks its TLS files and refuses to start:\n  "
            + "\n  ".join(faults)
        )


# ---- what Dask is told ------------------------------------------------------------------------------------


def dask_tls_environment(job_directory: StrPath) -> dict[str, str]:
    """Give the variables that make every rank, and a bare `Client()`, speak TLS with the job's files.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str]
        Variables of `dask.config`: names of files, no secret.
    """
    tls = _dask_path(job_directory) / "tls"
    prefix = "DASK_DISTRIBUTED__COMM__"
    environment = {
        f"{prefix}REQUIRE_ENCRYPTION": "True",
        f"{prefix}TLS__CA_FILE": str(tls / "ca.pem"),
    }
    for role in ROLES:
        environment[f"{prefix}TLS__{role.upper()}__CERT"] = str(tls / f"{role}.pem")
        environment[f"{prefix}TLS__{role.upper()}__KEY"] = str(tls / f"{role}-key.pem")
    return environment


def client_security_arguments(job_directory: StrPath) -> dict[str, str | bool]:
    """Give the arguments of `distributed.Security` for a client of the job.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str or bool]
        Keyword arguments.
    """
    tls = _dask_path(job_directory) / "tls"
    return {
        "tls_ca_file": str(tls / "ca.pem"),
        "tls_client_cert": str(tls / "client.pem"),
        "tls_client_key": str(tls / "client-key.pem"),
        "require_encryption": True,
    }


def guard_environment(job_directory: StrPath) -> dict[str, str]:
    """Give the variables that the guard preload needs; `GUARD_PRELOAD` must be the first of the preloads.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str]
        Variables for every rank.
    """
    return {JOB_DIRECTORY_VARIABLE: str(_dask_path(job_directory))}


def dashboard_tls_environment(job_directory: StrPath) -> dict[str, str]:
    """Give the variables that make the HTTP servers speak https (`--dashboard-tls`), the workers' too.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str]
        Variables for every rank. Dask has one setting for all HTTP servers of a process tree, so all show
        the scheduler's certificate.
    """
    tls = _dask_path(job_directory) / "tls"
    prefix = "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__"
    return {
        f"{prefix}CA_FILE": str(tls / "ca.pem"),
        f"{prefix}CERT": str(tls / "scheduler.pem"),
        f"{prefix}KEY": str(tls / "scheduler-key.pem"),
    }


def dashboard_cookie(job_name: str, token: str) -> tuple[str, str]:
    """Derive the dashboard's cookie from the token.

    Parameters
    ----------
    job_name : str
        The name of the job directory.
    token : str
        The job's token.

    Returns
    -------
    tuple[str, str]
        Name and value. The name is the job's own, for browsers send cookies to every port of a host: two
        jobs there must not overwrite each other's. The value does not give the token away.
    """
    # quote() is injective, and "%" may stand in a cookie's name (RFC 6265, section 4.1.1).
    name = "mpiboot-" + urllib.parse.quote(job_name, safe="")
    value = hmac.new(token.encode(), b"mpiboot dashboard cookie\0" + job_name.encode(), hashlib.sha256)
    return name, value.hexdigest()


# ---- what may be trusted ----------------------------------------------------------------------------------


def check_trusted(path: StrPath, kind: Literal["directory", "file"]) -> None:
    """Refuse a path that anybody but its owner, who must be us, could have made, changed or swapped.

    Parameters
    ----------
    path : path
        What is about to be used.
    kind : {"directory", "file"}
        What it must be.

    Raises
    ------
    SecurityError
        The path, or a directory or link on the way to it, is not only ours (or root's); says which and why.
    FileNotFoundError
        There is no such path, which is no question of trust.
    """
    path = Path(path).absolute()
    try:
        *passed, (last, status) = _walk(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SecurityError(f"{path} cannot be trusted: {error.filename}: {error.strerror}") from error
    for component, component_status in passed:
        if reason := _passable_fault(component_status):
            raise SecurityError(
                f"{path} cannot be trusted: {component} {reason}. "
                f"{_remedy_on_the_way(component, component_status)}"
            )
    if reason := _owned_fault(status, kind):
        raise SecurityError(f"{last} cannot be trusted: it {reason}. {_remedy_at_the_end(last, status)}")


def open_trusted(path: StrPath, max_bytes: int, *, secret: bool = True) -> bytes:
    """Read a file that must be ours. What is checked is what is read: the open file itself.

    The directories on the way are `check_trusted`'s part, once per job directory.

    Parameters
    ----------
    path : path
        The file.
    max_bytes : int, bytes
        The most it may hold.
    secret : bool, default True
        Others may not even read it. False: they may, as they may read Dask's own scheduler file.

    Returns
    -------
    bytes
        All of it.

    Raises
    ------
    SecurityError
        It is a link, no regular file, not ours, open to others, unreadable or too big.
    FileNotFoundError
        There is none (yet).
    """
    path = Path(path)
    try:
        # O_NONBLOCK: a planted FIFO must not make us wait for its writer.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise SecurityError(f"{path} cannot be trusted: {reason}. Remove it, and boot again.") from error
    try:
        status = os.fstat(file)
        if reason := _owned_fault(status, "file", 0o077 if secret else 0o022):
            raise SecurityError(f"{path} cannot be trusted: it {reason}. {_remedy_at_the_end(path, status)}")
        with os.fdopen(file, "rb", closefd=False) as stream:
            content = stream.read(max_bytes + 1)
    finally:
        os.close(file)
    if len(content) > max_bytes:
        raise SecurityError(
            f"{path} cannot be trusted: it has more than {max_bytes} bytes. Remove it, and boot again."
        )
    return content


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Give every directory and link that the kernel passes on its way to `path`, and `path` itself."""
    todo = list(reversed(path.parts))
    here = Path()
    links = 0
    while todo:
        part = todo.pop()
        here = (
            here.parent if part == ".." else here / part
        )  # `here` never ends in a link: its parent is right
        status = here.lstat()
        yield here, status
        if stat.S_ISLNK(status.st_mode) and todo:
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(here))
            todo += reversed(here.readlink().parts)
            here = here.parent


def _passable_fault(status: os.stat_result) -> str | None:
    """Say why a directory or link on the way is not safe to pass, or None."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to {_user(status.st_uid)}, who could swap what lies behind it"
    if stat.S_ISLNK(status.st_mode):
        return None  # a link's own mode means nothing; who may replace it, its directory says
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _owned_fault(
    status: os.stat_result, kind: Literal["directory", "file"], forbidden: int = 0o077
) -> str | None:
    """Say why something that must be ours, with none of the forbidden bits in its mode, is not, or None."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not (stat.S_ISDIR if kind == "directory" else stat.S_ISREG)(status.st_mode):
        return f"is not a {'directory' if kind == 'directory' else 'regular file'}"
    if status.st_uid != os.geteuid():
        return f"belongs to {_user(status.st_uid)}, not to {_user(os.geteuid())}"
    if status.st_mode & forbidden:
        return f"is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _remedy_on_the_way(path: Path, status: os.stat_result) -> str:
    if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode):
        return f"If you trust what is in there: chmod go-w {shlex.quote(str(path))}"
    return "Use a folder that only you and root can change: set MPIBOOT_HOME (or MPIBOOT_STAGE_ROOT)."


def _remedy_at_the_end(path: Path, status: os.stat_result) -> str:
    if status.st_uid == os.geteuid() and stat.S_IFMT(status.st_mode) in (stat.S_IFDIR, stat.S_IFREG):
        return f"If you trust its content: chmod go-rwx {shlex.quote(str(path))}"
    return "Somebody else may have put it there: remove it, or set MPIBOOT_HOME to a folder of your own."


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


# ---- files and certificates -------------------------------------------------------------------------------


def _dask_path(job_directory: StrPath) -> Path:
    path = Path(job_directory).absolute()
    if "\n" in str(path):
        # distributed/security.py, _get_tls_context: "\n" in a value makes it a certificate, not a path.
        raise SecurityError(
            f"{str(path)!r}: Dask takes a path with a line break for the certificate itself; "
            "set MPIBOOT_HOME to a folder without one"
        )
    return path


def _read_secret(path: Path) -> bytes:
    try:
        content = open_trusted(path, _SECRET_MAX_BYTES)
    except FileNotFoundError as error:
        raise SecurityError(f"{path}: there is no such file") from error
    if not content.startswith(b"-----BEGIN" if path.suffix == ".pem" else b"") or len(content) < 16:
        raise SecurityError(f"{path}: it is empty or damaged")
    return content


def _write_new(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)  # a umask of 0777 would leave a file that no rank can read
        stream.write(content)


def _make_pems(valid_for_s: float, host_names: Sequence[str], addresses: Sequence[str]) -> dict[str, bytes]:
    """Make an authority and one certificate and key per role, as name -> content."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.timezone.utc)
    not_before = now - datetime.timedelta(seconds=_BACKDATE_S)
    not_after = now + datetime.timedelta(seconds=valid_for_s)
    authority_key = ec.generate_private_key(ec.SECP256R1())

    def name(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mpiboot {common_name}")])

    def key_usage(*, authority: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not authority,
            key_cert_sign=authority,
            crl_sign=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )

    authority_name = name("job authority")

    def certificate(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, extensions: list[tuple[x509.ExtensionType, bool]]
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            # Python 3.13 verifies strictly (RFC 5280): key identifiers and key usage must be there.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        signed = builder.sign(authority_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    names = x509.SubjectAlternativeName(
        [
            *(x509.DNSName(name) for name in dict.fromkeys(("localhost", *host_names))),
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in dict.fromkeys(("127.0.0.1", *addresses))),
        ]
    )
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    pems = {
        "ca.pem": certificate(
            authority_name,
            authority_key,
            [(x509.BasicConstraints(ca=True, path_length=0), True), (key_usage(authority=True), True)],
        )
    }
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        # Scheduler and workers call each other; a client never listens, so its certificate cannot serve.
        usages = [client] if role == "client" else [client, server]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage(authority=False), True),
            (x509.ExtendedKeyUsage(usages), False),
            (names, False),
        ]
        pems[f"{role}.pem"] = certificate(name(role), key, extensions)
        pems[f"{role}-key.pem"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    return pems
