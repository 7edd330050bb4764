"""Command lines from dataclasses: a field is a setting, its flag and its line of help.

@dataclass(frozen=True)
class Config:
    lengths: tuple[int, ...] = arg(range(3, 25), "sequence lengths")

parser = DataclassParser(__doc__)
parser.add_dataclass("hyperparameters", Config)
explicit_args(parser.parse_args(), Config)   # {"lengths": (3, 4)}: only what was typed
"""

import argparse
import atexit
import dataclasses
import math
import os
import re
import shlex
import signal
import sys
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import interrupt
from jobs.errors import UserError
from jobs.formatting import format_value, pluralize
from jobs.progress import print_lines

if TYPE_CHECKING:  # loading torch takes seconds
    from jobs.storage import StorageDir


def arg(default: Any, help: str, metavar: str | None = None) -> Any:
    """Returns a dataclass field with a default, a line of help, and a placeholder in the help."""
    if isinstance(default, range):
        default = tuple(default)
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


@dataclasses.dataclass(frozen=True)
class LaunchArgs:
    """Where and how a job runs. Storage and name identify a run; the rest may change."""

    storage: str = arg("~/ray_results", "shared folder or URI")
    name: str = arg("", "run and folder name (from the preset)")
    fresh: bool = arg(False, "new folder, from scratch")
    address: str | None = arg(None, "Ray cluster (the local one, else a new one)")


def parse_text(text: str) -> str:
    """Returns the text; an empty one, as of a variable that is not set, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def parse_int_ranges(text: str) -> tuple[int, ...]:
    """Parses integers and inclusive ranges: `3-24,30`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of integers and ranges such as 3-24,30"
            ) from None
        if not span:
            raise argparse.ArgumentTypeError(f"range {part} is empty: its end is below its start")
        numbers += span
    return tuple(sorted(set(numbers)))


def parse_names(text: str) -> tuple[str, ...]:
    """Parses a list of names: `lstm,rnn`."""
    names = tuple(sorted({part.strip() for part in text.split(",")}))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names such as lstm,rnn")
    return names


def parse_float_pair(text: str) -> tuple[float, float]:
    """Parses two numbers: `0.5,0.999`."""
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 0.5,0.999") from None
    return first, second


class DataclassParser(argparse.ArgumentParser):
    """An argument parser whose flags are dataclass fields and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(
            usage="%(prog)s [flags]",
            description=doc,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=30),
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        # What argparse takes for a value instead of a flag: lists of numbers, too (-1,3).
        self._negative_number_matcher = re.compile(r"-[\d.]")

    def add_presets(self, summaries: dict[str, str], default: str) -> Any:
        """Adds --preset, with a line of help for each preset; returns the argument group."""
        width = max(map(len, summaries))
        lines = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
        group = self.add_argument_group("presets", "\n".join(lines))
        group.add_argument(
            "--preset",
            choices=summaries,
            metavar="NAME",
            default=default,
            help=f"base of the flags below ({default})",
        )
        return group

    def add_dataclass(self, title: str, config: type) -> None:
        group = self.add_argument_group(title)
        field_types = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            flag = flag_of(field.name)
            text = field.metadata["help"].replace("%", "%%")
            if field_types[field.name] is bool:
                group.add_argument(flag, action="store_true", help=text)
                continue
            convert, choices, metavar = _parser_for(field_types[field.name])
            metavar = field.metadata["metavar"] or metavar
            if not text.endswith(")"):  # the text already states the default
                text += f" ({format_value(field.default)})"
            group.add_argument(flag, type=convert, choices=choices, metavar=metavar, help=text)

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser_for(kind: Any) -> tuple[Callable[[str], Any], tuple[str, ...] | None, str | None]:
    """Returns the function that parses a `kind`, its choices, and its placeholder in the help."""
    if kind == tuple[int, ...]:
        return parse_int_ranges, None, "N-N,N"
    if kind == tuple[str, ...]:
        return parse_names, None, "NAME,NAME"
    if kind == tuple[float, float]:
        return parse_float_pair, None, "X,X"
    if typing.get_origin(kind) is typing.Literal:
        return str, typing.get_args(kind), None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = (member for member in typing.get_args(kind) if member is not type(None))
        convert, choices, metavar = _parser_for(inner)

        def optional(text: str) -> Any:
            return None if text == "none" else convert(text)

        optional.__name__ = convert.__name__  # argparse names it in its errors
        return optional, choices, metavar
    return parse_text if kind is str else kind, None, {int: "N", float: "X", str: "TEXT"}[kind]


def flag_of(name: str) -> str:
    """Returns the flag of a dataclass field."""
    return "--" + name.replace("_", "-")


def check_positive(config: Any, *names: str) -> None:
    """Raises UserError for a field that is not positive and finite; None is not checked."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag_of(name)} {value}: must be positive and finite")


