"""Runs the suite's scripts as users run them: in processes of their own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray_private

from analysis.results import Trial, read_trials
from jobs import RAY_VARIABLES

REPO = Path(__file__).parent.parent
IGNORE_PYCACHE = shutil.ignore_patterns("__pycache__")  # other processes write it during a copy

# Ray prints messages of other processes as "(source) message", the source maybe in color.
FORWARDED_MESSAGE = re.compile(r"^(?:\x1b\[\d+m)*\(.*", re.MULTILINE)

# Importing the jobs has set these here; scripts that tests start must set them themselves.
for name, value in RAY_VARIABLES.items():
    if os.environ.get(name) == value:
        del os.environ[name]


def script_command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(REPO / script), *map(str, arguments)]


def run_script(
    script: str, *arguments: object, **options: object
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, in another working directory than the repository's."""
    command = script_command(script, *arguments)
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=600, **options)


def run_job(script: str, *flags: object) -> list[Trial]:
    """Runs a job into a temporary folder, and returns its trials, or the one run of a GAN."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_script(script, *flags, "--storage", folder, "--name", "run")
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return read_trials(f"{folder}/run")


@contextmanager
def running_script(
    script: str, *arguments: object, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """Runs a script in the background; all processes that it started end with the block."""
    process = subprocess.Popen(
        script_command(script, *arguments),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        kill_session(process)


def kill_session(leader: subprocess.Popen) -> None:
    """Kills all processes of the session whose leader a process is or was."""
    deadline = time.monotonic() + 20
    while pids := session_pids(leader.pid):  # repeatedly: a process may have started another
        assert time.monotonic() < deadline, f"processes survive SIGKILL: {pids}"
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    leader.wait()


def session_without_agents(leader: int) -> list[int]:
    """Returns the live processes of a session, except Ray's agents."""
    pids = []
    for pid in session_pids(leader):
        with suppress(OSError):  # it has ended
            if not Path(f"/proc/{pid}/cmdline").read_text().startswith(ray_private.AGENTS):
                pids.append(pid)
    return pids


def session_pids(leader: int) -> list[int]:
    """Returns the live processes of a session."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has ended
        if int(session) == leader and state not in "ZX":
            pids.append(int(process.name))
    return pids


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    every: float = 0.05,
    minutes: int = 10,
) -> object:
    """Returns the first true result of `condition`; fails after a number of minutes.

    The limit is long, because a slow machine takes minutes where another takes seconds.

    Args:
        process: fails immediately when this process has ended.
        every: seconds between calls; more for a condition that is expensive.
    """
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(every)
    raise AssertionError(f"timed out after {minutes} minutes")
