"""A batch system with states that a test sets, and endpoints of a cluster in the test's process."""

import dataclasses
import socket
import threading
import time

from mpiboot.batch.job_state import JobState
from mpiboot.protocol.endpoint import Endpoint

RUNNING = JobState("7", "mpiboot", "running", "RUNNING", nodes="node1")
PENDING = JobState("7", "mpiboot", "pending", "PENDING", "Resources")
HELD: list[socket.socket] = []


class Batch:
    """Returns `state`: a JobState, an error to raise, or a function of the number of queries."""

    name = "stand-in"

    def __init__(self):
        self.state = RUNNING
        self.restarted = 0
        self.questions = []

    def states(self, job_ids):
        self.questions.append(list(job_ids))
        said = self.state(len(self.questions)) if callable(self.state) else self.state
        if isinstance(said, Exception):
            raise said
        return {job_id: dataclasses.replace(said, job_id=job_id) for job_id in job_ids}

    def restarts(self, job_id):
        return self.restarted

    def stop(self, job_id, *, by_force=False):
        pass

    def output(self, job_id):
        return None

    def ended_word(self, exit_status):
        return f"EXIT {exit_status}"

    def job_key(self, job_id):
        return f"stand-in-{job_id}"


def endpoint_of(cluster, **changes):
    values = {
        **{"job_id": "7", "job_key": "stand-in-7", "nonce": "a", "restart_count": 0},
        **{
            "scheduler_id": cluster.scheduler.id,
            "address": cluster.scheduler_address,
            "dashboard": "http://x:1/",
        },
        **{
            "n_workers": 1,
            "n_threads": 1,
            "memory_bytes": 1,
            "nodes": ["node1"],
            "interface": "lo",
            "addresses": {},
        },
        **{"prefix": "/p", "source_prefix": "/p", "end_time": None, "published": time.time()},
    }
    return Endpoint(**(values | changes))


def refusing_address():
    """Return an address where nobody listens, and where nobody will: the socket stays bound."""
    HELD.append(socket.socket())
    HELD[-1].bind(("127.0.0.1", 0))
    return f"tcp://127.0.0.1:{HELD[-1].getsockname()[1]}"


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer
