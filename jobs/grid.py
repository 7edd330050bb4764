"""What a sweep is: a grid of trials, each with its settings and a name; and the presets.

grids = apply_overrides(PRESETS["horizon"], {"seeds": (0,)})
configs = {trial_name(config): config for config in trial_configs(*grids)}
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from jobs.cli import arg
from jobs.errors import UserError
from jobs.formatting import format_difference, format_value, pluralize
from models import palindromes, recurrent

Trials = dict[str, dict[str, Any]]  # the settings of each trial, by its name

AXES = ("cell", "length", "seed", "init", "variant")  # of a trial
GRID_AXES = ("cells", "lengths", "seeds", "inits", "variants")  # of a grid

# What a variant changes in the settings of its grid.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "clip": {"grad_clip": 1.0},
    "no-clip": {"grad_clip": None},
    "no-warmup": {"warmup_steps": 0},
    "constant-lr": {"lr_schedule": "constant"},
    "raw-input": {"input_encoding": "raw"},
    "one-hot": {"input_encoding": "one-hot"},
}


@dataclass(frozen=True)
class GridConfig:
    """A grid of trials. A run can grow by other values of its axes, the first five.

    Optimizer, learning rate and clipping are those of the handout of the report's course.
    """

    cells: tuple[str, ...] = arg(("lstm", "rnn", "gru"), f"networks: {', '.join(recurrent.CELLS)}")
    lengths: tuple[int, ...] = arg(range(3, 25), "sequence lengths, in digits read")
    seeds: tuple[int, ...] = arg(range(3), "seeds of data, initialization and order")
    inits: tuple[str, ...] = arg(("uniform",), ", ".join(recurrent.INIT_NAMES))
    variants: tuple[str, ...] = arg(("full",), f"variants: {', '.join(VARIANTS)}")
    epochs: int = arg(20, "maximum number of epochs")
    num_sequences: int = arg(100_000, "palindromes, a fifth of them for validation")
    batch_size: int = arg(128, "batch size")
    lr: float = arg(0.001, "learning rate")
    hidden_size: int = arg(128, "size of the hidden state")
    optimizer: Literal["adam", "rmsprop"] = arg("rmsprop", "optimizer")
    grad_clip: float | None = arg(10.0, "maximum gradient norm, or none")
    warmup_steps: int = arg(0, "linear warmup steps")
    lr_schedule: Literal["constant", "cosine"] = arg("constant", "learning rate schedule")
    input_encoding: recurrent.InputEncoding = arg("raw", "encoding of a digit")
    stop_after_solved_epochs: int | None = arg(None, "early stopping: consecutive epochs at 99.9 %")
    evals_per_epoch: int = arg(1, "evaluations per epoch, evenly spaced")
    probe: bool = arg(False, "gradient norm at each time step, each epoch")
    tf32: bool = arg(False, "TF32 instead of IEEE float32, on GPUs")


# What the report leaves open, as most people would choose it today.
ADAM = GridConfig(cells=("lstm", "rnn"), optimizer="adam", grad_clip=None)

# The recipe of each cell, which trains stably at long lengths (docs/horizon.md).
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

# The same with an eighth of the sequences. With so few, an RNN learns 100 digits at a learning
# rate of 0.001 but not at 0.0003; with all of them 0.001 is unstable.
SMALL_BUDGET_LSTM = replace(LSTM_RECIPE, num_sequences=25_000, epochs=10)
SMALL_BUDGET_RNN = replace(RNN_RECIPE, num_sequences=25_000, epochs=10, lr=0.001)
HORIZON_LENGTHS = (10, 20, 35, 50, 75, 100, 150)


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
            for grid in (LSTM_RECIPE, RNN_RECIPE)
        ),
    ),
    "horizon": Preset(
        "the recipes at lengths 10-150, from every initialization",
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
        ),
    ),
}
ABLATION_PRESET = Preset(
    "preset horizon at 35 and 100 digits, all variants",
    tuple(replace(grid, lengths=(35, 100)) for grid in (SMALL_BUDGET_LSTM, SMALL_BUDGET_RNN)),
)


def trial_configs(*grids: GridConfig) -> list[dict[str, Any]]:
    """Returns the settings of each trial, by seed: an interrupted run has its first seeds."""
    configs = []
    for grid in grids:
        recipe = asdict(grid)
        for axis in GRID_AXES:
            del recipe[axis]
        configs += [
            {"cell": cell, "length": length, "seed": seed, "init": init, "variant": variant}
            | recipe
            | VARIANTS[variant]
            for seed in grid.seeds
            for length in grid.lengths
            for cell in grid.cells
            for init in grid.inits
            for variant in grid.variants
        ]
    # Within a seed the longest first, so that no long trial runs alone at the end.
    return sorted(configs, key=lambda config: (config["seed"], -config["length"]))


def recipes(preset: Preset, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of a preset's grids without their axes: what identifies a run."""
    grids = [asdict(replace(grid, **overrides)) for grid in preset.grids]
    found = [{k: v for k, v in grid.items() if k not in GRID_AXES} for grid in grids]
    return [recipe for i, recipe in enumerate(found) if recipe not in found[:i]]


