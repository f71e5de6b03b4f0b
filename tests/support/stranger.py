"""The attacks of another user of the cluster on a job. test_security.py runs it on hosts as `python -c THIS TARGETS`.

TARGETS, in JSON, contains all facts about a job except its secrets. The output, in JSON too, has the result of each
attack; null means refused.
"""

import asyncio
import json
import os
import socket
import ssl
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distributed import Client, Security, Worker
from distributed.comm import connect

from mpiboot.boot.certificates import make_job_secrets
from mpiboot.protocol import secrets as security

PATIENCE_S = 5.0
HTTP_PATIENCE_S = 60.0  # Bokeh makes each page anew


def ways(own_job):
    """Yield the protocols that another user can use: unencrypted, and encrypted with a certificate of their own."""
    own = security.client_security_arguments(own_job)
    yield "tcp", Security(require_encryption=False)
    yield "tls", Security(**own)


async def first(attempts):
    """Return the result of the first attempt that succeeds; None if all fail."""
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        if not isinstance(outcome, BaseException):
            return outcome
    return None


async def call(address, own_job):
    """Return any answer of a scheduler, worker or nanny."""

    async def attempt(protocol, how):
        arguments = how.get_connection_args("client")
        comm = await connect(f"{protocol}://{address}", timeout=PATIENCE_S, **arguments)
        try:
            await comm.write({"op": "identity", "reply": True})
            return str((await asyncio.wait_for(comm.read(), PATIENCE_S))["id"])
        finally:
            comm.abort()

    return await first(attempt(*way) for way in ways(own_job))


async def submit(address, own_job):
    """Return the user id of a task that the attacker submits."""

    async def attempt(protocol, how):
        async def work():
            async with Client(
                f"{protocol}://{address}", security=how, asynchronous=True, timeout=PATIENCE_S
            ) as client:
                return await client.submit(os.getuid, pure=False)

        return await asyncio.wait_for(work(), 3 * PATIENCE_S)

    return await first(attempt(*way) for way in ways(own_job))


async def join(address, own_job):
    """Return the address of the attacker's worker if the scheduler accepts it, and would send it tasks and data."""
    trusted = security.client_security_arguments(own_job)
    worker_files = {
        "tls_worker_cert": str(own_job / "tls/worker.pem"),
        "tls_worker_key": str(own_job / "tls/worker-key.pem"),
    }

    async def attempt(protocol, how):
        if how.require_encryption:
            how = Security(**trusted, **worker_files)
        worker = Worker(
            f"{protocol}://{address}",
            security=how,
            protocol=protocol,
            nthreads=1,
            dashboard=False,
            death_timeout=PATIENCE_S,
            local_directory=str(own_job),
        )
        try:
            await asyncio.wait_for(worker, 2 * PATIENCE_S)
            return worker.address
        finally:
            await worker.close(timeout=1)

    return await first(attempt(*way) for way in ways(own_job))


async def ask(host, port, path):
    """Return the status of an HTTP route, or "refused" if the guard has answered."""
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        if path.endswith("/ws") or path == "/eventstream"
        else "Connection: close\r\n"
    )
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{upgrade}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = head.split()[1]
        body = await reader.read(100) if status == "403" else b""
        return "refused" if b"needs the job's token" in body else status
    finally:
        writer.close()


async def browse(server):
    """Return the status of each route that does not refuse, by its path."""
    turns = asyncio.Semaphore(8)

    async def status(path):
        async with turns:
            return path, await asyncio.wait_for(ask(server["host"], server["port"], path), HTTP_PATIENCE_S)

    answers = await asyncio.gather(*(status(path) for path in server["paths"]))
    return {path: answer for path, answer in answers if answer != "refused"} or None


def read(path):
    """Return the first bytes of a file, or the names in a folder; None if it cannot be read."""
    try:
        return (
            [entry.name for entry in Path(path).iterdir()]
            if Path(path).is_dir()
            else Path(path).read_bytes()[:40].hex()
        )
    except OSError:
        return None


def demand(host, port):
    """Return what a listening socket demands of a client: "certificate", "token", or "" if it does not answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    shook_hands = False
    try:
        with (
            socket.create_connection((host, port), PATIENCE_S) as plain,
            context.wrap_socket(plain) as stream,
        ):
            shook_hands = True
            stream.settimeout(PATIENCE_S)
            # Having sent nothing: a reset would take the alert with it. asyncio's servers close without an alert.
            if stream.recv(1) == b"":
                return "certificate"
    except TimeoutError:
        if shook_hands:
            return ""
    except ssl.SSLError as error:
        if error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED" or shook_hands:
            return "certificate"
    except OSError:
        if shook_hands:
            return "certificate"
    try:
        with socket.create_connection((host, port), PATIENCE_S) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            return "token" if plain.recv(100).startswith(b"HTTP/1.1 403 ") else ""
    except OSError:
        return ""


async def attack(targets):
    with tempfile.TemporaryDirectory() as folder:
        own_job = Path(folder, "own")
        own_job.mkdir(mode=0o700)
        make_job_secrets(own_job, valid_for_s=600)
        got = {"a task runs": await submit(targets["scheduler"], own_job)}
        got["a worker joins"] = await join(targets["scheduler"], own_job)
        for name in ("scheduler", "worker", "nanny"):
            for i, address in enumerate(targets["addresses"].get(name, [])):
                got[f"{name} {i} answers"] = await call(address, own_job)
    for i, server in enumerate(targets["http"]):
        got[f"http {i}, of a {server['name']}"] = await browse(server)
    for path in targets["files"]:
        got[f"reads {path}"] = read(path)
    return got


if __name__ == "__main__":
    orders = json.loads(sys.argv[1])
    if "sockets" in orders:
        with ThreadPoolExecutor(32) as pool:
            print(json.dumps(list(pool.map(demand, *zip(*orders["sockets"], strict=True)))))
    else:
        print(json.dumps(asyncio.run(attack(orders))))
