import threading
import time

from standin import PENDING

from mpiboot.batch.job_state import JobState
from mpiboot.client.connect import connect
from mpiboot.client.job import Job
from mpiboot.errors import JobEndedError
from mpiboot.protocol.job_directory import JobDirectory


def test_one_answer_serves_all_that_wait(batch, cluster, tmp_path):
    numbers = range(1, 9)
    for number in numbers:
        JobDirectory.create(tmp_path / 'it\'s a "home"', f"stand-in-{number}")
    start, failures = time.monotonic(), []
    batch.state = lambda n: (
        PENDING if time.monotonic() < start + 1 else JobState("", "", "ended", "CANCELLED")
    )

    def wait(number):
        try:
            connect(Job(str(number), batch))
        except JobEndedError as error:
            failures.append(str(error).splitlines()[0])

    threads = [threading.Thread(target=wait, args=[number]) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(failures) == [f"job {number} has ended: CANCELLED" for number in numbers]
    # Ten a second here, not eighty; and as many before all were known to wait.
    assert len(batch.questions) <= 10 * (time.monotonic() - start) + 1 + len(numbers)
    assert [str(number) for number in numbers] in batch.questions
