"""Ctrl-C: acknowledged immediately; a second press quits immediately."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPT_MESSAGE = (
    "Interrupted, shutting down. Re-run the same command to resume (Ctrl-C again to force quit)."
)
EXIT_CODE = 130  # 128 + SIGINT, as shells have it
DEBOUNCE_SECONDS = 0.3  # some programs forward to their child what the terminal sends to both
interrupted = threading.Event()


def exit_silently_on_sigint() -> None:
    """Makes Ctrl-C end this process without a traceback, until `handle_signals`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Within the block, in the main thread, acknowledges Ctrl-C whatever this process is doing.

    Ray's own handlers stop its work, which takes seconds without a message, and Python code does
    not see a signal during a call into Ray. So a thread, which gets the signal through a pipe,
    prints the message. The second Ctrl-C ends the process, and with it a Ray that it started.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set by exit_silently_on_sigint()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    previous = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(read_fd,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write_fd)
        listener.join()
        os.close(read_fd)


def _listen(read_fd: int) -> None:
    first = 0.0
    while number := os.read(read_fd, 1):
        if number[0] != signal.SIGINT:
            continue
        if interrupted.is_set():
            if time.monotonic() > first + DEBOUNCE_SECONDS:
                os._exit(EXIT_CODE)
            continue
        first = time.monotonic()
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # the progress line
        with suppress(OSError):  # stderr is closed
            print(f"{clear}{INTERRUPT_MESSAGE}", file=sys.stderr, flush=True)
        interrupted.set()
