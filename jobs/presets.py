"""The presets of the sweep, with the recipe of each cell.

grids = apply_overrides(PRESETS["horizon"], {"seeds": (0,)})
"""

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from jobs.errors import UserError
from jobs.grid import (
    GRID_AXES,
    VARIANTS,
    GridConfig,
    trial_configs,
    trial_name,
    validate,
    variant_has_effect,
)

# What the report leaves open, as most people would choose it today.
ADAM = GridConfig(cells=("lstm", "rnn"), optimizer="adam", grad_clip=None)

# The recipe of each cell, as it was chosen in docs/recipes.md.
BASE_RECIPE = replace(
    ADAM,
    warmup_steps=100,
    lr_schedule="cosine",
    input_encoding="standardized",
    stop_after_solved_epochs=3,
    evals_per_epoch=10,
)
LSTM_RECIPE = replace(BASE_RECIPE, cells=("lstm",), inits=("chrono",), lr=0.005, grad_clip=1.0)
RNN_RECIPE = replace(BASE_RECIPE, cells=("rnn",), inits=("orthogonal",), lr=0.0003)
GRU_RECIPE = replace(BASE_RECIPE, cells=("gru",), inits=("chrono",), lr=0.01, grad_clip=1.0)

# The same with an eighth of the sequences. With so few, an RNN learns 100 digits at a learning
# rate of 0.001 but not at 0.0003; with all of them 0.001 is unstable.
SMALL_BUDGET_LSTM = replace(LSTM_RECIPE, num_sequences=25_000, epochs=10)
SMALL_BUDGET_RNN = replace(RNN_RECIPE, num_sequences=25_000, epochs=10, lr=0.001)
SMALL_BUDGET_GRU = replace(GRU_RECIPE, num_sequences=25_000, epochs=10)
HORIZON_LENGTHS = (10, 20, 35, 50, 75, 100, 150)

# Benchmark 1 of Vecoven, Ernst & Drion 2021: 30,000 steps, here 450 in each epoch. Their cells have
# the initialization of Keras.
COPY_FIRST = GridConfig(
    task="copy-first",
    cells=("lstm", "gru"),
    lengths=(5, 50, 100),
    seeds=(0,),
    inits=("keras", "uniform", "chrono"),
    epochs=67,
    num_sequences=50_000,
    batch_size=100,
    hidden_size=100,
    num_layers=2,
    optimizer="adam",
    grad_clip=None,
    stop_after_solved_epochs=3,
)


class Preset(NamedTuple):
    summary: str  # for the help
    grids: tuple[GridConfig, ...]  # flags override the settings of each
    any_cell: bool = False  # the first grid may train any registered cell


def with_long_lengths(grid: GridConfig) -> tuple[GridConfig, GridConfig]:
    """Returns the grids of the report's figures: Figure 3 is the LSTM at 25-35 for 5 epochs."""
    return grid, replace(grid, cells=("lstm",), lengths=tuple(range(25, 36)), epochs=5)


PRESETS = {
    "figures": Preset(
        "the report's Figures 1-3: lengths 3-24, LSTM also 25-35",
        with_long_lengths(GridConfig()),
        any_cell=True,
    ),
    "figures-adam": Preset(
        "the same for LSTM and RNN with Adam, gradients unclipped",
        with_long_lengths(ADAM),
        any_cell=True,
    ),
    "quick": Preset(
        "6 lengths from 3 to 20, 2 seeds, 10 epochs: minutes on 2 cores",
        (
            GridConfig(
                cells=("lstm", "rnn"),
                lengths=(3, 5, 8, 12, 16, 20),
                seeds=(0, 1),
                epochs=10,
                num_sequences=20_000,
            ),
        ),
        any_cell=True,
    ),
    "recipe": Preset(
        "a recipe for each cell that solves lengths 3-35",
        tuple(
            replace(grid, lengths=(3, *range(5, 36, 5)), seeds=tuple(range(5)))
            for grid in (LSTM_RECIPE, RNN_RECIPE, GRU_RECIPE)
        ),
    ),
    "horizon": Preset(
        "the recipes at lengths 10-150, all initializations but keras",
        (
            replace(
                SMALL_BUDGET_LSTM,
                lengths=HORIZON_LENGTHS,
                inits=("uniform", "orthogonal", "forget_bias", "chrono"),
            ),
            replace(
                SMALL_BUDGET_RNN,
                lengths=HORIZON_LENGTHS,
                inits=("uniform", "orthogonal", "identity"),
            ),
            replace(
                SMALL_BUDGET_GRU,
                lengths=HORIZON_LENGTHS,
                inits=("uniform", "orthogonal", "chrono"),
            ),
        ),
    ),
    "copy-first": Preset(
        "copy-first of LSTM, GRU: lengths 5, 50, 100; 3 inits, 1 seed",
        (COPY_FIRST,),
        any_cell=True,
    ),
}
ABLATION_PRESET = Preset(
    "horizon at 35 and 100 digits, all variants",
    tuple(
        replace(grid, lengths=(35, 100))
        for grid in (SMALL_BUDGET_LSTM, SMALL_BUDGET_RNN, SMALL_BUDGET_GRU)
    ),
)


def recipes(preset: Preset, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of a preset's grids without their axes: what identifies a run."""
    grids = [asdict(replace(grid, **overrides)) for grid in preset.grids]
    found = [{k: v for k, v in grid.items() if k not in GRID_AXES} for grid in grids]
    return [recipe for i, recipe in enumerate(found) if recipe not in found[:i]]


def expand_variants(grids: tuple[GridConfig, ...]) -> tuple[GridConfig, ...]:
    """Returns the grids with the full recipe and every variant that has an effect.

    Raises:
        UserError: the task has no variants.
    """
    expanded = tuple(
        replace(
            grid,
            variants=("full", *(name for name in VARIANTS if variant_has_effect(name, grid))),
        )
        for grid in grids
    )
    for grid in expanded:
        validate(grid)
    return expanded


def apply_overrides(preset: Preset, overrides: dict[str, Any]) -> tuple[GridConfig, ...]:
    """Returns a preset's grids with the settings that were typed; each trial is in one of them.

    Raises:
        UserError: the settings cannot be run, or the preset has no recipe for a cell.
    """
    grids: list[GridConfig] = []
    names: set[str] = set()
    requested = overrides.get("cells")
    known = {cell for grid in preset.grids for cell in grid.cells}
    if requested is not None and not preset.any_cell and set(requested) - known:
        unknown = ",".join(sorted(set(requested) - known))
        raise UserError(
            f"--cells {unknown}: this preset has recipes for {', '.join(sorted(known))}"
        )
    for index, grid in enumerate(preset.grids):
        takes_any = preset.any_cell and index == 0
        cells = tuple(cell for cell in requested or grid.cells if takes_any or cell in grid.cells)
        if not cells:
            continue
        grid = replace(grid, **{**overrides, "cells": cells})
        validate(grid)
        new = {trial_name(config) for config in trial_configs(grid)}
        if not new <= names:
            grids.append(grid)
        names |= new
    return tuple(grids)
