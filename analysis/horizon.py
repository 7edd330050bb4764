"""Draws how far back networks remember, how soon they learn it, why they forget.

  python analysis/horizon.py ~/ray_results/horizon --out horizon
  python analysis/horizon.py ~/ray_results/horizon-ablate --out ablation

It draws what the trials can tell: gradients where they were trained with
--probe, what a part of the recipe does where there are variants. Trials that
are not finished are left out, and counted.
"""

from analysis.arguments import Parser, end_quietly, exit_with

if __name__ == "__main__":
    end_quietly()  # for as long as it runs: the imports alone take seconds

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from analysis.figures import COLORS, LOOKS, NAMES, heat_map, save
from analysis.outcomes import (
    KINDS,
    falls_table,
    gradients_table,
    kind_name,
    outcomes_table,
    reach_of_seeds,
)
from analysis.results import NoResults, Trial
from analysis.sweep import SETTING, read_finished, tell_drawn

MANY = (*COLORS, "#56B4E9", "#E69F00")  # the other two of Okabe & Ito's that are seen on white

# Hochreiter & Schmidhuber 1997, tasks 2b and 2c: the last symbol repeats the first, with random
# ones between. The lag, and how many sequences their LSTM saw before it had learned it, on average.
PUBLISHED = {100: 5_680, 1_000: 49_000}

# Shares of an axis: trials of one length that saw equally many sequences would hide each other.
SEEDS_APART, KINDS_APART = 0.024, 0.02


def draw_accuracy(table: pd.DataFrame, out: Path) -> list[Path]:
    """Draws, for each cell, accuracy over start (and variant) and length: the seeds' mean."""
    pictures = []
    for cell, part in table.groupby("cell"):
        rows = part["start"].where(
            part["variant"] == "plain", part["start"] + " " + part["variant"]
        )
        mean = part.assign(start=rows).groupby(["start", "length"])["val_accuracy"].mean()
        shown = mean.unstack()
        alt = "Mean accuracy at the end. " + " ".join(
            f"{start}: "
            + ", ".join(f"{value:.0%} at {n}" for n, value in row.dropna().items())
            + "."
            for start, row in shown.iterrows()
        )
        seeds = part.groupby([rows, "length"]).size()
        least, most = seeds.min(), seeds.max()
        count = "1 seed" if most == 1 else f"{most} seeds"
        if least < most:
            count = f"{least} to {count}"
        title = f"{NAMES[cell]}: accuracy at the end (mean of {count})"
        figure = heat_map(
            shown, title, "sequence length (digits read)", "start", "validation accuracy (%)"
        )
        pictures.append(save(figure, mean.reset_index(), out, f"accuracy_{cell}", alt))
    return pictures


def draw_reach(table: pd.DataFrame, trials: list[Trial], out: Path) -> Path:
    """Draws the effective length of each seed, by kind."""
    found = reach_of_seeds(table, trials)
    kinds = list(found.groupby(KINDS))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.4 * len(kinds)))
    told = []
    for place, (kind, part) in enumerate(kinds):
        aside = place + 0.12 * (part["seed"].rank() - (len(part) + 1) / 2)  # equal seeds, too
        axes.plot(part["reach"], aside, ls="", **LOOKS[kind[0]])
        told.append(f"{kind_name(*kind)}: {', '.join(map(str, sorted(part['reach'])))}.")
    axes.set_yticks(range(len(kinds)), [kind_name(*kind) for kind, _ in kinds])
    axes.invert_yaxis()
    axes.set(title="Effective length of each seed (0: none)", xlabel="digits read, all at 99 %")
    alt = "The longest length up to which every length ends at 99 %, of each seed. "
    return save(figure, found, out, "effective_length", alt + " ".join(told))


