"""A job's secrets and what may be trusted, with a real second user where root can make one."""

import datetime
import errno
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from mpiboot.errors import SecurityError
from mpiboot.protocol import secrets as security

OTHER_UID = 54321
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
    security.make_job_secrets(job, **{"valid_for_s": 600.0, **kwargs})
    return job


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path)


# ---- the files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_secrets_are_for_their_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "job").mkdir()
        (tmp_path / "job").chmod(0o700)
        security.make_job_secrets(tmp_path / "job", valid_for_s=600)
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
    assert len(security.read_token(jobs[0])) >= 43  # 256 bits


def test_the_authority_s_key_is_nowhere(job):
    authority = x509.load_pem_x509_certificate((job / "tls/ca.pem").read_bytes()).public_key()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

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
    token = security.read_token(job)
    with pytest.raises(
        SecurityError, match=r"secrets of an earlier boot; remove them: rm -r .*slurm-a-1/tls"
    ):
        security.make_job_secrets(job, valid_for_s=600)
    assert security.read_token(job) == token


def test_refused_in_a_directory_open_to_others(tmp_path):
    (tmp_path / "job").mkdir(mode=0o750)
    with pytest.raises(SecurityError, match=r"is open to others \(mode 0750\).*chmod go-rwx"):
        security.make_job_secrets(tmp_path / "job", valid_for_s=600)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "job").mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "job/tls").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecurityError):
        security.make_job_secrets(tmp_path / "job", valid_for_s=600)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    write = security._write_new

    def fill(path, content):
        if path.name == "token":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
        write(path, content)

    monkeypatch.setattr(security, "_write_new", fill)
    with pytest.raises(
        SecurityError, match=r"tls/token: .* could not be written: Disk quota exceeded; check"
    ):
        make_job(tmp_path)
    assert list((tmp_path / "slurm-a-1").iterdir()) == []


# ---- the certificates, in real handshakes -----------------------------------------------------------------


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


# ---- what Dask is told ------------------------------------------------------------------------------------


def test_what_dask_is_told():
    job = Path("/home/a b/$HOME/'job'")
    tls = "/home/a b/$HOME/'job'/tls"
    assert security.dask_tls_environment(job) == {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": f"{tls}/ca.pem",
        "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT": f"{tls}/scheduler.pem",
        "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__KEY": f"{tls}/scheduler-key.pem",
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": f"{tls}/worker.pem",
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY": f"{tls}/worker-key.pem",
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": f"{tls}/client.pem",
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": f"{tls}/client-key.pem",
    }
    assert security.client_security_arguments(job) == {
        "tls_ca_file": f"{tls}/ca.pem",
        "tls_client_cert": f"{tls}/client.pem",
        "tls_client_key": f"{tls}/client-key.pem",
        "require_encryption": True,
    }
    assert security.guard_environment(job) == {"MPIBOOT_JOB_DIRECTORY": str(job)}
    assert security.dashboard_tls_environment(job) == {
        "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__CA_FILE": f"{tls}/ca.pem",
        "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__CERT": f"{tls}/scheduler.pem",
        "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__KEY": f"{tls}/scheduler-key.pem",
    }


def test_dask_reads_the_same_files_back(tmp_path):
    from dask.config import collect_env
    from distributed import Security

    (tmp_path / "a b").mkdir(mode=0o700)
    job = make_job(tmp_path / "a b", "$HOME 'x' \"1\"")
    assert collect_env(security.dask_tls_environment(job))["distributed"]["comm"] == {
        "require_encryption": True,
        "tls": {
            "ca_file": str(job / "tls/ca.pem"),
            **{
                role: {"cert": str(job / f"tls/{role}.pem"), "key": str(job / f"tls/{role}-key.pem")}
                for role in ("scheduler", "worker", "client")
            },
        },
    }
    assert Security(**security.client_security_arguments(job)).get_connection_args("client")["ssl_context"]


def test_a_line_break_in_the_path_is_refused():
    with pytest.raises(SecurityError, match=r"'/home/a\\nb/job': Dask takes .*; set MPIBOOT_HOME"):
        security.dask_tls_environment("/home/a\nb/job")


def test_cookies_differ_by_job_and_by_token():
    assert security.dashboard_cookie("slurm-a-1_[2]", "t") == (
        "mpiboot-slurm-a-1_%5B2%5D",
        # printf 'mpiboot dashboard cookie\\0slurm-a-1_[2]' | openssl dgst -sha256 -hmac t
        "7e3f5367735d662d251b09906a9ec964d8d5078e2146352535f0ae78591980d9",
    )
    names_and_values = {
        security.dashboard_cookie(job, token) for job in ("a.b", "a-b") for token in ("s", "t")
    }
    assert len({value for _, value in names_and_values}) == 4
    assert len({name for name, _ in names_and_values}) == 2


def test_no_secret_is_in_what_travels(job):
    told = {
        **security.dask_tls_environment(job),
        **security.guard_environment(job),
        **security.dashboard_tls_environment(job),
        **security.client_security_arguments(job),
    }
    assert not [
        value for value in told.values() if security.read_token(job) in str(value) or "BEGIN" in str(value)
    ]


# ---- a rank without secrets -------------------------------------------------------------------------------


def test_a_rank_with_its_secrets(job):
    security.check_rank_secrets(job)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda tls: (tls / "worker-key.pem").unlink(), "worker-key.pem: there is no such file"),
        (lambda tls: (tls / "ca.pem").write_text(""), "ca.pem: it is empty or damaged"),
        (lambda tls: (tls / "token").write_text(""), "token: it is empty or damaged"),
        (
            lambda tls: (tls / "client.pem").chmod(0o644),
            "client.pem cannot be trusted: it is open to others (mode 0644)",
        ),
        (
            lambda tls: (tls / "ca.pem").write_bytes(b"-" * 70_000),
            "ca.pem cannot be trusted: it has more than 65536 bytes",
        ),
        (lambda tls: tls.rename(tls.with_name("gone")), "tls: there is no such directory"),
        (lambda tls: tls.chmod(0o755), "tls cannot be trusted: it is open to others (mode 0755)"),
    ],
)
def test_a_rank_without_one_refuses(job, break_it, says):
    break_it(job / "tls")
    with pytest.raises(SecurityError) as refusal:
        security.check_rank_secrets(job)
    assert "this rank lacks its TLS files and refuses to start:\n" in str(refusal.value)
    assert os.uname().nodename in str(refusal.value)
    assert says in str(refusal.value)


def test_a_rank_names_all_that_it_lacks(job):
    (job / "tls/worker.pem").unlink()
    (job / "tls/token").unlink()
    with pytest.raises(SecurityError, match=r"(?s)worker\.pem: there is no.*token: there is no"):
        security.check_rank_secrets(job)
