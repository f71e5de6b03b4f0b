"""A job's secrets, as all of its processes use them: file names, functions that read and check them, and Dask's
settings.

    <job directory>/tls/     0700
        ca.pem               certificate of the job's own authority, whose key is discarded once the three are signed
        <role>.pem           certificate of scheduler, worker, client
        <role>-key.pem       its key
        token                what the dashboard and the HTTP routes ask for

Client, boot and preloads import this module; it imports `common.trust` and the errors. `boot.certificates` makes the
files.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.places import HOME_VARIABLE
from mpiboot.common.trust import check_trusted, open_trusted
from mpiboot.errors import SecurityError
from mpiboot.protocol.variables import (
    DASHBOARD_ORIGINS_VARIABLE,
    DASK_DASHBOARD_CA_FILE,
    DASK_DASHBOARD_CERT,
    DASK_DASHBOARD_KEY,
    DASK_REQUIRE_ENCRYPTION,
    DASK_TLS_CA_FILE,
    DASK_TLS_PREFIX,
    JOB_DIRECTORY_VARIABLE,
)

if TYPE_CHECKING:
    from envpack.common.places import StrPath

ROLES = ("scheduler", "worker", "client")
SECRET_NAMES = ("ca.pem", *(f"{role}{end}.pem" for role in ROLES for end in ("", "-key")), "token")

# The first of the preloads of scheduler, worker and nanny (see mpiboot/preloads/secure.py).
GUARD_PRELOAD = "mpiboot.preloads.secure"

_SECRET_MAX_BYTES = 64 * 1024
_UNSEEN_REMEDY = (
    f"If the job still runs (mpiboot status), this host does not see its folder: set {HOME_VARIABLE} to one that all "
    "hosts see, and submit again"
)


def tls_folder(job_directory: StrPath) -> Path:
    """Return the folder of a job's secrets.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    Path
        An absolute path.

    Raises
    ------
    SecurityError
        The path holds a line break, which Dask does not understand in the path of a certificate.
    """
    path = Path(job_directory).absolute() / "tls"
    if "\n" in str(path):
        # distributed/security.py, _get_tls_context: "\n" in a value makes it a certificate, not a path.
        raise SecurityError(
            f"the job directory {str(path.parent)!r} has a line break in its path, which Dask takes for the certificate "
            "itself",
            f"Set {HOME_VARIABLE} to a folder without one",
        )
    return path


def read_token(job_directory: StrPath) -> str:
    """Read the token of a job.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    str
        The token; never write it to a log or a command line.

    Raises
    ------
    SecurityError
        There is no token, or others could have written it.
    """
    return _read_secret(tls_folder(job_directory) / "token").decode("ascii", "replace").strip()


def check_rank_secrets(job_directory: StrPath) -> None:
    """Refuse to start a rank that lacks one of the job's secrets, so that nothing starts unencrypted.

    Parameters
    ----------
    job_directory : path
        The job's directory, as this node sees it.

    Raises
    ------
    SecurityError
        Secrets are missing, unreadable, empty, or open to others; the message names all of them.
    """
    tls = tls_folder(job_directory)
    faults = []
    try:
        check_trusted(tls, "directory")
    except FileNotFoundError:
        faults.append(SecurityError(f"{tls}: there is no such directory", _UNSEEN_REMEDY))
    except SecurityError as error:
        faults.append(error)
    else:
        for name in SECRET_NAMES:
            try:
                _read_secret(tls / name)
            except SecurityError as error:
                faults.append(error)
    if faults:
        raise SecurityError(
            f"{os.uname().nodename}: this rank lacks its TLS files and refuses to start:\n  "
            + "\n  ".join(fault.problem for fault in faults),
            faults[0].remedy,
        )


def dask_tls_environment(job_directory: StrPath) -> dict[str, str]:
    """Return the variables with which every rank, and a `Client()` without arguments, use the job's TLS files.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str]
        Variables of Dask's configuration; they contain names of files, and no secret.
    """
    tls = tls_folder(job_directory)
    environment = {DASK_REQUIRE_ENCRYPTION: "True", DASK_TLS_CA_FILE: str(tls / "ca.pem")}
    for role in ROLES:
        environment[f"{DASK_TLS_PREFIX}{role.upper()}__CERT"] = str(tls / f"{role}.pem")
        environment[f"{DASK_TLS_PREFIX}{role.upper()}__KEY"] = str(tls / f"{role}-key.pem")
    return environment


def client_security_arguments(job_directory: StrPath) -> dict[str, str | bool]:
    """Return the arguments of `distributed.Security` for a client of the job.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str or bool]
        Keyword arguments.
    """
    tls = tls_folder(job_directory)
    return {
        "tls_ca_file": str(tls / "ca.pem"),
        "tls_client_cert": str(tls / "client.pem"),
        "tls_client_key": str(tls / "client-key.pem"),
        "require_encryption": True,
    }


def guard_environment(job_directory: StrPath, origins: str | None = None) -> dict[str, str]:
    """Return the variables that `GUARD_PRELOAD`, which must be the first of the preloads, needs.

    Parameters
    ----------
    job_directory : path
        The job's directory.
    origins : str, optional
        Origins, with blanks in between, whose pages may show the dashboard.

    Returns
    -------
    dict[str, str]
        Variables for every rank.
    """
    variables = {JOB_DIRECTORY_VARIABLE: str(tls_folder(job_directory).parent)}
    return variables | ({DASHBOARD_ORIGINS_VARIABLE: origins} if origins else {})


def dashboard_tls_environment(job_directory: StrPath) -> dict[str, str]:
    """Return the variables with which the HTTP servers of scheduler and workers speak https (`--dashboard-tls`).

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Returns
    -------
    dict[str, str]
        Variables for every rank. Dask has one setting for all HTTP servers, so all show the scheduler's certificate.
    """
    tls = tls_folder(job_directory)
    return {
        DASK_DASHBOARD_CA_FILE: str(tls / "ca.pem"),
        DASK_DASHBOARD_CERT: str(tls / "scheduler.pem"),
        DASK_DASHBOARD_KEY: str(tls / "scheduler-key.pem"),
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
        Name and value. Browsers send a cookie to every port of a host, so each job's cookie has a name of its own: two
        jobs on one host must not overwrite each other's. The value does not reveal the token.
    """
    # Different names have different quoted forms, and a cookie's name may contain "%" (RFC 6265, section 4.1.1).
    name = "mpiboot-" + urllib.parse.quote(job_name, safe="")
    value = hmac.new(token.encode(), b"mpiboot dashboard cookie\0" + job_name.encode(), hashlib.sha256)
    return name, value.hexdigest()


def _read_secret(path: Path) -> bytes:
    """Return the content of a file of secrets; raise SecurityError if it is missing, damaged, or open to others."""
    try:
        content = open_trusted(path, _SECRET_MAX_BYTES)
    except FileNotFoundError as error:
        raise SecurityError(f"{path}: there is no such file", _UNSEEN_REMEDY) from error
    if not content.startswith(b"-----BEGIN" if path.suffix == ".pem" else b"") or len(content) < 16:
        raise SecurityError(f"{path}: it is empty or damaged", "Submit the job again: mpiboot submit")
    return content