def draw_sequences(table: pd.DataFrame, out: Path) -> Path:
    """Draws how many sequences each trial saw until 99 %, over the length, by cell."""
    cells = list(table.groupby("cell"))
    span = max(2, table["length"].max() / table["length"].min())  # of one length, there is none
    figure, panels = plt.subplots(
        1,
        len(cells),
        figsize=(1 + 4.4 * len(cells), 4.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    told = []
    for axes, (cell, of_cell) in zip(panels.flat, cells, strict=True):
        marker = LOOKS[cell]["marker"]
        for number, (kind, part) in enumerate(of_cell.groupby(KINDS)):
            look = {"color": MANY[number % len(MANY)]}
            rank = part["seed"].rank(method="dense")
            place = part["length"] * span ** (SEEDS_APART * (rank - rank.mean()) / rank.max())
            learned, never = part[part["to_99"].notna()], part[part["to_99"].isna()]
            median = learned.groupby("length")["to_99"].median()
            axes.plot(place[learned.index], learned["to_99"], ls="", marker=marker, ms=4, **look)
            aside = place[never.index] * span ** (KINDS_APART * number)
            axes.plot(aside, never["sequences"], ls="", marker="^", ms=5, **look)
            name = kind_name(*kind).removeprefix(f"{NAMES[cell]}, ")
            axes.plot(median.index, median, lw=1.2, label=name, color=look["color"])
            told.append(
                f"{kind_name(*kind)}: "
                + ", ".join(f"{value:,.0f} at {length}" for length, value in median.items())
                + (f"; {len(never)} of {len(part)} trials never." if len(never) else ".")
            )
        axes.set(title=NAMES[cell], xscale="log", yscale="log")
        lengths = _apart(table["length"])
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        for lag, sequences in PUBLISHED.items():
            if cell == "lstm" and lag <= 2 * table["length"].max():
                axes.plot(lag, sequences, ls="", marker="*", ms=11, color="black")
                axes.annotate(
                    f"{sequences:,}: Hochreiter\n& Schmidhuber 1997",
                    (lag, sequences), (0, 8), textcoords="offset points", ha="center", size=8,
                )  # fmt: skip
    figure.supxlabel("sequence length (digits read)")
    panels[0, 0].set_ylabel("sequences until 99 %, line: median (▲: not by then)")
    alt = "Median sequences until 99 % of those that reached it. " + " ".join(told)
    columns = [*KINDS, "length", "seed", "to_99", "sequences"]
    return save(figure, table[columns], out, "sequences_to_99", alt)


def _apart(lengths: pd.Series) -> list[int]:
    """Returns the lengths, the longest first, whose labels do not touch on a logarithmic axis."""
    label = (lengths.max() / lengths.min()) ** 0.06  # that share of the axis is a label's width
    apart: list[int] = []
    for length in sorted(lengths.unique(), reverse=True):
        if not apart or length * label <= apart[-1]:
            apart.append(length)
    return apart


def draw_falls(table: pd.DataFrame, out: Path) -> Path:
    """Draws falls per 100 epochs and how the trials ended, by kind."""
    found = falls_table(table)
    names = [kind_name(*kind) for kind in found[KINDS].itertuples(index=False)]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 1.4 + 0.32 * len(found)), sharey=True, layout="constrained"
    )
    places = np.arange(len(found))
    left.barh(places, found["falls_per_100"], color=COLORS[1])
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set(
        title="Falls of over 5 points per 100 epochs",
        xlim=(0, 1.05 * max(1, found["falls_per_100"].max())),
    )
    edge = np.zeros(len(found))
    for kind, color in zip(
        ("solved", "fell", "partly", "plateau"), ("#009E73", "#D55E00", "#E6C229", "#999999"),
        strict=True,
    ):  # fmt: skip
        right.barh(places, found[kind], left=edge, color=color, label=kind)
        edge += found[kind]
    right.set(title="How the trials ended")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    told = " ".join(
        f"{name}: {row['falls']} falls in {row['epochs']} epochs, {row['solved']} solved, "
        f"{row['fell']} fell, {row['partly']} partly, {row['plateau']} at chance."
        for name, (_, row) in zip(names, found.iterrows(), strict=True)
    )
    return save(figure, found, out, "falls", "Falls of accuracy and how trials ended. " + told)


