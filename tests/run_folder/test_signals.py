"""What listens to signals, when, and what a second one does: run_folder/signals.py."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from run_folder.signals import ECHO, STOP_SIGNALS, Stopped, ignore_stop_signals, stop_signals

SECOND = """
import os, signal, time
from run_folder.signals import stop_signals
with stop_signals() as signals, signals.finishing():
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.asked == signal.SIGTERM
    time.sleep({pause})
    os.kill(os.getpid(), signal.{second})
    time.sleep(0.2)
    print("finished")
"""


def second(name, pause):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.run(
        [sys.executable, "-c", SECOND.format(second=name, pause=pause)],
        cwd=root,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_second_signal_ends_the_process_at_once(name, code):
    ended = second(name, 2 * ECHO)
    assert ended.returncode == code and not ended.stdout
    assert "SIGTERM: stopping, a second signal ends the process at once" in ended.stderr


def test_the_same_signal_to_process_and_group_counts_once():
    ended = second("SIGTERM", 0)
    assert ended.returncode == 75 and ended.stdout == "finished\n"


def test_handlers_exist_only_within_the_block_and_come_back_whatever_ends_it():
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    with pytest.raises(ZeroDivisionError), stop_signals() as signals:
        assert [signal.getsignal(one) for one in STOP_SIGNALS] == [signals] * 3
        1 / 0  # noqa: B018
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before


def test_another_thread_leaves_the_handlers_alone():
    before, seen = [signal.getsignal(one) for one in STOP_SIGNALS], []

    def work():
        with stop_signals() as signals, signals.finishing():
            seen.extend(signal.getsignal(one) for one in STOP_SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


def test_a_signal_stops_at_once_outside_of_work_that_wants_to_finish_and_at_its_end_within():
    with pytest.raises(Stopped) as ended, stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("not reached")
    assert ended.value.code == 75 and str(ended.value).startswith("stopped by SIGINT: ")
    reached = []
    with pytest.raises(Stopped), stop_signals() as signals:
        with signals.finishing():
            os.kill(os.getpid(), signal.SIGUSR1)
            reached.append("the end")
        pytest.fail("not reached")
    assert reached == ["the end"]


def test_a_loaders_process_leaves_signals_to_its_parent_and_ends_with_it():
    read, write = os.pipe()
    with stop_signals():
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), signal.SIGTERM)  # the inherited handler
            ignore_stop_signals()
            for one in STOP_SIGNALS:
                os.kill(os.getpid(), one)
            os.write(write, b"alive")
            time.sleep(60)
            os._exit(1)
    assert os.read(read, 5) == b"alive"
    time.sleep(0.1)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0
