"""A user's notebook at work: a stream of tasks with known results, for tests that break the cluster under it."""

import json

from waiting import wait_until

# Runs tasks with known results on all workers, and checks that their processes stay the same. Of two shared memory
# blocks that no process has open, it opens one again at the end, and never the other.
STREAM = """
import json, os, sys, time, mpiboot
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
tell = lambda line: print(line, flush=True)
client = mpiboot.connect(sys.argv[1], n_workers=int(sys.argv[3]), progress=tell)
def leave():
    block = SharedMemory(create=True, size=1000)
    resource_tracker.unregister(block._name, "shared_memory")
    block.close()
    return block.name
def find(name):
    block = SharedMemory(name)
    block.close()
    block.unlink()
def square(i):
    time.sleep(0.05)
    return i * i
first, *_, last = client.scheduler_info(n_workers=-1)["workers"]
client.submit(leave, pure=False, workers=last).result()
name = client.submit(leave, pure=False, workers=first).result()
pids = client.run(os.getpid)
tell(f"at work with {len(pids)} workers of {client.scheduler_info()['id']}")
done = 0
while not os.path.exists(sys.argv[2]):
    numbers = range(done, done + 100)
    assert client.gather(client.map(square, numbers)) == [i * i for i in numbers]
    done += 100
    tell(json.dumps({"done": done}))
client.submit(find, name, workers=first).result()
assert client.run(os.getpid) == pids
tell("all right")
"""


class Stream:
    """A user's notebook that computes on the login node until the test ends it."""

    def __init__(self, job, n_workers):
        user = job.user
        self.output = user.home / f"stream-{job.job_id}.out"
        self.end = user.home / f"stream-{job.job_id}.end"
        argv = f"python {user.writes('stream.py', STREAM)} {job.job_id} {self.end.name} {n_workers}"
        user.types("bash", "-c", f"setsid {argv} > {self.output.name} 2>&1 &")

    def said(self):
        return self.output.read_text() if self.output.exists() else ""

    def until(self, words, timeout_s=60):
        wait_until(lambda: words in self.said(), words, timeout_s, self.said)

    def done(self):
        """Return the number of results so far."""
        counts = [line for line in self.said().splitlines() if line.startswith("{")]
        return json.loads(counts[-1])["done"] if counts else 0

    def goes_on(self, timeout_s=30):
        before = self.done()
        wait_until(lambda: self.done() > before, "more results", timeout_s, self.said)

    def ends_well(self):
        self.end.touch()
        self.until("all right")


def stop(job):
    """Stop a job that has survived a test's faults; its status must be 0."""
    job.stop()
    assert job.named("closed")[-1]["exit_status"] == 0