def explicit_args(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """Returns the fields of one dataclass that were typed, and no others."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in vars(args).items() if name in names}


def resume_command(name: str) -> str:
    """Returns the command that resumes the run `name`: the same one, without --fresh."""
    script, *argv = sys.argv
    arguments = [argument for argument in argv if argument != "--fresh"]
    if len(arguments) < len(argv):
        arguments += ["--name", name]
    return shell_command(f"jobs/{Path(script).name}" if _under_ray_submit() else script, arguments)


def shell_command(script: str, arguments: list[str]) -> str:
    """Returns the shell command that runs a script of this suite: here, or by `ray submit`."""
    if not _under_ray_submit():
        if script.startswith("analysis/"):
            script = os.path.normpath(os.path.join(os.path.dirname(sys.argv[0]), "..", script))
        return shlex.join(["python", script, *arguments])
    # `ray submit` passes arguments to the head's shell unquoted, so they are quoted twice.
    quoted = {argument: shlex.quote(argument) for argument in arguments}
    words = [word if word == quoted[word] else f'"{quoted[word]}"' for word in arguments]
    return " ".join(["ray submit cluster.yaml", script, "--", *words])


def _under_ray_submit() -> bool:
    """Returns whether `ray submit` runs this script: it copies scripts to the home directory."""
    return str(Path(sys.argv[0]).parent) == os.path.expanduser("~")


def print_start(lines: list[str], folder: "StorageDir", logs: str) -> None:
    """Prints what a job is about to do, and where its results and logs are."""
    print_lines(*lines, f"results: {folder.uri}", f"logs: {logs}")


def print_summary(
    done: int, total: int, unit: str, folder: "StorageDir", failures: list[str], analysis: str
) -> int:
    """Prints what a job has done and what to type next; returns its exit code.

    Args:
        analysis: the script that plots the results.
    """
    print_lines(
        *(f"failed: {failure}" for failure in failures),
        f"{done} of {pluralize(total, unit)} done: {folder.uri}",
        f"next: {shell_command(analysis, [folder.uri])}"
        if done == total
        else f"to resume: {resume_command(folder.name)}",
    )
    if done == total:
        return 0
    return interrupt.exit_code if interrupt.interrupted.is_set() and not failures else 1


def run_main(main: Callable[[], int]) -> typing.NoReturn:
    """Runs a job's `main` and exits with its code.

    A UserError is printed as one line (exit code 2), and so is a storage or disk that fails (exit
    code 1).
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open
    interrupt.handle_signals()
    try:
        code = main()
    except (UserError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)  # noqa: T201
        code = 2 if isinstance(error, UserError) else 1
    except (KeyboardInterrupt, SystemExit):  # the second by a handler of Ray, or argparse
        if not interrupt.interrupted.is_set():
            raise
        code = interrupt.exit_code
    if interrupt.interrupted.is_set():
        # Ray takes seconds to stop processes that end with this one anyway, and may crash if it is
        # interrupted while it does.
        with suppress(OSError):  # stdout is closed
            sys.stdout.flush()
        os._exit(code)
    # Everything is printed, so a signal may cut short what remains to be done at exit.
    for number in interrupt.EXIT_CODES:
        atexit.register(signal.signal, number, signal.SIG_DFL)
    sys.exit(code)
