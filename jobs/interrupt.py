"""Ctrl-C: answered at once, and obeyed at once when it comes again."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ANSWER = "stopping; what was done is kept (Ctrl-C again ends at once)"
CODE = 130  # the exit code that shells know for Ctrl-C
ONE_PRESS = 0.3  # seconds: some programs hand on to their child what the terminal sends to both
asked = threading.Event()  # to stop


@contextmanager
def answered() -> Iterator[None]:
    """Within the block, in the main thread, Ctrl-C is answered, whatever this process is doing.

    Ray's own handlers stop its work, which takes seconds in which nothing is said, and what is in a
    call of Ray's hears nothing. So the answer comes from a thread, to which the signal goes through
    a pipe. The second Ctrl-C ends the process: a Ray that it started ends with it. Once asked to
    stop, the process keeps listening after the block, for what it does at its exit.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    all_heard = threading.Event()
    listening = threading.Thread(target=_listen, args=(reading, all_heard), daemon=True)
    listening.start()
    try:
        yield
    finally:
        os.write(writing, b"\0")
        all_heard.wait()
        if asked.is_set():
            signal.signal(signal.SIGINT, lambda *_: None)  # no traceback of an exit's own work
        else:
            signal.set_wakeup_fd(before)
            os.close(writing)
            listening.join()
            os.close(reading)


def _listen(reading: int, all_heard: threading.Event) -> None:
    first = 0.0
    while number := os.read(reading, 1):
        if number == b"\0":
            all_heard.set()
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
