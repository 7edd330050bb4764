"""The command lines of the analysis scripts."""

import argparse
import os
from pathlib import Path
from typing import NoReturn


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
