"""How scripts end: Ctrl-C during the imports, during the work and at exit; errors of a disk.

Nothing here starts Ray; Ctrl-C during training is tested with the jobs.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import REPO, running_script, wait_for

from jobs import interrupt
from jobs.cli import run_main

SCRIPT = """
import atexit, signal, time
from jobs import interrupt
from jobs.cli import run_main

def work():
    print("working", flush=True)
    for _ in range(600):  # short sleeps: a signal just before a sleep is handled after it
        time.sleep(0.1)

def main():
    {main}

run_main(main)
"""
ACKNOWLEDGED = interrupt.INTERRUPT_MESSAGE + "\n"


def run_interrupted(
    main: str, number: signal.Signals, presses: int, pause: float = 0, *arguments: str
) -> tuple[int, str, str]:
    """Sends a signal whenever `main` prints "working"; returns exit code, stdout and stderr.

    Args:
        number: of the signal.
        presses: how often it is sent.
        pause: seconds before each signal.
        arguments: of the script.
    """
    command = [sys.executable, "-c", SCRIPT.format(main=main), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPO, stdout=pipe, stderr=pipe, text=True) as process:
        for _ in range(presses):
            assert process.stdout.readline() == "working\n"
            time.sleep(pause)
            process.send_signal(number)
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_disk_error_is_one_line_with_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(interrupt, "handle_signals", lambda: None)  # those of pytest stay

    def main() -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/disk/file")

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(SystemExit) as exit:
        run_main(main)
    assert exit.value.code == 1
    assert capsys.readouterr().err == "job.py: [Errno 5] Input/output error: '/disk/file'\n"


CATCH_FIRST = """interrupt.DEBOUNCE_SECONDS = 600
    try: work()
    except KeyboardInterrupt:
        print("working", flush=True)
        for _ in range(10): time.sleep(0.1)
        return 3"""
IGNORE_SIGNALS = """words = iter(["working"])
    for number in interrupt.EXIT_CODES:
        signal.signal(number, lambda *_: [print(word, flush=True) for word in words])
    work()"""
WAIT_FOR_RAY = """interrupt.GRACE_SECONDS = 0.5
    try: work()
    except KeyboardInterrupt: time.sleep(600)"""
WORK_AT_EXIT = """atexit.register(work)
    try: work()
    except KeyboardInterrupt: return interrupt.exit_code"""


@pytest.mark.parametrize(("number", "exit_code"), interrupt.EXIT_CODES.items())
@pytest.mark.parametrize(
    ("main", "presses", "pause", "own_code"),
    [
        pytest.param("work()", 1, 0, None, id="one_press"),
        pytest.param(CATCH_FIRST, 2, 0, 3, id="second_press_within_debounce_time_is_ignored"),
        pytest.param(
            IGNORE_SIGNALS, 2, 2 * interrupt.DEBOUNCE_SECONDS, None, id="second_press_force_quits"
        ),
        pytest.param(WAIT_FOR_RAY, 1, 0, None, id="work_that_does_not_end_is_cut_off"),
        pytest.param(WORK_AT_EXIT, 1, 0, None, id="exit_handlers_are_skipped"),
    ],
)
def test_signal_prints_one_line_and_ends_the_process(
    main, presses, pause, own_code, number, exit_code
):
    code = exit_code if own_code is None else own_code
    assert run_interrupted(main, number, presses, pause) == (code, "", ACKNOWLEDGED)


def test_message_after_fresh_does_not_advise_to_start_another_run():
    """--fresh may have added a number to the name of the run that is to be resumed."""
    _, _, printed = run_interrupted("work()", signal.SIGINT, 1, 0, "--fresh")
    assert "Re-run the command with this run's --name instead of --fresh to resume" in printed


JOBS = ["jobs/gan.py", "jobs/sweep.py"]
ANALYSES = [
    f"analysis/{name}.py" for name in ("compare", "gan", "horizon", "report", "sweep", "trials")
]


@pytest.mark.parametrize("script", [*JOBS, *ANALYSES])
def test_ctrl_c_during_imports_prints_no_traceback(script, tmp_path):
    # A library that is loaded early: a script may be fast, and must not end before it is seen.
    library = "libtorch" if script in JOBS else "numpy"
    arguments = ["--storage", tmp_path] if script in JOBS else [tmp_path]
    with running_script(script, *arguments) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: process.poll() is not None or library in maps.read_text(), every=0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    if process.returncode == -signal.SIGINT:
        assert output == ""
    else:  # the imports were over
        assert process.returncode == (130 if script in JOBS else 2)
        assert "Traceback" not in output
