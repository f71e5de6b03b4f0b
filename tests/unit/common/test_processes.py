import os
import signal
import subprocess
import sys

import pytest

from mpiboot.common.processes import end, end_all, process_stat

# Prints a line once it is deaf to SIGTERM.
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"


def start(*command):
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


@pytest.fixture
def deaf():
    """A child process that ignores SIGTERM."""
    with start(sys.executable, "-c", DEAF) as process:
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("program", "status"), [("exit 3", 3), ("exec sleep 60", -signal.SIGTERM)], ids=["by itself", "SIGTERM"]
)
def test_a_child_ends_by_itself_or_by_sigterm(program, status):
    with start("sh", "-c", program) as process:
        assert end(process, 10.0 if status > 0 else 0.0) == status


def test_a_child_deaf_to_sigterm_is_killed(deaf):
    assert end(deaf, 0.0, grace_s=0.1) == -signal.SIGKILL


# In a process of its own: pytest's has descendants that other tests need, such as multiprocessing's.
FAMILY = f"""
import os, signal, subprocess, sys
from mpiboot.common.processes import descendants, end_descendants

deaf = subprocess.Popen([sys.executable, "-c", {DEAF!r}], stdout=subprocess.PIPE)
spared = subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE)
deaf.stdout.readline(), spared.stdout.readline()
family = {{spared.pid, *descendants(spared.pid)}}
end_descendants(grace_s=0.1, spare=spared.pid)
print(len(family), descendants(os.getpid()) == family, deaf.wait())
for pid in family:
    os.kill(pid, signal.SIGKILL)
"""


def test_descendants_end_but_the_spared_child_and_its_own_do_not():
    done = subprocess.run([sys.executable, "-c", FAMILY], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"2 True {-signal.SIGKILL}\n", "")


# Boot's orphans: those of the batch command, for example.
ORPHANS = """
import os, subprocess, sys, time
from mpiboot.common.processes import keep_orphans, reap_orphans

def children():
    return set(open(f"/proc/self/task/{os.getpid()}/children").read().split())

keep_orphans()
own = subprocess.Popen(["sh", "-c", "(sleep 0 &) ; exit 3"])
while not (orphans := children() - {str(own.pid)}):
    time.sleep(0.01)
while children() != {str(own.pid)}:
    reap_orphans({own.pid})
    time.sleep(0.01)
print(own.wait())
reap_orphans(set())
"""


def test_orphans_are_released_and_own_children_are_not():
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_processes_that_outlive_sigkill_are_waited_for_no_longer_than_asked():
    """The process id of nobody: what cannot be ended does not hold up whoever ends it."""
    end_all(lambda: {2**22}, after_term_s=0.01, after_kill_s=0.01)


def test_the_state_of_a_process_whose_name_looks_like_its_state(tmp_path):
    program = tmp_path / ") Z 1 ("
    program.symlink_to("/bin/sleep")
    with start(str(program), "60") as process:
        assert process_stat(process.pid).parent == os.getpid()
        process.kill()


def test_a_process_that_waits_for_its_parent_has_ended():
    with start("true") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_stat(process.pid) is None
