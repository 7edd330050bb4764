"""Shows the trials of Ray Tune experiments as a table: finished, running, killed.

  python analysis/trials.py ~/ray_results/figures
  python analysis/trials.py ~/ray_results/figures --sort val_accuracy \\
      --where "cell == 'lstm' and length >= 20" --columns trial,val_accuracy
  python analysis/trials.py s3://BUCKET/sweeps/figures --epochs --csv epochs.csv
"""

from analysis.arguments import Parser, end_quietly, exit_with

if __name__ == "__main__":
    end_quietly()  # for as long as it runs: the imports alone take seconds

import argparse
import shutil
import sys

import pandas as pd

from analysis.results import TUNE_COLUMNS, NoResults, epochs_table, read_trials, trials_table

# Reported too, but not what one looks for first.
DETAILS = [
    "epoch_seconds", "train_seconds", "sequences_per_second", "images_per_second", "restored_epoch",
    "damaged", "ended_at", "device", "machine", "versions", "threads", "workers", "keep_every",
    "quality_every", "density", "coverage", "confidence", "kl_to_uniform", "smallest_share",
    "checked", "gradient_h", "gradient_c", "spectral_radii", "forget_gates",
    "gradient_norm", "step_size",
]  # fmt: skip


FIRST = ("trial", "status", "epoch", "val_accuracy")  # whatever else there is


def columns_to_show(table: pd.DataFrame) -> list[str]:
    """Returns the columns worth a screen: neither details nor settings that are all the same."""
    hidden = {*TUNE_COLUMNS, *DETAILS}
    differ = {name for name in table if table[name].astype(str).nunique(dropna=False) > 1}
    return [
        name
        for name in table
        if name in FIRST
        or (name not in hidden and (name in differ or (len(table) == 1 and name != "experiment")))
    ]


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="an experiment: folder or URI"
    )
    parser.add_argument(
        "--epochs", action="store_true", help="a row for each epoch, not each trial"
    )
    parser.add_argument("--where", metavar="TEXT", help="which rows, as pandas writes a query")
    parser.add_argument("--sort", metavar="COLUMN", help="order by this column")
    parser.add_argument("--reverse", action="store_true", help="the largest first")
    parser.add_argument(
        "--columns", metavar="NAME,NAME", help="these, or `all` of them (those that differ)"
    )
    parser.add_argument("--csv", metavar="FILE", help="write all rows and columns there, `-`: here")
    return parser


def select(table: pd.DataFrame, arguments: argparse.Namespace) -> pd.DataFrame:
    """Returns the rows and columns that the flags ask for.

    Raises:
        NoResults: a column is not there, the query is none, or --reverse has no --sort.
    """
    if arguments.reverse and not arguments.sort:
        raise NoResults("--reverse: goes with --sort")
    wanted = arguments.columns.split(",") if arguments.columns not in (None, "all") else []
    for name in [*wanted, *([arguments.sort] if arguments.sort else [])]:
        if name not in table:
            raise NoResults(f"there is no column {name!r}: {', '.join(table)}")
    worth_a_screen = columns_to_show(table)
    if arguments.where:
        try:
            chosen = table.eval(arguments.where)
        except Exception as error:  # pandas raises whatever its parser, or the query, raises
            raise NoResults(f"--where {arguments.where!r}: {error}") from None
        if not isinstance(chosen, pd.Series) or not pd.api.types.is_bool_dtype(chosen):
            raise NoResults(f"--where {arguments.where!r}: this is not true or false of a row")
        table = table[chosen]
    if arguments.sort:
        table = table.sort_values(arguments.sort, ascending=not arguments.reverse, kind="stable")
    if wanted:
        return table[wanted]
    return table if arguments.columns or arguments.csv else table[worth_a_screen]


def text_of(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="", float_format="{:.4g}".format)


def fitted(table: pd.DataFrame, width: int) -> pd.DataFrame:
    """Leaves out columns, the last ones first, until a line has at most `width` characters."""
    for name in reversed([name for name in table if name not in FIRST]):
        if len(text_of(table).partition("\n")[0]) <= width:
            break
        table = table.drop(columns=name)
    return table


def main() -> int:
    arguments = parser().parse_args()
    try:
        trials = [trial for results in arguments.results for trial in read_trials(results)]
        table = epochs_table(trials) if arguments.epochs else trials_table(trials)
        table = select(table, arguments)
        if arguments.csv:
            target = sys.stdout if arguments.csv == "-" else arguments.csv
            # A gzip that does not say when it was made: the same table is the same file.
            table.to_csv(target, index=False, compression={"method": "infer", "mtime": 0})
    except BrokenPipeError:  # an OSError, but that of who reads
        raise
    except (NoResults, OSError) as error:
        print(f"analysis/trials.py: {error}", file=sys.stderr)
        return 2
    if arguments.csv:
        return 0
    seen = table
    if sys.stdout.isatty() and not arguments.columns:
        seen = fitted(table, shutil.get_terminal_size().columns)
    print(text_of(seen))
    print(f"{len(table)} rows" if arguments.epochs else f"{len(table)} of {len(trials)} trials")
    left_out = [name for name in table if name not in seen]
    if left_out:
        print(f"left out for width (--columns all shows them): {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    exit_with(main)
