"""Runs the suite's scripts as people run them: as processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).parent.parent


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TOP / script), *map(str, arguments)]


def run(script: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, in another working folder than the repository's."""
    return subprocess.run(
        command(script, *arguments), cwd="/", capture_output=True, text=True, timeout=300, **options
    )


@contextmanager
def started(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Runs a script in the background; whatever happens, it and its children end with the block.

    A driver that started Ray takes Ray along when it is killed.
    """
    process = subprocess.Popen(
        command(script, *arguments),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
