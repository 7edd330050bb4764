"""jobs/grid.py and presets.py: presets, overrides, ablations and the checks of settings."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from jobs import sweep
from jobs.errors import UserError
from jobs.grid import (
    VARIANTS,
    GridConfig,
    complete,
    describe,
    growth_conflict,
    trial_configs,
    trial_name,
)
from jobs.presets import ABLATION_PRESET, PRESETS, Preset, apply_overrides, recipes
from models.recurrent import CELLS


@pytest.fixture
def parse_grids(monkeypatch) -> Callable[..., tuple[GridConfig, ...]]:
    """Returns the grids of a command line of jobs/sweep.py."""

    def parse(*flags: object) -> tuple[GridConfig, ...]:
        monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, flags)])
        return sweep.parse_args()[0]

    return parse


def test_default_preset_is_the_grid_of_the_report(parse_grids):
    configs = trial_configs(*parse_grids())
    expected = {(cell, n, 20) for cell in ("lstm", "rnn", "gru") for n in range(3, 25)}
    expected |= {("lstm", n, 5) for n in range(25, 36)}
    assert {(c["cell"], c["length"], c["epochs"]) for c in configs} == expected
    assert len(configs) == 3 * len(expected)
    common = {"num_sequences": 100_000, "batch_size": 128, "lr": 0.001, "hidden_size": 128}
    common |= {"optimizer": "rmsprop", "grad_clip": 10.0, "init": "uniform", "tf32": False}
    for config in configs:
        assert common.items() <= config.items()


def test_figures_with_adam_differ_in_optimizer_and_clipping_only(parse_grids):
    with_adam = {trial_name(c): c for c in trial_configs(*parse_grids("--preset", "figures-adam"))}
    default = {trial_name(c): c for c in trial_configs(*parse_grids()) if c["cell"] != "gru"}
    assert with_adam == {
        name: config | {"optimizer": "adam", "grad_clip": None} for name, config in default.items()
    }


@pytest.mark.parametrize("preset", [*PRESETS.values(), ABLATION_PRESET], ids=[*PRESETS, "ablation"])
def test_preset_is_valid_and_its_trials_have_distinct_names(preset):
    configs = trial_configs(*apply_overrides(preset, {}))
    assert len({trial_name(config) for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        # Each grid has the override, and keeps its own epochs.
        (
            "figures",
            {"seeds": (4,), "grad_clip": 1.0},
            tuple(replace(g, seeds=(4,), grad_clip=1.0) for g in PRESETS["figures"].grids),
        ),
        # A second grid without a new trial is dropped.
        ("figures", {"lengths": (3, 30)}, (GridConfig(lengths=(3, 30)),)),
        ("figures", {"cells": ("rnn",)}, (GridConfig(cells=("rnn",)),)),
        # Any registered cell.
        ("figures", {"cells": ("gru", "rnn")}, (GridConfig(cells=("gru", "rnn")),)),
        ("quick", {"cells": ("gru",)}, (replace(PRESETS["quick"].grids[0], cells=("gru",)),)),
        # Each cell keeps its own recipe.
        (
            "recipe",
            {"lengths": (35,)},
            tuple(replace(g, lengths=(35,)) for g in PRESETS["recipe"].grids),
        ),
        ("recipe", {"cells": ("lstm",)}, PRESETS["recipe"].grids[:1]),
    ],
)
def test_overrides_apply_to_every_grid_and_no_trial_is_in_two(preset, overrides, expected):
    assert apply_overrides(PRESETS[preset], overrides) == expected


@pytest.mark.parametrize(
    "preset",
    [PRESETS["recipe"], PRESETS["horizon"], ABLATION_PRESET],
    ids=["recipe", "horizon", "ablation"],
)
@pytest.mark.parametrize("cells", [("mine",), ("mine", "lstm")])
def test_cell_without_a_recipe_is_refused(preset, cells):
    with pytest.raises(UserError, match="--cells mine: this preset has recipes for gru, lstm, rnn"):
        apply_overrides(preset, {"cells": cells})


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("recipe", [("lstm", 0.005, 1.0), ("rnn", 0.0003, None), ("gru", 0.01, 1.0)]),
        ("horizon", [("lstm", 0.005, 1.0), ("rnn", 0.001, None), ("gru", 0.01, 1.0)]),
    ],
)
def test_recipes_of_the_cells(preset, expected):
    grids = PRESETS[preset].grids
    assert [(grid.cells[0], grid.lr, grid.grad_clip) for grid in grids] == expected


def test_trials_are_ordered_by_seed_then_by_descending_length():
    configs = trial_configs(*PRESETS["horizon"].grids)
    order = [(config["seed"], -config["length"]) for config in configs]
    assert order == sorted(order)
    assert {config["cell"] for config in configs[:7]} == {"lstm", "rnn"}


def test_ablation_changes_one_setting_of_the_recipe_per_variant(parse_grids):
    configs = trial_configs(*parse_grids("--preset", "horizon", "--ablate"))
    assert len({trial_name(config) for config in configs}) == len(configs)
    assert {(c["cell"], c["length"]) for c in configs} == {
        (cell, length) for cell in CELLS for length in (35, 100)
    }
    for cell, no_effect in (("lstm", "clip"), ("rnn", "no-clip")):  # equal to the recipe
        variants = {c["variant"] for c in configs if c["cell"] == cell}
        assert variants == VARIANTS.keys() - {no_effect}
    full = {(c["cell"], c["length"], c["seed"]): c for c in configs if c["variant"] == "full"}
    for config in configs:
        recipe = full[(config["cell"], config["length"], config["seed"])]
        changed = {name for name in config if config[name] != recipe[name]} - {"variant"}
        assert changed == set(VARIANTS[config["variant"]])
        assert len(changed) == (config["variant"] != "full")


@pytest.mark.parametrize(
    ("flags", "variants"),
    [
        (
            ("--grad-clip", 10, "--warmup-steps", 0),
            VARIANTS.keys() - {"no-warmup"},  # without effect; clipping at 1 is a change now
        ),
        (("--variants", "full,one-hot"), {"full", "one-hot"}),
    ],
)
def test_ablation_variants_follow_the_flags(parse_grids, flags, variants):
    grids = parse_grids("--preset", "horizon", "--ablate", *flags)
    assert [set(grid.variants) for grid in grids] == [variants] * 3


COPY_FIRST = {"task": "copy-first"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lengths": (0, 5)}, "--lengths 0: must be at least 2"),
        ({"cells": ("mlp",)}, "unknown cell 'mlp'"),
        ({"inits": ("chrono",)}, "unknown init 'chrono' of the rnn"),
        ({"cells": ("lstm",), "inits": ("zero",)}, "unknown init 'zero' of the lstm"),
        ({"variants": ("no-luck",)}, "--variants no-luck: choose from full, clip"),
        (
            {"variants": ("no-clip",), "grad_clip": None},
            "--variants no-clip: changes nothing for lstm,rnn,gru, which have grad_clip none: ",
        ),
        ({"epochs": 0}, "--epochs 0: must be positive"),
        ({"lr": -1.0}, "--lr -1.0: must be positive"),
        ({"lr": float("nan")}, "--lr nan: must be positive"),
        ({"lr": float("inf")}, "--lr inf: must be positive and finite"),
        ({"grad_clip": 0.0}, "--grad-clip 0.0: must be positive"),
        ({"stop_after_solved_epochs": 0}, "--stop-after-solved-epochs 0: must be positive"),
        ({"evals_per_epoch": 0}, "--evals-per-epoch 0: must be positive"),
        ({"num_sequences": 1000, "evals_per_epoch": 7}, "an epoch has 6 steps"),
        ({"warmup_steps": -1}, "--warmup-steps -1: must be 0 or more"),
        ({"num_sequences": 1000, "epochs": 2, "warmup_steps": 13}, "training has 12 steps"),
        ({"num_sequences": 40}, "--num-sequences 40: must be at least 50"),
        ({"num_sequences": 159}, "smaller than --batch-size 128"),
        ({"num_layers": 0}, "--num-layers 0: must be positive and finite"),
        (
            COPY_FIRST | {"input_encoding": "one-hot"},
            "--task copy-first: --input-encoding one-hot is for digits, choose raw",
        ),
        (
            COPY_FIRST | {"variants": ("raw-input", "one-hot")},
            "--variants raw-input: only for --task palindrome",
        ),
        (
            COPY_FIRST | {"variants": ("full", "clip")},
            "--variants clip: only for --task palindrome",
        ),
        (COPY_FIRST | {"lengths": (0, 5)}, "--lengths 0: must be at least 1"),
        (COPY_FIRST | {"num_sequences": 9}, "--num-sequences 9: must be at least 10"),
        (
            COPY_FIRST | {"num_sequences": 100, "batch_size": 91},
            "--num-sequences 100: the training split (90) is smaller than --batch-size 91",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_refused(overrides, message):
    with pytest.raises(UserError) as error:
        apply_overrides(Preset("", (GridConfig(),), any_cell=True), overrides)
    assert message in str(error.value)


def test_ablation_of_a_task_without_variants_is_refused(parse_grids):
    flags = ["--preset", "horizon", "--ablate", "--task", "copy-first", "--input-encoding", "raw"]
    with pytest.raises(UserError, match="only for --task palindrome"):
        parse_grids(*flags)


def test_description_lists_the_axes_of_a_grid():
    grid = GridConfig(
        ("lstm", "rnn"), lengths=(3, 4, 5, 9), seeds=(0,), variants=("full", "one-hot")
    )
    assert describe(grid) == (
        "lstm,rnn x lengths 3-5,9 x seeds 0 x inits uniform x variants full,one-hot"
        " x 20 epochs of 100000 sequences"
    )
    assert describe(replace(grid, task="copy-first")).startswith("copy-first: lstm,rnn x lengths")


# Growth


def settings(preset: Preset, overrides: dict[str, object]) -> dict[str, object]:
    grids = apply_overrides(preset, overrides)
    trials = {trial_name(config): config for config in trial_configs(*grids)}
    return {"recipes": recipes(preset, overrides), "trials": trials}


SMALL = {"lengths": (3, 5), "seeds": (0, 1), "epochs": 5}


@pytest.mark.parametrize(
    ("preset", "before", "after"),
    [
        ("quick", SMALL, SMALL),
        ("quick", SMALL, SMALL | {"seeds": (1, 2)}),
        ("quick", SMALL, SMALL | {"lengths": (5, 9)}),
        ("quick", SMALL, SMALL | {"cells": ("gru",)}),
        ("quick", SMALL, SMALL | {"inits": ("uniform", "orthogonal")}),
        ("quick", SMALL, SMALL | {"variants": ("full", "clip", "one-hot")}),
        ("quick", SMALL | {"variants": ("clip",)}, SMALL),
        ("quick", SMALL, SMALL | {"epochs": 9}),  # constant: the first epochs are the same
        ("figures", {"cells": ("rnn",)}, {}),
        ("figures", {"lengths": (3, 4)}, {}),
        ("horizon", {"cells": ("lstm",)}, {}),
        ("recipe", {"seeds": (0,)}, {}),
        ("figures", {}, {"epochs": 30}),  # of both its grids
        ("quick", {}, {"lengths": (30,), "epochs": 40}),
        ("quick", {}, {"lengths": (30,), "epochs": 4}),
    ],
)
def test_run_grows_by_other_values_of_its_axes(preset, before, after):
    both = (settings(PRESETS[preset], overrides) for overrides in (before, after))
    assert growth_conflict(*both) == ""


def test_command_can_be_run_again_after_another_one_added_trials_with_more_epochs():
    command = settings(PRESETS["quick"], {})
    other = settings(PRESETS["quick"], {"lengths": (30,), "epochs": 40})
    grown = {**other, "trials": command["trials"] | other["trials"]}
    assert growth_conflict(grown, command) == ""


def test_run_of_an_older_version_grows():
    before, after = (settings(PRESETS["quick"], each) for each in (SMALL, SMALL | {"seeds": (7,)}))
    for config in (*before["recipes"], *before["trials"].values()):
        for name in ("tf32", "task", "num_layers"):
            del config[name]
    assert growth_conflict(complete(before), after) == ""
    assert complete(before) == settings(PRESETS["quick"], SMALL)


def test_run_grows_by_a_recipe_that_a_preset_has_since():
    preset = PRESETS["recipe"]
    before = settings(preset._replace(grids=preset.grids[:1]), {})
    assert growth_conflict(before, settings(preset, {})) == ""


COSINE = SMALL | {"lr_schedule": "cosine"}


@pytest.mark.parametrize(
    ("preset", "before", "after", "message"),
    [
        ("quick", SMALL, SMALL | {"seeds": (7,), "lr": 0.01}, "lr: 0.001 there, 0.01 here"),
        ("quick", SMALL, SMALL | {"epochs": 4}, "epochs: 5 there, 4 here"),
        ("quick", COSINE, COSINE | {"epochs": 9}, "epochs: 5 there, 9 here"),
        ("quick", COSINE, COSINE | {"seeds": (7,), "epochs": 9}, "epochs: 5 there, 9 here"),
        (
            "quick",
            SMALL,
            SMALL | {"seeds": (7,), "epochs": 9},
            "epochs: 5 there, 9 here, in other seeds of the same trial",
        ),
        (
            "quick",
            SMALL,
            SMALL | {"seeds": (0,), "epochs": 9},
            "epochs: 5 there, 9 here, in other seeds of the same trial",
        ),
        (
            "quick",
            SMALL | {"variants": ("full", "clip")},
            SMALL | {"lengths": (9,), "grad_clip": 5.0},
            "grad_clip: 10.0 there, 5.0 here",
        ),
        ("horizon", {}, {"lengths": (9,), "warmup_steps": 7}, "warmup_steps: 100 there, 7 here"),
        ("figures", {"cells": ("lstm",)}, SMALL, "epochs: 20 there, 5 here"),
        ("quick", {}, {"lr_schedule": "cosine"}, "lr_schedule: constant there, cosine here"),
        (
            "recipe",
            {},
            {"lr": 0.01, "grad_clip": 1.0},
            "lr: 0.005,0.0003,0.01 there, 0.01 here, grad_clip: 1.0,none there, 1.0 here",
        ),
    ],
)
def test_other_settings_are_a_conflict(preset, before, after, message):
    both = (settings(PRESETS[preset], overrides) for overrides in (before, after))
    assert growth_conflict(*both) == message


def test_lengths_of_one_grid_trained_by_another_need_all_epochs():
    """By default the LSTM has 20 epochs up to 24 digits, and 5 beyond."""
    default = settings(PRESETS["figures"], {})
    longer = settings(PRESETS["figures"], {"cells": ("lstm",), "lengths": (25,)})
    assert growth_conflict(default, longer) == ""  # from 5 to 20 epochs
    assert growth_conflict(longer, default) == "epochs: 20 there, 5 here"
