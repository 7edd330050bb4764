"""The style of every figure, and how it is saved together with its data."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.recurrent import CELLS, INIT_NAMES

# Okabe & Ito's colorblind-safe colors, without the yellow that is hard to see on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

# Markers tell cells apart in print. The first is large and hollow, so that the others show inside
# of it where they coincide.
MARKERS = (
    {"marker": "o", "ms": 7, "mfc": "white"},
    {"marker": "s", "ms": 4},
    {"marker": "D", "ms": 4},
    {"marker": "v", "ms": 5},
    {"marker": "P", "ms": 5},
)
LINESTYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

CELL_LABELS = {cell: cell.upper() for cell in CELLS}
CELL_STYLES: dict[str, dict[str, Any]] = {
    cell: {"color": color, **marker}
    for cell, color, marker in zip(CELLS, cycle(PALETTE), cycle(MARKERS), strict=False)
}
INIT_LINESTYLES = dict(zip(INIT_NAMES, cycle(LINESTYLES), strict=False))
HEATMAP_CMAP = "cividis"  # perceptually uniform, also in grayscale and for colorblind readers

plt.rcdefaults()  # without the user's matplotlibrc
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


def save(figure: Figure, data: pd.DataFrame, out: Path, name: str, alt: str) -> Path:
    """Writes NAME.png, and its data as NAME.csv; returns the path of the PNG.

    The alternative text is embedded in the PNG.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, bbox_inches="tight", metadata={"Description": alt})
    plt.close(figure)
    data.to_csv(out / f"{name}.csv", index=False)
    return path


def hide_unused(panels: np.ndarray, count: int) -> list[Axes]:
    """Hides all but the first `count` panels of a grid; returns the lowest one of each column.

    Those have tick labels, also where panels share an axis and the lowest row is incomplete.
    """
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    lowest = list(panels.flat[max(0, count - panels.shape[1]) : count])
    for axes in lowest:
        axes.tick_params(labelbottom=True)
    return lowest


def heat_map(
    table: pd.DataFrame, title: str, xlabel: str, ylabel: str, colorbar_label: str
) -> Figure:
    """Plots a table of fractions (0 to 1) in percent: columns along x, index along y."""
    rows, columns = table.shape
    figure, axes = plt.subplots(figsize=(min(9, 4.2 + 0.25 * columns), min(8, 3 + 0.17 * rows)))
    percent = 100 * table.to_numpy(float)
    image = axes.imshow(percent, aspect="auto", origin="lower", cmap=HEATMAP_CMAP, vmin=0, vmax=100)
    if rows * columns <= 150:  # few enough to print the numbers
        for row, column in ((r, c) for r in range(rows) for c in range(columns)):
            value = percent[row, column]
            if value == value:  # not NaN
                ink = "black" if value > 50 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, size=8)
    columns = list(table.columns)
    width = max(len(str(name)) for name in columns)
    axes.set_xticks(*_ticks(columns, max(1, min(20, 60 // (width + 1)))))  # they stand side by side
    axes.set_yticks(*_ticks(list(table.index), 20))
    axes.grid(False)
    axes.set_title(title, size=10)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(image, ax=axes, label=colorbar_label)
    return figure


def _ticks(values: list, limit: int) -> tuple[list[int], list]:
    """Returns positions and labels of at most `limit` ticks."""
    step = -(-len(values) // limit)
    return list(range(0, len(values), step)), values[::step]
