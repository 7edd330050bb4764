"""Shows the trials of Ray Tune experiments as a table: finished, running, killed.

  python analysis/trials.py ~/ray_results/figures
  python analysis/trials.py ~/ray_results/figures --sort val_accuracy \\
      --query "cell == 'lstm' and length >= 20" --columns trial,val_accuracy
  python analysis/trials.py s3://BUCKET/sweeps/figures --epochs --csv epochs.csv
"""

from analysis import cli

if __name__ == "__main__":
    cli.start_script()  # before the imports, which take seconds

import argparse
import shutil
import sys
from typing import Any

import pandas as pd

from analysis.cli import ResultsError
from analysis.results import read_trials
from analysis.tables import (
    default_columns,
    epochs_table,
    fit_to_width,
    format_table,
    trials_table,
)


def parse_args() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders or URIs of runs")
    parser.add_argument(
        "--epochs", action="store_true", help="a row for each epoch, instead of each trial"
    )
    parser.add_argument("--query", metavar="TEXT", help="condition for rows, as in DataFrame.query")
    parser.add_argument("--sort", metavar="COLUMN", help="column to sort by")
    parser.add_argument("--descending", action="store_true", help="largest value first")
    parser.add_argument(
        "--columns", metavar="NAME,NAME", help="columns, or `all` (those that vary)"
    )
    parser.add_argument(
        "--csv", metavar="FILE", help="file for all rows and columns, or `-` for stdout"
    )
    args = parser.parse_args()
    if args.descending and not args.sort:
        parser.error("--descending requires --sort")
    return args


def select_view(table: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """Returns the rows and columns that the flags ask for.

    Raises:
        ResultsError: a column does not exist or has no order, or the query is not a condition.
    """
    names = args.columns.split(",") if args.columns not in (None, "all") else []
    for name in [*names, *([args.sort] if args.sort else [])]:
        if name not in table:
            raise ResultsError(f"no column {name!r}: choose from {', '.join(table)}")
    defaults = default_columns(table)
    if args.query:
        try:
            condition = table.eval(args.query)
        except Exception as error:  # pandas raises whatever its parser, or the query, raises
            raise ResultsError(f"--query {args.query!r}: {error}") from None
        if not isinstance(condition, pd.Series) or not pd.api.types.is_bool_dtype(condition):
            raise ResultsError(
                f"--query {args.query!r}: must be true or false for each row, as cell == 'lstm'"
            )
        table = table[condition]
    if args.sort:
        try:
            table = table.sort_values(args.sort, ascending=not args.descending, kind="stable")
        except TypeError:
            raise ResultsError(
                f"--sort {args.sort}: values of different types cannot be sorted"
            ) from None
    if names:
        return table[names]
    return table if args.columns or args.csv else table[defaults]


def main() -> int:
    args = parse_args()
    trials = [trial for run in args.runs for trial in read_trials(run)]
    table = epochs_table(trials) if args.epochs else trials_table(trials)
    table = select_view(table, args)
    if args.csv:
        target = sys.stdout if args.csv == "-" else args.csv
        # A gzip file without a time stamp: the same table gives the same file.
        is_gzip = args.csv.endswith(".gz") and not args.csv.endswith(".tar.gz")
        compression: Any = {"method": "gzip", "mtime": 0} if is_gzip else "infer"
        try:
            table.to_csv(target, index=False, compression=compression)
        except ImportError as error:  # .zst needs a package
            raise ResultsError(f"--csv {args.csv}: {error}") from None
        return 0
    view = table
    if sys.stdout.isatty() and not args.columns:
        view = fit_to_width(table, shutil.get_terminal_size().columns)
    if len(view):
        print(format_table(view))
    print(f"{len(table)} rows" if args.epochs else f"{len(table)} of {len(trials)} trials")
    hidden = [name for name in table if name not in view]
    if hidden:
        print(f"hidden to fit the width (--columns all shows them): {', '.join(hidden)}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
