"""A job's certificates, keys and token: boot makes them, and every process of the job reads them (`protocol.secrets`).

Only boot imports this module.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpiboot.common.trust import check_trusted, remove_files
from mpiboot.errors import SecurityError
from mpiboot.protocol.secrets import ROLES, tls_folder

if TYPE_CHECKING:
    from cryptography import x509

    from envpack.common.places import StrPath

_BACKDATE_S = 3600.0  # clocks of two nodes differ
_MARGIN_S = 24 * 3600.0  # an administrator may lengthen a running job
_YEAR_S = 365 * 24 * 3600.0


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
        The job's remaining time. Certificates are valid from an hour ago until a day after its end; None: for a year.
    host_names : sequence of str, default ()
        Names of the scheduler's node. Only the scheduler's certificate holds them: a certificate should be short,
        because each connection sends it. Dask does not check names; `curl --cacert` and browsers do, with
        `--dashboard-tls`.
    addresses : sequence of str, default ()
        That node's IP addresses; the dashboard's link contains one of them.

    Raises
    ------
    SecurityError
        The directory cannot be trusted, has secrets already, or could not be written.
    """
    tls = tls_folder(job_directory)
    check_trusted(tls.parent, "directory")
    contents = make_pems(_YEAR_S if valid_for_s is None else valid_for_s + _MARGIN_S, host_names, addresses)
    contents["token"] = secrets.token_urlsafe(32).encode()
    try:
        tls.mkdir()
        tls.chmod(0o700)  # whatever the umask
    except FileExistsError as error:
        raise SecurityError(
            f"{tls}: there are secrets of an earlier boot", f"Remove them: rm -r {shlex.quote(str(tls))}"
        ) from error
    except OSError as error:
        raise _unwritten(tls, error) from error
    try:
        for name, content in contents.items():
            _write_new(tls / name, content)
    except OSError as error:
        remove_files(tls)
        raise _unwritten(tls, error) from error


def _unwritten(tls: Path, error: OSError) -> SecurityError:
    return SecurityError(
        f"{error.filename or tls}: the job's secrets could not be written: {error.strerror}",
        f"Check your quota and the free space of that file system: quota; df -h {shlex.quote(str(tls.parent))}",
    )


def _write_new(path: Path, content: bytes) -> None:
    """Write a new file, mode 0600."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)  # a umask of 0777 would leave a file that no rank can read
        stream.write(content)


def make_pems(valid_for_s: float, host_names: Sequence[str], addresses: Sequence[str]) -> dict[str, bytes]:
    """Make an authority, and a certificate and key for each role; return the content of each file by its name."""
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
        ]
        if role == "scheduler":
            extensions.append((names, False))
        pems[f"{role}.pem"] = certificate(name(role), key, extensions)
        pems[f"{role}-key.pem"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    return pems