def draw_gradients(found: pd.DataFrame, out: Path) -> Path:
    """Draws, by kind, the gradient's norm over the steps back: the seeds' geometric mean."""
    kinds = list(found.groupby(KINDS))
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(max(7, 2.6 * columns + 1), 2.4 * rows + 0.6), sharex=True,
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    told = []
    for axes, (kind, part) in zip(panels.flat, kinds, strict=False):
        for when, color in (("first epoch", COLORS[0]), ("last epoch", COLORS[1])):
            for state, style in (("h", "-"), ("c", ":")):
                if state not in part or part[state].isna().all():
                    continue
                norms = part[part["when"] == when].groupby("back")[state]
                mean = norms.apply(lambda n: np.exp(np.log(n.clip(lower=1e-30)).mean()))
                axes.plot(mean.index, mean, style, color=color, label=f"{state}, {when}")
                told.append(
                    f"{kind_name(*kind)}, {state}, {when}: {mean.iloc[0]:.1e} at the end, "
                    f"{mean.iloc[-1]:.1e} at the start of the sequence."
                )
        axes.set_title(kind_name(*kind), size=9)
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    panels[0, 0].set(yscale="log", ylim=(max(1e-12, found["h"].min() / 2), None))
    figure.supxlabel("steps back from the end")
    figure.supylabel("gradient's norm")
    figure.legend(*_longest_legend(panels), loc="outside right upper")
    length = found["length"].iloc[0]
    title = f"Gradient of the loss by the hidden state, {length} digits"
    figure.suptitle(title, x=0.01, ha="left", size=10)  # the legend is at the right
    alt = "Norm of the gradient over the steps back. " + " ".join(told)
    return save(figure, found, out, "gradients", alt)


def _longest_legend(panels: np.ndarray) -> tuple[list, list]:
    return max((axes.get_legend_handles_labels() for axes in panels.flat), key=lambda h: len(h[0]))


def draw(done: list[Trial], trials: list[Trial], out: Path) -> list[Path]:
    """Draws all that those which are done tell, and writes their table; returns the pictures."""
    table = outcomes_table(done)
    table.to_csv(out / "trials.csv", index=False)
    pictures = draw_accuracy(table, out)
    pictures += [draw_reach(table, trials, out), draw_sequences(table, out), draw_falls(table, out)]
    gradients = gradients_table(done)
    if len(gradients):
        pictures.append(draw_gradients(gradients, out))
    return pictures


def findings(done: list[Trial], trials: list[Trial]) -> list[str]:
    """Returns a line for each kind: how far its seeds reach, how its trials ended, its falls."""
    table = outcomes_table(done)
    reach = (
        reach_of_seeds(table, trials)
        .groupby(KINDS)["reach"]
        .agg(lambda lengths: " to ".join(map(str, sorted({lengths.min(), lengths.max()}))))
    )
    return [
        f"{kind_name(*row[:3])}: effective length {reach.get(row[:3], 'not known yet')}; "
        f"{row.solved} solved, {row.fell} fell, {row.partly} partly, {row.plateau} at chance; "
        f"{row.falls} falls in {row.epochs} epochs"
        for row in falls_table(table).itertuples(index=False)
    ]


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a sweep: folder or URI")
    parser.add_argument("--out", type=Path, default=Path("horizon"), help="folder (horizon)")
    arguments = parser.parse_args()
    try:
        settings = [*SETTING, "variant"]
        done, trials = read_finished(arguments.results, arguments.out, settings)
    except (NoResults, OSError) as error:
        print(f"analysis/horizon.py: {error}", file=sys.stderr)
        return 2
    pictures = draw(done, trials, arguments.out)
    tell_drawn(findings(done, trials), pictures, len(done), len(trials))
    return 0


if __name__ == "__main__":
    exit_with(main)
