"""What a job says: a line on how far it is, lengths of time in words, and how it ended."""

import os
import shutil
import sys
import time
from collections.abc import Callable

from jobs import flags, interrupt
from jobs.storage import Folder

LOGS = f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs"  # of a Ray started here


class StatusLine:
    """A line that says how far a job is: on a terminal always the same, else a new one at times."""

    def __init__(self):
        self.shown = ""
        self.next_time = 0.0

    def show(self, status: Callable[[], str]) -> None:
        """Shows what `status` says, once a second or, where there is no terminal, every twenty."""
        terminal = sys.stdout.isatty()
        if time.monotonic() < self.next_time:
            return
        self.next_time = time.monotonic() + (1 if terminal else 20)
        line = status()
        if line != self.shown:
            self.shown = line
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write(f"\r\033[K{line[:width]}" if terminal else line + os.linesep)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """Prints what is to stay."""
        print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)

    def clear(self) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r\033[K")


def plural(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Returns a length of time in one unit or two: `45 min`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def tell_end(
    done: int, wanted: int, thing: str, folder: Folder, failures: list[str], script: str
) -> int:
    """Tells what a job has done, and what to type now: returns its exit code."""
    print("".join(f"failed: {failure}\n" for failure in failures), end="")
    print(f"{done} of {plural(wanted, thing)} done: {folder.uri}")
    if done < wanted:
        print(f"to continue: {flags.again(folder.name)}")
        return 1 if failures else interrupt.CODE
    print(f"next: {flags.command(script, [folder.uri])}")
    return 0
