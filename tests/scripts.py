"""Runs the suite's scripts as people run them: as processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs import QUIET

TOP = Path(__file__).parent.parent
UNCOMPILED = shutil.ignore_patterns("__pycache__")  # others write it while it is copied

# For a minute they look for the head of a Ray that was not shut down, then they end.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")

# The jobs have set these for this process, too: those that it starts are to do so themselves.
for name in QUIET:
    os.environ.pop(name, None)

# Read when torch is loaded, here and in what is run: several runs share the cores in tests, and
# threads that wait for another of theirs, which waits for a core, hold up everybody.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TOP / script), *map(str, arguments)]


def run(script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, in another working folder than the repository's."""
    return subprocess.run(
        command(script, *arguments), cwd="/", capture_output=True, text=True, timeout=600, **options
    )


@contextmanager
def started(script: str, *arguments: object, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Runs a script in the background; whatever happens, all that it started ends with the block.

    A driver that started Ray takes Ray along when it is killed, but for AGENTS.
    """
    process = subprocess.Popen(
        command(script, *arguments),
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
        end_session(process)


def end_session(leader: subprocess.Popen) -> None:
    """Kills a process and what it started, the session of which it is or was the leader."""
    deadline = time.monotonic() + 20
    while pids := session_of(leader.pid):  # again: a process may have started another
        assert time.monotonic() < deadline, f"these do not end: {pids}"
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    leader.wait()


def session_without_agents(leader: int) -> list[int]:
    """Returns the processes of a session that live and are none of Ray's agents."""
    pids = []
    for pid in session_of(leader):
        with suppress(OSError):  # it has ended
            if not Path(f"/proc/{pid}/cmdline").read_text().startswith(AGENTS):
                pids.append(pid)
    return pids


def session_of(leader: int) -> list[int]:
    """Returns the processes of a session that live."""
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
    """Returns what `condition` does as soon as that is true; fails after so many minutes.

    They are many, as a slow machine takes minutes where this one takes seconds.

    Args:
        condition: asked every so many seconds.
        process: fails at once when this one has ended.
        every: seconds; more for a condition that takes the machine from what it waits for.
    """
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(every)
    raise AssertionError(f"this did not come about in {minutes} minutes")
