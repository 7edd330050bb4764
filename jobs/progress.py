"""The progress line of a job."""

import os
import shutil
import sys
import time
from collections.abc import Callable


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
            sys.stdout.write(f"\r\033[K{line[:width]}" if terminal else line + os.linesep)
            sys.stdout.flush()

    def print_line(self, text: str) -> None:
        """Prints a line that stays."""
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)

    def clear(self) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r\033[K")
