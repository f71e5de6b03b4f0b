import pytest

from mpiboot.client.phase_words import progress_of

STAGE = {"time": 1000.0, "event": "phase", "phase": "stage"}
PACK = {"time": 1001.0, "event": "step", "step": "pack"}
AGENTS = {"time": 1002.0, "event": "step", "step": "agents"}
COPY = {"time": 1003.0, "event": "step", "step": "copy", "n_lacking": 2, "n_nodes": 3}
STAGED = {"time": 1004.0, "event": "staged", "host": "n1"}
LAUNCH = {"time": 1005.0, "event": "phase", "phase": "launch"}
WORKERS = {"time": 1006.0, "event": "phase", "phase": "workers", "n_workers": 8}
WORKER = {"time": 1007.0, "event": "worker", "n": 3}
LOST = {"time": 1008.0, "event": "lost-worker", "n": 2}
READY = {"time": 1009.0, "event": "phase", "phase": "ready"}
CLOSING = {"time": 1010.0, "event": "phase", "phase": "closing"}
CLOSED = {"time": 1011.0, "event": "closed"}
ALL = [STAGE, PACK, AGENTS, COPY, STAGED, LAUNCH, WORKERS, WORKER, LOST, READY, CLOSING, CLOSED]


@pytest.mark.parametrize(
    ("events", "start", "words"),
    [
        ([], None, "starting"),
        ([STAGE], None, "starting"),
        ([STAGE, PACK], None, "packing the environment"),
        ([STAGE, PACK, AGENTS], None, "starting agents on its nodes"),
        (ALL[:4], None, "staging the environment on 2 of 3 nodes"),
        (ALL[:5], None, "staging the environment on 2 of 3 nodes"),
        (ALL[:6], None, "launching"),
        (ALL[:7], None, "starting workers"),
        (ALL[:8], None, "starting workers: 3 of 8"),
        (ALL[:9], None, "starting workers: 2 of 8"),
        (ALL[:10], None, "ready"),
        ([*ALL[:10], LOST], None, "ready"),
        (ALL, 1000.0, "closing"),
        (ALL, 1200.0, "starting"),  # requeued: the events are those of the earlier run
        (
            [*ALL, {**STAGE, "time": 1201.0}, {**AGENTS, "time": 1202.0}],
            1200.0,
            "starting agents on its nodes",
        ),
    ],
)
def test_what_a_job_does_now(events, start, words):
    assert progress_of(events, start) == words
