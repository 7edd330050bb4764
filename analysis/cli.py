"""The command lines of the analysis scripts: arguments, errors in one line, exit codes."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

Item = TypeVar("Item")


class ResultsError(Exception):
    """The results cannot be read or plotted as asked. Printed as one line; exit code 2."""


def start_script() -> None:
    """Prepares the process of a script, before it imports matplotlib.

    Ctrl-C ends it without a traceback: there is nothing to clean up. Of matplotlib's settings, the
    user's backend may not be installed, and the user's file may not be readable.
    """
    os.environ.update(MPLBACKEND="agg", MATPLOTLIBRC=os.devnull)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_main(main: Callable[[], int]) -> NoReturn:
    """Runs a script's `main` and exits with its code.

    A ResultsError or OSError is printed as one line (exit code 2). A closed stdout (`| head`) is
    no error.
    """
    if sys.stdout is None:  # started with it closed (`>&-`)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open
    code = 0
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # The rest of the output goes to /dev/null: Python would try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ResultsError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that shows the script's docstring as help and errors in one line."""

    def __init__(self, doc: str | None):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", None, parse_text)  # of each argument without another type

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse_text(text: str) -> str:
    """Returns the text; an empty one, as of a variable that is not set, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def expand_path(text: str) -> Path:
    """Returns a path of the command line; shells do not expand the `~` of `--out=~/figures`."""
    return Path(parse_text(text)).expanduser()


def add_runs_and_out(parser: ArgumentParser, out: str, runs: str = "sweeps") -> None:
    """Adds the runs to read, and where to write what is made of them, `out` by default."""
    kind = "file of the page" if Path(out).suffix else "folder of the figures"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"folders or URIs of {runs}")
    parser.add_argument("--out", type=expand_path, default=Path(out), help=f"{kind} ({out})")


def check_writable(out: Path) -> None:
    """Raises OSError or ResultsError, before long work, for a file or folder that is not writable.

    Creates the folders that it is in.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ResultsError(f"--out {out}: not writable")


def make_out_dir(out: Path) -> None:
    """Creates the folder of the figures; raises as `check_writable`."""
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out)


def show_progress(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """Yields the items, and shows on a terminal which one it is at."""
    for number, item in enumerate(items, 1):
        if sys.stdout.isatty():
            print(f"\r{doing} {number} of {len(items)}", end="", flush=True)
        yield item
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


def print_summary(findings: list[str], figures: list[Path], finished: int, trials: int) -> None:
    """Prints the findings of a sweep, how many trials were left out, and where the figures are."""
    print("\n".join(findings))
    if finished < trials:
        print(f"left out: {trials - finished} of {trials} trials, which are not finished")
    print("".join(f"{figure}\n" for figure in figures), end="")
