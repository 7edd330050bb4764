"""Ctrl-C and SIGTERM: acknowledged immediately; a second signal quits immediately."""

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

COMMAND = "the same command"
if "--fresh" in sys.argv:  # which may have added a number to the name
    COMMAND = "the command with this run's --name instead of --fresh"
INTERRUPT_MESSAGE = (
    f"Interrupted, shutting down. Re-run {COMMAND} to resume (Ctrl-C again to force quit)."
)
EXIT_CODES = {int(signal.SIGINT): 130, int(signal.SIGTERM): 143}  # as shells have them
DEBOUNCE_SECONDS = 0.3  # some programs forward to their child what the terminal sends to both
GRACE_SECONDS = 20.0  # then the process ends: a call of Ray may wait for a cluster that is busy
interrupted = threading.Event()
exit_code = 130  # once interrupted, that of the first signal


def exit_silently_on_sigint() -> None:
    """Makes Ctrl-C end this process without a traceback, until `handle_signals`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def handle_signals() -> None:
    """From now on, the first signal raises KeyboardInterrupt; Ray Train ends its workers first.

    Python code does not see a signal during a call into Ray, so a thread, which gets it through a
    pipe, prints the message and ends the process at a second one, and with it a Ray it started.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, raise_once)
    signal.signal(signal.SIGTERM, raise_once)
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(read_fd,), daemon=True).start()


def raise_once(signum: int, frame: Any) -> None:
    """Raises KeyboardInterrupt, and ignores later signals.

    The same signal may arrive twice, and the summary must not be interrupted.
    """
    for each in EXIT_CODES:
        signal.signal(each, lambda number, frame: None)
    interrupted.wait(1)  # until the message is printed
    raise KeyboardInterrupt


def _listen(read_fd: int) -> None:
    global exit_code
    while (number := os.read(read_fd, 1)[0]) not in EXIT_CODES:
        pass  # a signal of a library
    first, exit_code = time.monotonic(), EXIT_CODES[number]
    with suppress(OSError):  # stderr is closed; on a terminal, the progress line is cleared
        clear = "\r\033[K" * sys.stderr.isatty()
        print(f"{clear}{INTERRUPT_MESSAGE}", file=sys.stderr, flush=True)  # noqa: T201
    interrupted.set()
    while select.select([read_fd], [], [], max(0, first + GRACE_SECONDS - time.monotonic()))[0]:
        number = os.read(read_fd, 1)[0]
        if number in EXIT_CODES and time.monotonic() > first + DEBOUNCE_SECONDS:
            break
    os._exit(exit_code)
