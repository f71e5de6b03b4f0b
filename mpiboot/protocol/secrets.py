"""A job's secrets: TLS files and the dashboard's token.

Boot runs this from a slow shared file system, so it imports the standard library alone; `cryptography` is
imported where certificates are made.

    <job directory>/tls/     0700
        ca.pem               the job's own authority; its key is thrown away once the three are signed
        <role>.pem           certificate of scheduler, worker, client
        <role>-key.pem       its key
        token                what the dashboard and the HTTP routes ask for
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import ipaddress
import os
import secrets
import shlex
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpiboot.common.trust import check_trusted, open_trusted, remove_files
from mpiboot.errors import SecurityError

if TYPE_CHECKING:
    from cryptography import x509

    from envpack.common.places import StrPath

ROLES = ("scheduler", "worker", "client")
SECRET_NAMES = ("ca.pem", *(f"{role}{end}.pem" for role in ROLES for end in ("", "-key")), "token")

# Named first among the preloads of scheduler, worker and nanny (see mpiboot/preloads/secure.py).
GUARD_PRELOAD = "mpiboot.preloads.secure"
JOB_DIRECTORY_VARIABLE = "MPIBOOT_JOB_DIRECTORY"

_BACKDATE_S = 3600.0  # clocks of two nodes differ
_MARGIN_S = 24 * 3600.0  # an administrator may lengthen a running job
_YEAR_S = 365 * 24 * 3600.0
_SECRET_MAX_BYTES = 64 * 1024


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
        remove_files(tls)
        raise SecurityError(
            f"{error.filename or tls}: the job's secrets could not be written: {error.strerror}; "
            "check the quota of that file system (quota, df -h)"
        ) from error


def load_cryptography() -> None:
    """Import what `make_job_secrets` needs, when there is time for it."""
    from cryptography import x509  # noqa: F401
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: F401


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
