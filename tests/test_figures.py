import math
import os
import re
import subprocess
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image
from processes import REPO

from analysis import figures
from models.recurrent import CELLS, INIT_NAMES


def test_cells_and_initializations_are_distinguishable():
    styles = figures.CELL_STYLES
    assert [*styles] == [*figures.CELL_LABELS] == [*CELLS]
    for key, choices in (("color", figures.PALETTE), ("marker", figures.MARKERS)):
        values = {style[key] for style in styles.values()}
        assert len(values) == min(len(CELLS), len(choices))
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(CELLS)
    assert len(set(figures.CELL_LABELS.values())) == len(CELLS)
    assert [*figures.INIT_LINESTYLES] == [*INIT_NAMES]
    assert len(set(figures.INIT_LINESTYLES.values())) == len(INIT_NAMES)


def test_save_writes_png_with_alt_text_and_csv_and_closes_figure(tmp_path):
    before = plt.get_fignums()
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    table = pd.DataFrame({"length": [3, 5], "mean": [0.1, 1 / 3]})
    path = figures.save(figure, table, tmp_path / "new" / "folder", "name", "two points")
    assert path == tmp_path / "new" / "folder" / "name.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.text["Description"] == "two points"
        dark = sum(image.convert("L").histogram()[:230]) / (image.width * image.height)
        assert 0.01 < dark < 0.5  # neither empty nor filled
    assert path.with_suffix(".csv").read_text() == "length,mean\n3,0.1\n5,0.3333333333333333\n"
    assert plt.get_fignums() == before


def test_heat_map_shows_percent_with_the_index_upwards():
    table = pd.DataFrame(
        [[0.0, 0.25, 1.0], [0.5, math.nan, 0.999]], index=[3, 5], columns=[1, 2, 9]
    )
    figure = figures.heat_map(table, "title", "epoch", "length", "accuracy (%)")
    axes, bar = figure.axes
    (image,) = axes.images
    pixels = image.get_array()
    assert pixels[0].tolist() == [0, 25, 100]
    assert pixels.mask.tolist() == [[False] * 3, [False, True, False]]
    assert image.get_clim() == (0, 100)
    assert image.origin == "lower"
    texts = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert texts == {(0, 0): "0", (1, 0): "25", (2, 0): "100", (0, 1): "50", (2, 1): "100"}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "9"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["3", "5"]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "epoch", "length")
    assert bar.get_ylabel() == "accuracy (%)"
    plt.close(figure)


def test_large_heat_map_has_few_ticks_and_no_numbers():
    table = pd.DataFrame(0.5, index=range(3, 36), columns=range(1, 101))
    figure = figures.heat_map(table, "title", "epoch", "length", "accuracy (%)")
    axes = figure.axes[0]
    assert len(axes.texts) == 0
    for ticks, labels, first in (
        (axes.get_xticks(), axes.get_xticklabels(), 1),
        (axes.get_yticks(), axes.get_yticklabels(), 3),
    ):
        assert 10 <= len(ticks) <= 20
        assert [int(label.get_text()) for label in labels] == [first + t for t in ticks]
    plt.close(figure)


def test_every_row_of_a_heat_map_has_its_label():
    rows = [f"orthogonal constant-{number}" for number in range(6)]
    table = pd.DataFrame(0.5, index=rows, columns=["x" * 70])
    axes = figures.heat_map(table, "title", "epoch", "length", "accuracy (%)").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    plt.close(axes.figure)


@pytest.mark.parametrize("columns", [21, 100, 1000, 20_000])
def test_labels_of_a_heat_map_do_not_overlap(columns):
    table = pd.DataFrame(0.5, index=[3], columns=range(1, columns + 1))
    figure = figures.heat_map(table, "title", "epoch", "length", "accuracy (%)")
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) >= 10
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    plt.close(figure)


DRAW = """
import sys
from itertools import pairwise
import pandas as pd
from pathlib import Path
from analysis import cli
cli.start_script()
from analysis import figures
figure = figures.heat_map(pd.DataFrame([[0.0, 0.5]], index=[3]), "a", "b", "c", "d")
figures.save(figure, pd.DataFrame(), Path(sys.argv[1]), "name", "text")
"""
SETTINGS = b"font.size: 40\naxes.facecolor: red\ntext.usetex: True\nbackend: pdf\n"
NOT_INSTALLED = "module://not_installed"  # as notebooks export one, for all processes


def test_matplotlib_settings_of_the_user_change_no_pixel(tmp_path):
    images = []
    for name, settings in {"plain": None, "hostile": SETTINGS, "unreadable": b"\xff\xfe"}.items():
        variables = {}
        if settings:
            (tmp_path / "matplotlibrc").write_bytes(settings)
            variables = {"MPLBACKEND": NOT_INSTALLED, "MPLCONFIGDIR": str(tmp_path)}
        environment = {**os.environ, **variables, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", DRAW, str(tmp_path / name)]
        subprocess.run(command, env=environment, check=True)
        images.append((tmp_path / name / "name.png").read_bytes())
    assert images[0] == images[1] == images[2]


SCRIPTS = [p for p in sorted((REPO / "analysis").glob("*.py")) if "__main__" in p.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_set_their_backend_before_they_import_matplotlib(path):
    lines = path.read_text().splitlines()
    imports = [i for i, line in enumerate(lines) if re.match("(import|from) ", line)]
    (start,) = [i for i, line in enumerate(lines) if "cli.start_script()" in line]
    assert [lines[i] for i in imports if i < start] == ["from analysis import cli"]


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_lowest_panel_of_each_column_has_tick_labels(count):
    figure, panels = plt.subplots(2, 3, sharex=True)
    lowest = figures.hide_unused(panels, count)
    shown = [axes for axes in panels.flat if axes.get_visible()]
    labeled = [axes for axes in shown if axes.xaxis.get_tick_params()["labelbottom"]]
    plt.close(figure)
    assert shown == [*panels.flat][:count]
    assert lowest == labeled == shown[-3:]
