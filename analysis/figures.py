"""How every figure of the suite looks, and how it is saved with the numbers behind it."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers, with a marker for those who print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LOOKS = {
    "lstm": {"color": COLORS[0], "marker": "o", "ms": 7, "mfc": "white"},
    "rnn": {"color": COLORS[1], "marker": "s", "ms": 4},  # inside of the other, where both are
}
NAMES = {cell: cell.upper() for cell in LOOKS}
STARTS = {
    "uniform": "-",
    "orthogonal": "--",
    "chrono": ":",
    "forget": "-.",
    "identity": (0, (5, 1, 1, 1, 1, 1)),
}
HEAT = "cividis"  # even in grey and for colour-blind readers

plt.rcParams.update(
    {
        "figure.dpi": 120,
        "savefig.dpi": 160,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)


def save(figure: Figure, numbers: pd.DataFrame, out: Path, name: str, alt: str) -> Path:
    """Writes NAME.png, and its numbers as NAME.csv; returns the picture's path.

    What the picture shows, in words for those who do not see it, goes into the PNG as well.
    """
    out.mkdir(parents=True, exist_ok=True)
    picture = out / f"{name}.png"
    figure.savefig(picture, bbox_inches="tight", metadata={"Description": alt})
    plt.close(figure)
    numbers.to_csv(out / f"{name}.csv", index=False)
    return picture


def heat_map(table: pd.DataFrame, title: str, xlabel: str, ylabel: str, color: str) -> Figure:
    """Draws a table of shares (0 to 1) in percent: its columns along x, its index upwards."""
    rows, columns = table.shape
    figure, axes = plt.subplots(figsize=(min(9, 4.2 + 0.25 * columns), min(8, 3 + 0.17 * rows)))
    percent = 100 * table.to_numpy(float)
    image = axes.imshow(percent, aspect="auto", origin="lower", cmap=HEAT, vmin=0, vmax=100)
    if rows * columns <= 150:  # few enough to be read as numbers, too
        for row, column in ((r, c) for r in range(rows) for c in range(columns)):
            value = percent[row, column]
            if value == value:  # not where there is none
                ink = "black" if value > 50 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, size=8)
    axes.set_xticks(*_ticks(list(table.columns)))
    axes.set_yticks(*_ticks(list(table.index)))
    axes.grid(False)
    axes.set_title(title, size=10)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(image, ax=axes, label=color)
    return figure


def _ticks(values: list) -> tuple[list[int], list]:
    """Returns positions and labels of at most about twenty ticks."""
    step = -(-len(values) // 20)
    return list(range(0, len(values), step)), values[::step]
