"""The files that boot makes, and what the certificates allow in real handshakes."""

import datetime
import errno
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mpiboot.boot import certificates
from mpiboot.errors import SecurityError
from mpiboot.protocol.secrets import read_token

NAMES = [
    "ca.pem",
    "client-key.pem",
    "client.pem",
    "scheduler-key.pem",
    "scheduler.pem",
    "token",
    "worker-key.pem",
    "worker.pem",
]


def make_job(parent: Path, name: str = "slurm-a-1", **kwargs) -> Path:
    job = parent / name
    job.mkdir(mode=0o700)
    certificates.make_job_secrets(job, **{"valid_for_s": 600.0, **kwargs})
    return job


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_secrets_are_for_their_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "job").mkdir()
        (tmp_path / "job").chmod(0o700)
        certificates.make_job_secrets(tmp_path / "job", valid_for_s=600)
    finally:
        os.umask(before)
    tls = tmp_path / "job/tls"
    assert stat.S_IMODE(tls.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tls.iterdir()} == dict.fromkeys(
        NAMES, 0o600
    )


def test_every_job_has_its_own(tmp_path):
    jobs = [make_job(tmp_path, name) for name in ("a", "b")]
    contents = [path.read_bytes() for job in jobs for path in (job / "tls").iterdir()]
    assert len(contents) == len(set(contents)) == 2 * len(NAMES)
    assert len(read_token(jobs[0])) >= 43  # 256 bits


def test_the_authority_s_key_is_nowhere(job):
    authority = x509.load_pem_x509_certificate((job / "tls/ca.pem").read_bytes()).public_key()
    for path in (job / "tls").glob("*-key.pem"):
        assert load_pem_private_key(path.read_bytes(), None).public_key() != authority


@pytest.mark.parametrize(
    ("valid_for_s", "not_after_s"),
    [(600.0, 600 + 86400), (None, 365 * 86400)],
    ids=["walltime", "no walltime"],
)
def test_validity(tmp_path, valid_for_s, not_after_s):
    job = make_job(tmp_path, valid_for_s=valid_for_s)
    now = datetime.datetime.now(datetime.timezone.utc)
    for path in (job / "tls").glob("*r.pem"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        assert abs((now - certificate.not_valid_before_utc).total_seconds() - 3600) < 60
        assert abs((certificate.not_valid_after_utc - now).total_seconds() - not_after_s) < 60


def test_refused_where_there_are_secrets(job):
    token = read_token(job)
    with pytest.raises(
        SecurityError, match=r"secrets of an earlier boot\. Remove them: rm -r .*slurm-a-1/tls$"
    ):
        certificates.make_job_secrets(job, valid_for_s=600)
    assert read_token(job) == token


def test_refused_in_a_directory_open_to_others(tmp_path):
    (tmp_path / "job").mkdir(mode=0o750)
    with pytest.raises(SecurityError, match=r"is open to others \(mode 0750\).*chmod go-rwx"):
        certificates.make_job_secrets(tmp_path / "job", valid_for_s=600)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "job").mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "job/tls").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecurityError):
        certificates.make_job_secrets(tmp_path / "job", valid_for_s=600)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write = certificates._write_new

    def fill(path, content):
        if path.name == "token":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
        write(path, content)

    monkeypatch.setattr(certificates, "_write_new", fill)
    with pytest.raises(
        SecurityError,
        match=r"tls/token: .* could not be written: Disk quota exceeded\. Check .*; df -h /.*slurm-a-1$",
    ):
        make_job(tmp_path)
    assert list((tmp_path / "slurm-a-1").iterdir()) == []


def context(job, role, purpose):
    made = ssl.create_default_context(purpose, cafile=job / "tls/ca.pem")
    made.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    made.verify_mode, made.check_hostname = ssl.CERT_REQUIRED, False
    if role:
        made.load_cert_chain(job / f"tls/{role}.pem", job / f"tls/{role}-key.pem")
    return made


def shake_hands(server, client, server_hostname=None):
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=server_hostname),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[1].write(b"welcome")
    return ends[0].read()


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ("scheduler", "worker"),
        ("scheduler", "client"),
        ("worker", "scheduler"),
        ("worker", "worker"),
        ("worker", "client"),
    ],
)
def test_roles_that_talk_to_each_other(job, server, client):
    pair = context(job, server, ssl.Purpose.CLIENT_AUTH), context(job, client, ssl.Purpose.SERVER_AUTH)
    assert shake_hands(*pair) == b"welcome"


def test_names_of_the_nodes_are_in_the_certificates(tmp_path):
    job = make_job(tmp_path, host_names=["node-07", "localhost"], addresses=["10.78.0.7", "127.0.0.1"])
    server, client = (
        context(job, "scheduler", ssl.Purpose.CLIENT_AUTH),
        context(job, "client", ssl.Purpose.SERVER_AUTH),
    )
    client.check_hostname = True
    for name in ("node-07", "localhost", "127.0.0.1", "10.78.0.7"):
        assert shake_hands(server, client, name) == b"welcome"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, client, "node-08")


def test_another_job_s_certificate_is_refused_both_ways(tmp_path):
    ours, theirs = make_job(tmp_path, "ours"), make_job(tmp_path, "theirs")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            context(ours, "scheduler", ssl.Purpose.CLIENT_AUTH),
            context(theirs, "client", ssl.Purpose.SERVER_AUTH),
        )
    trusting = context(theirs, "client", ssl.Purpose.SERVER_AUTH)
    trusting.load_verify_locations(ours / "tls/ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(context(ours, "scheduler", ssl.Purpose.CLIENT_AUTH), trusting)


def test_no_certificate_is_refused(job):
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(
            context(job, "scheduler", ssl.Purpose.CLIENT_AUTH), context(job, None, ssl.Purpose.SERVER_AUTH)
        )


def test_a_client_s_certificate_cannot_serve(job):
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake_hands(
            context(job, "client", ssl.Purpose.CLIENT_AUTH), context(job, "client", ssl.Purpose.SERVER_AUTH)
        )
