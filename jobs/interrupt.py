"""Ctrl-C and SIGTERM: acknowledged immediately; a second signal quits immediately."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

INTERRUPT_MESSAGE = (
    "Interrupted, shutting down. Re-run the same command to resume (Ctrl-C again to force quit)."
)
EXIT_CODES = {int(signal.SIGINT): 130, int(signal.SIGTERM): 143}  # as shells have them
DEBOUNCE_SECONDS = 0.3  # some programs forward to their child what the terminal sends to both
interrupted = threading.Event()
_has_raised = False
exit_code = 130  # once interrupted, that of the first signal


def exit_silently_on_sigint() -> None:
    """Makes Ctrl-C end this process without a traceback, until `handle_signals`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def handle_signals() -> None:
    """From now on, the first signal raises KeyboardInterrupt once, or does what Ray does at Ctrl-C.

    Python code does not see a signal during a call into Ray, so a thread, which gets it through a
    pipe, prints the message. A second signal ends the process, and with it a Ray that it started.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, _raise_once)
    signal.signal(signal.SIGTERM, like_sigint)
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(read_fd,), daemon=True).start()


def like_sigint(number: int, frame: Any) -> None:
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else _raise_once)(number, frame)


def _raise_once(number: int, frame: Any) -> None:
    """The same signal may arrive twice; the summary must not be interrupted."""
    global _has_raised
    if not _has_raised:
        _has_raised = True
        raise KeyboardInterrupt


def _listen(read_fd: int) -> None:
    global exit_code
    first = 0.0
    while True:
        number = os.read(read_fd, 1)[0]
        if number in EXIT_CODES and not interrupted.is_set():
            first, exit_code = time.monotonic(), EXIT_CODES[number]
            clear = "\r\033[K" if sys.stderr.isatty() else ""  # the progress line
            with suppress(OSError):  # stderr is closed
                print(f"{clear}{INTERRUPT_MESSAGE}", file=sys.stderr, flush=True)
            interrupted.set()
        elif number in EXIT_CODES and time.monotonic() > first + DEBOUNCE_SECONDS:
            os._exit(exit_code)
