"""Command lines from dataclasses: each field is a setting, and its flag, and its line of help.

@dataclass(frozen=True)
class Settings:
    lengths: tuple[int, ...] = setting(range(3, 25), "digits that the network reads")

parser = Parser(__doc__)
parser.add_settings("experiment", Settings)
given(parser.parse_args(), Settings)   # {"lengths": (3, 4)}: only what was typed
"""

import argparse
import atexit
import dataclasses
import os
import re
import shlex
import signal
import sys
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs import interrupt


class Trouble(Exception):
    """What a user can mend. It is told in one line, and the exit code is 2."""


def setting(default: Any, help: str) -> Any:
    """Returns a dataclass field with a default and a line of help."""
    if isinstance(default, range):
        default = tuple(default)
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and how a job runs. A run that goes on may change all of it but its name."""

    storage: str = setting("~/ray_results", "folder or URI that every node sees")
    name: str | None = setting(None, "folder of the run, or none for the preset's name")
    fresh: bool = setting(False, "start over in a new folder beside the old one")
    address: str | None = setting(None, "a Ray cluster, or none for the one here, else a new one")


def numbers(text: str) -> tuple[int, ...]:
    """Reads whole numbers: a list of numbers and of ranges that include both ends, `3-24,30`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of numbers and ranges such as 3-24,30"
            ) from None
        if not span:
            raise argparse.ArgumentTypeError(
                f"the range {part} is empty: its end is before its start"
            )
        found += span
    return tuple(sorted(set(found)))


def words(text: str) -> tuple[str, ...]:
    """Reads a list of names, `lstm,rnn`."""
    found = tuple(sorted({part.strip() for part in text.split(",")}))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names such as lstm,rnn")
    return found


def pair(text: str) -> tuple[float, float]:
    """Reads two numbers, `0.5,0.999`."""
    try:
        first, second = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 0.5,0.999") from None
    return first, second


def shown(value: Any) -> str:
    """Returns a setting's value as one types it: the inverse of the readers above."""
    if isinstance(value, tuple) and value and isinstance(value[0], int):
        spans: list[list[int]] = []
        for number in value:
            if spans and number == spans[-1][-1] + 1:
                spans[-1][1:] = [number]
            else:
                spans.append([number])
        return ",".join("-".join(map(str, span)) for span in spans)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


class Parser(argparse.ArgumentParser):
    """An argument parser whose flags are dataclass fields and whose errors are one line."""

    def __init__(self, doc: str):
        super().__init__(
            usage="%(prog)s [flags]",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        # What argparse takes for a value and not for a flag: lists of numbers, too (-1,3).
        self._negative_number_matcher = re.compile(r"-[\d.]")

    def add_settings(self, title: str, settings: type) -> None:
        group = self.add_argument_group(title)
        types_of = typing.get_type_hints(settings)
        for field in dataclasses.fields(settings):
            flag = "--" + field.name.replace("_", "-")
            help = f"{field.metadata['help']} ({shown(field.default)})".replace("%", "%%")
            if types_of[field.name] is bool:
                group.add_argument(
                    flag, action="store_true", help=field.metadata["help"].replace("%", "%%")
                )
                continue
            convert, choices, metavar = _reader(types_of[field.name])
            group.add_argument(flag, type=convert, choices=choices, metavar=metavar, help=help)

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _reader(kind: Any) -> tuple[Callable[[str], Any], tuple[str, ...] | None, str | None]:
    """Returns how text becomes a `kind`, the choices there are, and the word for it in the help."""
    if kind == tuple[int, ...]:
        return numbers, None, "N-N,N"
    if kind == tuple[str, ...]:
        return words, None, "NAME,NAME"
    if kind == tuple[float, float]:
        return pair, None, "X,X"
    if typing.get_origin(kind) is typing.Literal:
        return str, typing.get_args(kind), None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = (member for member in typing.get_args(kind) if member is not type(None))
        convert, choices, metavar = _reader(inner)

        def optional(text: str) -> Any:
            return None if text == "none" else convert(text)

        optional.__name__ = convert.__name__  # argparse names it in its errors
        return optional, choices, metavar
    return kind, None, {int: "N", float: "X", str: "TEXT"}[kind]


def given(namespace: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Returns the settings of one dataclass that were typed, and no other."""
    names = {field.name for field in dataclasses.fields(settings)}
    return {name: value for name, value in vars(namespace).items() if name in names}


def again(name: str) -> str:
    """Returns the command that continues the run `name`: the same one, but for --fresh."""
    script, *typed = sys.argv
    arguments = [argument for argument in typed if argument != "--fresh"]
    if len(arguments) < len(typed):
        arguments += ["--name", name]
    return command(f"jobs/{Path(script).name}" if _submitted() else script, arguments)


def command(script: str, arguments: list[str]) -> str:
    """Returns what one types to run a script, there where this one was started from."""
    if not _submitted():
        return shlex.join(["python", script, *arguments])
    # It hands them to the head's shell as they are: what needs quotes needs some for it as well.
    quoted = {argument: shlex.quote(argument) for argument in arguments}
    words = [word if word == quoted[word] else f'"{quoted[word]}"' for word in arguments]
    return " ".join(["ray submit cluster.yaml", script, "--", *words])


def _submitted() -> bool:
    """Says whether `ray submit` runs this script: it copies it to the home of its user there."""
    return Path(sys.argv[0]).parent == Path.home()


def one_line(main: Callable[[], int]) -> typing.NoReturn:
    """Runs `main` as a script does: exits with its code, or with 2 and one line of trouble.

    A storage or a disk that fails meanwhile is one line as well, and the exit code 1.
    """
    with interrupt.answered():
        try:
            code = main()
        except (Trouble, OSError) as trouble:
            print(f"{Path(sys.argv[0]).name}: {trouble}", file=sys.stderr)
            code = 2 if isinstance(trouble, Trouble) else 1
        except KeyboardInterrupt:
            code = interrupt.CODE
        if code == interrupt.CODE:
            signal.signal(signal.SIGINT, lambda *_: None)  # of the same press, once more
            interrupt.asked.wait(1)  # until that is said
        if code == interrupt.CODE or interrupt.asked.is_set():
            # Ray takes seconds to stop what ends with this process in any case, and may crash when
            # it has half begun.
            with suppress(OSError):  # nobody reads it
                sys.stdout.flush()
            os._exit(code)
    # All is told, so Ctrl-C may cut short what is done at the exit: this is done first.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
