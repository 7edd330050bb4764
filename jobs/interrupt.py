"""Ctrl-C: answered at once, and obeyed at once when it comes again."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ANSWER = "stopping: the same command continues from here (Ctrl-C again ends at once)"
CODE = 130  # the exit code that shells know for Ctrl-C
ONE_PRESS = 0.3  # seconds: some programs hand on to their child what the terminal sends to both
asked = threading.Event()  # to stop


def end_quietly() -> None:
    """Has Ctrl-C just end this process, until it is `answered`: no traceback of slow imports."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def answered() -> Iterator[None]:
    """Within the block, in the main thread, Ctrl-C is answered, whatever this process is doing.

    Ray's own handlers stop its work, which takes seconds in which nothing is said, and what is in a
    call of Ray's hears nothing. So the answer comes from a thread, to which the signal goes through
    a pipe. The second Ctrl-C ends the process: a Ray that it started ends with it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as end_quietly() leaves it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listening = threading.Thread(target=_listen, args=(reading,), daemon=True)
    listening.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        listening.join()
        os.close(reading)


def _listen(reading: int) -> None:
    first = 0.0
    while number := os.read(reading, 1):
        if number[0] != signal.SIGINT:
            continue
        if asked.is_set():
            if time.monotonic() > first + ONE_PRESS:
                os._exit(CODE)
            continue
        first = time.monotonic()
        start = "\r\033[K" if sys.stderr.isatty() else ""  # of a line that says how far a job is
        with suppress(OSError):  # nobody reads it
            print(f"{start}{ANSWER}", file=sys.stderr, flush=True)
        asked.set()
