import os
import signal
import subprocess
import sys
import threading

import pytest

from upslope.runs.signals import GracefulStop

LOOP = """
import time
from upslope.runs.signals import GracefulStop
with GracefulStop() as stop:
    try:
        print("ready", flush=True)
        for step in range(200):
            time.sleep(0.02)
            if stop.requested and {heed}:
                print("saved", step, stop.signal, flush=True)
                break
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def run(heed, *signals):
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP.format(heed=heed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.send_signal(signals[0])
    err = process.stderr.readline() + process.stderr.readline()  # the first one is handled when it has said so
    for number in signals[1:]:
        process.send_signal(number)
    out, more = process.communicate(timeout=20)
    return out, err + more, process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_finishes_the_step(number):
    out, err, code = run(True, number)
    assert out.startswith("saved")
    assert out.split()[-1] == number.name
    assert err == f"\n{number.name}: finishing the step, then saving. Press Ctrl-C again to stop at once.\n"
    assert code == 0


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_stops_at_once(second):
    out, _, code = run(False, signal.SIGINT, second)
    assert (out, code) == ("interrupted\n", 0)


def test_message_goes_where_it_is_sent_and_handlers_come_back():
    def earlier(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, earlier), signal.getsignal(signal.SIGINT)
    try:
        messages = []
        with pytest.raises(KeyboardInterrupt), GracefulStop(messages.append) as stop:  # noqa: PT012
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
            assert stop.signal == "SIGTERM"
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(messages) == 1
        assert signal.getsignal(signal.SIGTERM) is earlier
        assert signal.getsignal(signal.SIGINT) is before[1]
    finally:
        signal.signal(signal.SIGTERM, before[0])


def test_no_effect_in_another_thread():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with GracefulStop() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_a_forked_worker_can_be_terminated():
    code = """
import os, signal, time
from upslope.runs.signals import GracefulStop
with GracefulStop() as stop:
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.requested)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (result.stdout, result.stderr) == (f"{-signal.SIGTERM} False\n", "")
