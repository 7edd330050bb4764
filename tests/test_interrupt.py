"""How a script ends, by Ctrl-C or otherwise, without Ray; the jobs' tests have Ctrl-C as well."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import TOP, started, wait_for

from jobs import interrupt
from jobs.flags import one_line

WORK = """
import atexit, time
from jobs import interrupt
from jobs.flags import one_line

def work():
    print("at work", flush=True)
    for _ in range(600):  # a signal that comes just before a sleep waits for its end
        time.sleep(0.1)

def main():
    {main}

one_line(main)
"""


def interrupted(main: str, times: int, pause: float = 0) -> tuple[int, str, str]:
    """Sends SIGINT as often as `main` says that it is at work; returns code, stdout and stderr."""
    command = [sys.executable, "-c", WORK.format(main=main)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=TOP, stdout=pipe, stderr=pipe, text=True) as process:
        for _ in range(times):
            assert process.stdout.readline() == "at work\n"
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_a_disk_that_fails_is_told_in_one_line(capsys, monkeypatch):
    def main() -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/disk/file")

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(SystemExit) as ended:
        one_line(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "job.py: [Errno 5] Input/output error: '/disk/file'\n"


def test_ctrl_c_is_answered_in_one_line():
    assert interrupted("work()", 1) == (130, "", interrupt.ANSWER + "\n")


@pytest.mark.parametrize("job", ["sweep", "gan"])
def test_ctrl_c_while_a_job_imports_what_it_needs_is_no_traceback(job, tmp_path):
    with started(f"jobs/{job}.py", "--storage", tmp_path) as driver:
        loaded = Path(f"/proc/{driver.pid}/maps")
        wait_for(lambda: "libtorch" in loaded.read_text(), driver)
        driver.send_signal(signal.SIGINT)
        output, _ = driver.communicate(timeout=300)
    # The latter, with its answer, where the imports were over by then.
    assert (driver.returncode, output) in [(-signal.SIGINT, ""), (130, interrupt.ANSWER + "\n")]


@pytest.mark.parametrize("name", ["gan", "horizon", "report", "scale", "sweep", "trials"])
def test_ctrl_c_ends_an_analysis_without_a_traceback(name, tmp_path):
    with started(f"analysis/{name}.py", tmp_path) as script:
        loaded = Path(f"/proc/{script.pid}/maps")
        # The first that it imports; a quick one may be over before it is seen.
        wait_for(lambda: script.poll() is not None or "numpy" in loaded.read_text(), every=0.01)
        script.send_signal(signal.SIGINT)
        output, _ = script.communicate(timeout=300)
    assert "Traceback" not in output
    assert script.returncode in (-signal.SIGINT, 2)  # the latter where it was over by then


def test_a_ctrl_c_that_comes_twice_at_once_is_one():
    in_order = "interrupt.ONE_PRESS = 600  # seconds, on whatever machine\n    try: work()"
    in_order += "\n    except KeyboardInterrupt:\n        try: work()"
    in_order += "\n        except KeyboardInterrupt: return 3"
    assert interrupted(in_order, 2) == (3, "", interrupt.ANSWER + "\n")


def test_a_second_ctrl_c_ends_the_process_at_once():
    deaf = "import signal\n    once = iter(['at work'])"
    deaf += "\n    signal.signal(2, lambda *_: [print(word, flush=True) for word in once])"
    deaf += "\n    work()"
    assert interrupted(deaf, 2, 2 * interrupt.ONE_PRESS) == (130, "", interrupt.ANSWER + "\n")


def test_what_a_process_does_at_its_exit_is_not_waited_for():
    at_exit = "atexit.register(work)\n    try: work()\n    except KeyboardInterrupt: return 130"
    assert interrupted(at_exit, 1) == (130, "", interrupt.ANSWER + "\n")
