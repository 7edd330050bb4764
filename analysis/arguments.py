"""The command lines of the analysis scripts."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def end_quietly() -> None:
    """Has Ctrl-C just end this process, without a traceback: there is nothing to put in order."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Runs `main` and exits with its code; that `| head` has seen enough is no trouble."""
    code = 0
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # What was not written goes nowhere: Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows the script's docstring as help and errors in one line."""

    def __init__(self, doc: str | None):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def check_writable(out: Path) -> None:
    """Raises OSError, before long work, for a file or a folder that cannot be written."""
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise OSError(f"--out {out}: it cannot be written there")
