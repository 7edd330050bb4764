"""What a job prints, and its progress line. No print to stdout is elsewhere in the jobs."""

import os
import shutil
import sys
import time
from collections.abc import Callable


def print_lines(*lines: str) -> None:
    """Prints lines to stdout, whose failures end no training."""
    _write("".join(f"{line}\n" for line in lines))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # closed (`| head`), a full disk (`> log`): the rest goes to /dev/null
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
            _write(f"\r\033[K{line[:width]}" if terminal else f"{line}\n")

    def print_line(self, text: str) -> None:
        """Prints a line that stays."""
        print_lines(f"\r\033[K{text}" if sys.stdout.isatty() else text)

    def clear(self) -> None:
        if sys.stdout.isatty():
            _write("\r\033[K")
