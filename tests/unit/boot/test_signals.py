import signal
import time

import pytest

from mpiboot.boot import signals
from mpiboot.boot.signals import JobStop, Walltime, catch_signals

# The other method uses the very timer that is tested here.
pytestmark = pytest.mark.timeout(30, method="thread")


@pytest.fixture(autouse=True)
def handlers():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)
    kept = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in kept.items():
        signal.signal(number, handler)


def rings_in_s():
    return signal.getitimer(signal.ITIMER_REAL)[0]


def test_far_from_the_end_it_waits_for_the_warning():
    walltime = Walltime(120, time.time() + 1000)
    assert not walltime.end_is_near
    assert rings_in_s() == pytest.approx(880, abs=1)


def test_a_job_shorter_than_the_lead_is_warned_at_once_and_closed_before_its_end():
    walltime = Walltime(120, time.time() + 60)
    assert walltime.end_is_near
    assert rings_in_s() == pytest.approx(60 - signals.CLOSE_BEFORE_END_S, abs=1)


def test_a_lengthened_job_waits_again():
    walltime = Walltime(120, time.time() + 100)
    walltime.set_end(time.time() + 1000)
    assert not walltime.end_is_near
    assert rings_in_s() == pytest.approx(880, abs=1)


def test_without_a_known_end_the_signal_starts_the_clock():
    walltime = Walltime(120, None)
    assert (walltime.end_is_near, rings_in_s()) == (False, 0)
    signal.raise_signal(signal.SIGUSR1)
    assert walltime.end_is_near
    assert rings_in_s() == pytest.approx(90, abs=1)


def test_slurm_signals_up_to_a_minute_early():
    walltime = Walltime(120, time.time() + 170)
    signal.raise_signal(signal.SIGUSR1)
    walltime.set_end(walltime.end_time)
    assert walltime.end_is_near


def test_the_end_interrupts_any_step():
    Walltime(120, time.time() + signals.CLOSE_BEFORE_END_S)
    with pytest.raises(JobStop) as stop:
        time.sleep(10)
    assert stop.value.reason == "walltime"


def test_a_second_signal_interrupts_nothing():
    catch_signals()
    with pytest.raises(JobStop) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.reason == "stopped"
    signal.raise_signal(signal.SIGINT)


# ---- the end is asked for once more before the job is closed


def rings(walltime):
    """Let the clock's time come."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.raise_signal(signal.SIGALRM)
    return walltime


@pytest.mark.parametrize(("end_in_s", "alarm_s"), [(1000, 880), (60, 60 - signals.CLOSE_BEFORE_END_S)])
def test_a_lengthened_or_suspended_job_is_not_closed_at_its_old_end(end_in_s, alarm_s):
    walltime = Walltime(120, time.time() + 31, lambda: time.time() + end_in_s)
    assert walltime.end_is_near
    rings(walltime)
    assert rings_in_s() == pytest.approx(alarm_s, abs=1)
    assert walltime.end_is_near == (end_in_s < 120)


def test_a_job_whose_limit_was_lifted_has_no_clock():
    walltime = rings(Walltime(120, time.time() + 31, lambda: None))
    assert (walltime.end_is_near, walltime.end_time, rings_in_s()) == (False, None, 0)


def test_the_end_that_has_come_closes_the_job():
    walltime = Walltime(120, time.time() + 31, lambda: time.time() + signals.CLOSE_BEFORE_END_S)
    with pytest.raises(JobStop) as stop:
        rings(walltime)
    assert (stop.value.reason, rings_in_s()) == ("walltime", 0)


@pytest.mark.parametrize("warn_before_s", [0, 10, 29, 30, 40])
def test_clients_are_told_some_time_before_the_close(warn_before_s):
    notice_s = signals.CLOSE_BEFORE_END_S + signals.LEAST_NOTICE_S
    walltime = Walltime(warn_before_s, time.time() + 1000)
    assert rings_in_s() == pytest.approx(1000 - notice_s, abs=1)
    walltime.set_end(time.time() + notice_s)
    assert walltime.end_is_near
    assert rings_in_s() == pytest.approx(signals.LEAST_NOTICE_S, abs=1)
