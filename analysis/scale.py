"""Says what a sweep of many trials needs, from measurements of small ones.

  python analysis/scale.py docs/scale.csv
  python analysis/scale.py docs/scale.csv --trials 10000 --slots 256 --minutes 4

The table is what tests/bench_scale.py wrote.
"""

from analysis.arguments import Parser, end_quietly, exit_with

if __name__ == "__main__":
    end_quietly()  # for as long as it runs: the imports alone take seconds

import sys

import pandas as pd


def at(table: pd.DataFrame, column: str, trials: int) -> float:
    """Returns what the line through the two largest sweeps has, in a column, at `trials`.

    The small ones are left out: what a sweep costs once is much of what they cost for each trial.
    """
    (x0, y0), (x1, y1) = table[["trials", column]].tail(2).to_numpy()
    return y1 + (y1 - y0) / (x1 - x0) * (trials - x1)


def plan(table: pd.DataFrame, trials: int, slots: int, minutes: float) -> pd.DataFrame:
    """Returns a row for each thing of which there may be too little.

    Args:
        table: of tests/bench_scale.py, a row for each number of trials.
        slots: trials at a time.
        minutes: that a trial trains.
    """
    hours = trials * minutes / slots / 60
    driver = at(table, "driver_cpu_seconds_per_trial", trials)
    state = at(table, "state_bytes_per_trial", trials) * trials
    size = table["bytes_on_storage_per_trial"].iloc[-1] * trials
    saved = size / (hours * 3600)
    rows = {
        "hours, were nothing lost": f"{hours:.1f}",
        "trials at a time": f"{slots}",
        "driver's CPU seconds per trial": f"{driver:.2f}",
        "of one core, in use by the driver": f"{driver * trials / (hours * 3600):.0%}",
        "trials at a time that fill the driver": f"{minutes * 60 / driver:,.0f}",
        "Tune's snapshot, written anew each time (MB)": f"{state / 1e6:,.0f}",
        "on storage in the end (GB)": f"{size / 1e9:,.1f}",
        "written per second, old checkpoints not counted (MB)": f"{saved / 1e6:.2f}",
    }
    return pd.DataFrame(rows.items(), columns=["what", f"{trials:,} trials"])


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("table", metavar="TABLE", help="what tests/bench_scale.py wrote")
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="how many (10000)")
    parser.add_argument(
        "--slots", type=int, default=256, metavar="N", help="trials at a time (256: 64 GPUs)"
    )
    parser.add_argument(
        "--minutes", type=float, default=4, metavar="X", help="that a trial trains (4)"
    )
    asked = parser.parse_args()
    if min(asked.trials, asked.slots, asked.minutes) <= 0:
        parser.error("--trials, --slots and --minutes: must be more than 0")
    try:
        found = plan(pd.read_csv(asked.table), asked.trials, asked.slots, asked.minutes)
    except (OSError, ValueError, KeyError) as error:
        print(f"analysis/scale.py: {asked.table}: {error}", file=sys.stderr)
        return 2
    print(found.to_string(index=False))
    return 0


if __name__ == "__main__":
    exit_with(main)