def complete(existing: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run with those that an older version of this suite lacked."""
    lacking = {"tf32": False}
    return {
        "recipes": [lacking | recipe for recipe in existing["recipes"]],
        "trials": {name: lacking | config for name, config in existing["trials"].items()},
    }


def growth_conflict(existing: dict[str, Any], requested: dict[str, Any]) -> str:
    """Describes why a run cannot grow by the requested trials; empty if it can.

    The recipes must be the same, and so must trials of the same name. Under a constant learning
    rate the number of epochs may grow. Trials that differ only in their seed must stay comparable.

    Args:
        existing: {"recipes": see recipes(), "trials": settings by name} of the run.
        requested: the same, of a command.
    """
    before, after = existing["recipes"], requested["recipes"]
    if len(before) != len(after):
        return f"{pluralize(len(before), 'recipe')} there, {len(after)} here"
    trials = existing["trials"]
    pairs = [*zip(before, after, strict=True)]
    pairs += [(trials[name], new) for name, new in requested["trials"].items() if name in trials]
    for old, new in pairs:
        if new["lr_schedule"] == "constant" and old["epochs"] < new["epochs"]:
            old = old | {"epochs": new["epochs"]}
        difference = format_difference(old, new)
        if difference:
            return difference
    groups: dict[tuple, dict[str, Any]] = {}
    for config in (trials | requested["trials"]).values():
        group = tuple(config[axis] for axis in AXES if axis != "seed")
        other = groups.setdefault(group, config)
        difference = format_difference({**other, "seed": config["seed"]}, config)
        if difference:
            return f"{difference}, in other seeds of the same trial"
    return ""


def variant_has_effect(variant: str, grid: GridConfig) -> bool:
    """Returns whether a variant changes any setting of the grid."""
    return any(getattr(grid, name) != value for name, value in VARIANTS[variant].items())


def expand_variants(grids: tuple[GridConfig, ...]) -> tuple[GridConfig, ...]:
    """Returns the grids with the full recipe and every variant that has an effect."""
    return tuple(
        replace(
            grid,
            variants=("full", *(name for name in VARIANTS if variant_has_effect(name, grid))),
        )
        for grid in grids
    )


def trial_name(config: dict[str, Any]) -> str:
    """Returns the name of a trial and its folder, which identifies its checkpoints on resume."""
    variant = "" if config["variant"] == "full" else f"-{config['variant']}"
    return (
        f"{config['cell']}-{config['init']}{variant}"
        f"-length{config['length']:03}-seed{config['seed']}"
    )


def validate(grid: GridConfig) -> None:
    """Raises UserError for settings that cannot be run."""
    for cell in grid.cells:
        for init in grid.inits:
            try:
                recurrent.check_init(cell, init)
            except ValueError as error:
                raise UserError(str(error)) from None
    if min(grid.lengths) < 2:
        raise UserError(f"--lengths {min(grid.lengths)}: must be at least 2")
    for variant in grid.variants:
        if variant not in VARIANTS:
            raise UserError(f"--variants {variant}: choose from {', '.join(VARIANTS)}")
        if variant != "full" and not variant_has_effect(variant, grid):
            raise UserError(f"--variants {variant}: has no effect on these settings")
    for name in (
        "epochs", "batch_size", "lr", "hidden_size", "grad_clip", "stop_after_solved_epochs",
        "evals_per_epoch",
    ):  # fmt: skip
        value = getattr(grid, name)
        if value is not None and not 0 < value < math.inf:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value}: must be positive and finite")
    if grid.warmup_steps < 0:
        raise UserError(f"--warmup-steps {grid.warmup_steps}: must be 0 or more")
    if grid.num_sequences < palindromes.MIN_SAMPLES:
        raise UserError(
            f"--num-sequences {grid.num_sequences}: must be at least {palindromes.MIN_SAMPLES}"
        )
    steps = palindromes.num_train(grid.num_sequences) // grid.batch_size
    if not steps:
        raise UserError(
            f"--num-sequences {grid.num_sequences}: the training split (80 %) is smaller than "
            f"--batch-size {grid.batch_size}"
        )
    if grid.evals_per_epoch > steps:
        raise UserError(
            f"--evals-per-epoch {grid.evals_per_epoch}: an epoch has {pluralize(steps, 'step')}"
        )
    if grid.warmup_steps > steps * grid.epochs:
        raise UserError(
            f"--warmup-steps {grid.warmup_steps}: training has {steps * grid.epochs} steps"
        )


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


def describe(grid: GridConfig) -> str:
    axes = [
        ",".join(grid.cells),
        f"lengths {format_value(grid.lengths)}",
        f"seeds {format_value(grid.seeds)}",
        f"inits {format_value(grid.inits)}",
        f"{grid.epochs} epochs of {grid.num_sequences} sequences",
    ]
    if grid.variants != GridConfig().variants:
        axes.insert(4, f"variants {format_value(grid.variants)}")
    return " x ".join(axes)
