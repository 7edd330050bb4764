"""The progress line of a job."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stdout_may_be_closed() -> Iterator[None]:
    """Sends all output to /dev/null after stdout is closed (`| head`), which ends no training."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StatusLine:
    """A status that is redrawn in place on a terminal, and printed now and then elsewhere."""

    def __init__(self):
        self.last = ""
        self.next_time = 0.0

    def update(self, status: Callable[[], str]) -> None:
        """Shows the result of `status`, every second on a terminal, every 20 seconds elsewhere."""
        terminal = sys.stdout.isatty()
        if time.monotonic() < self.next_time:
            return
        self.next_time = time.monotonic() + (1 if terminal else 20)
        line = status()
        if line != self.last:
            self.last = line
            width = shutil.get_terminal_size().columns - 1
            with stdout_may_be_closed():
                sys.stdout.write(f"\r\033[K{line[:width]}" if terminal else line + os.linesep)

    def print_line(self, text: str) -> None:
        """Prints a line that stays."""
        with stdout_may_be_closed():
            print(f"\r\033[K{text}" if sys.stdout.isatty() else text)

    def clear(self) -> None:
        if sys.stdout.isatty():
            with stdout_may_be_closed():
                sys.stdout.write("\r\033[K")
