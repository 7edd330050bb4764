"""What a sweep is: grids of trials, each with its settings and a name.

configs = {trial_name(config): config for config in trial_configs(GridConfig(cells=("lstm",)))}
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobs.cli import arg, check_positive
from jobs.errors import UserError
from jobs.formatting import format_difference, format_value, pluralize
from models import recurrent
from models.tasks import LATER_SETTINGS, TASKS, CopyFirst, Palindrome, TaskName

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
    """A grid of trials. A run can grow by other values of its axes, GRID_AXES.

    Optimizer, learning rate and clipping are those of the handout of the report's course.
    """

    cells: tuple[str, ...] = arg(("lstm", "rnn", "gru"), f"networks: {', '.join(recurrent.CELLS)}")
    lengths: tuple[int, ...] = arg(range(3, 25), "sequence lengths, in inputs read")
    seeds: tuple[int, ...] = arg(range(3), "seeds of data, initialization and order")
    inits: tuple[str, ...] = arg(("uniform",), ", ".join(recurrent.INIT_NAMES))
    variants: tuple[str, ...] = arg(("full",), f"variants: {', '.join(VARIANTS)}")
    task: TaskName = arg("palindrome", " or ".join(TASKS), "NAME")
    epochs: int = arg(20, "maximum number of epochs")
    num_sequences: int = arg(100_000, "training and validation sequences")
    batch_size: int = arg(128, "batch size")
    lr: float = arg(0.001, "learning rate")
    hidden_size: int = arg(128, "size of the hidden state")
    num_layers: int = arg(1, "layers of the network")
    optimizer: Literal["adam", "rmsprop"] = arg("rmsprop", "optimizer")
    grad_clip: float | None = arg(10.0, "maximum gradient norm, or none")
    warmup_steps: int = arg(0, "linear warmup steps")
    lr_schedule: Literal["constant", "cosine"] = arg("constant", "constant or cosine", "NAME")
    input_encoding: recurrent.InputEncoding = arg(
        "raw", f"of a digit: {', '.join(recurrent.INPUT_ENCODINGS)}", "NAME"
    )
    stop_after_solved_epochs: int | None = arg(
        None,
        f"solved epochs (accuracy {Palindrome.solved_accuracy:.1%}, MSE "
        f"{CopyFirst.solved_mse}) that end training",
    )
    evals_per_epoch: int = arg(1, "evaluations per epoch, evenly spaced")
    probe: bool = arg(False, "gradient norm at each time step, each epoch")
    tf32: bool = arg(False, "TF32 instead of IEEE float32, on GPUs")


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


def complete(existing: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run with those that an older version of this suite lacked."""
    return {
        "recipes": [LATER_SETTINGS | recipe for recipe in existing["recipes"]],
        "trials": {name: LATER_SETTINGS | config for name, config in existing["trials"].items()},
    }


def growth_conflict(existing: dict[str, Any], requested: dict[str, Any]) -> str:
    """Describes why a run cannot grow by the requested trials; empty if it can.

    The recipes must be the same (a later version of a preset may have more), and so must trials of
    the same name. Under a constant learning rate the epochs of a trial may grow, and other trials
    may have any number of them. Trials that differ only in their seed must stay comparable.

    Args:
        existing: {"recipes": see recipes(), "trials": settings by name} of the run.
        requested: the same, of a command.
    """
    before, after = (_without_growth(settings["recipes"]) for settings in (existing, requested))
    if len(before) > len(after):
        return format_difference(_values(before), _values(after))
    trials = existing["trials"]
    pairs = [*zip(before, after, strict=False)]
    for name, new in requested["trials"].items():
        if name not in trials:
            continue
        old = trials[name]
        if new["lr_schedule"] == "constant" and old["epochs"] < new["epochs"]:
            old = old | {"epochs": new["epochs"]}
        pairs.append((old, new))
    for old, new in pairs:
        if old["lr_schedule"] != new["lr_schedule"]:  # the epochs of one are left out
            old, new = old | {"epochs": None}, new | {"epochs": None}
        difference = format_difference(old, new)
        if difference:
            return difference
    groups = {_group(new): new for new in requested["trials"].values()}
    for name, old in trials.items():
        other = groups.get(_group(old))
        if other is None or name in requested["trials"]:
            continue
        difference = format_difference({**old, "seed": other["seed"]}, other)
        if difference:
            return f"{difference}, in other seeds of the same trial"
    return ""


def _without_growth(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the recipes without epochs that may grow; those that are then equal, once."""
    fixed = [
        {**recipe, "epochs": None} if recipe["lr_schedule"] == "constant" else recipe
        for recipe in recipes
    ]
    return [recipe for i, recipe in enumerate(fixed) if recipe not in fixed[:i]]


def _values(recipes: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the values of each setting in several recipes."""
    return {
        name: ",".join(dict.fromkeys(format_value(recipe[name]) for recipe in recipes))
        for name in recipes[0]
    }


def _group(config: dict[str, Any]) -> tuple:
    """Returns what trials that differ only in their seed have in common."""
    return tuple(config[axis] for axis in AXES if axis != "seed")


def variant_has_effect(variant: str, grid: GridConfig) -> bool:
    """Returns whether a variant changes any setting of the grid."""
    return any(getattr(grid, name) != value for name, value in VARIANTS[variant].items())


def trial_name(config: dict[str, Any]) -> str:
    """Returns the name of a trial and its folder, which identifies its checkpoints on resume."""
    variant = "" if config["variant"] == "full" else f"-{config['variant']}"
    return (
        f"{config['cell']}-{config['init']}{variant}"
        f"-length{config['length']:03}-seed{config['seed']}"
    )


def validate(grid: GridConfig) -> None:
    """Raises UserError for settings that cannot be run."""
    task = TASKS[grid.task]
    if grid.input_encoding not in task.input_encodings:
        raise UserError(
            f"--task {grid.task}: --input-encoding {grid.input_encoding} is for digits, choose "
            f"{' or '.join(task.input_encodings)}"
        )
    for cell in grid.cells:
        for init in grid.inits:
            try:
                recurrent.check_init(cell, init)
            except ValueError as error:
                raise UserError(str(error)) from None
    if min(grid.lengths) < task.min_length:
        raise UserError(f"--lengths {min(grid.lengths)}: must be at least {task.min_length}")
    for variant in grid.variants:
        if variant not in VARIANTS:
            raise UserError(f"--variants {variant}: choose from {', '.join(VARIANTS)}")
        if variant != "full" and grid.task != "palindrome":
            raise UserError(f"--variants {variant}: only for --task palindrome")
        if variant != "full" and not variant_has_effect(variant, grid):
            same = ", ".join(f"{name} {format_value(v)}" for name, v in VARIANTS[variant].items())
            raise UserError(
                f"--variants {variant}: changes nothing for {','.join(grid.cells)}, which have "
                f"{same}: leave it out"
            )
    check_positive(
        grid, "epochs", "batch_size", "lr", "hidden_size", "num_layers", "grad_clip",
        "stop_after_solved_epochs", "evals_per_epoch",
    )  # fmt: skip
    if grid.warmup_steps < 0:
        raise UserError(f"--warmup-steps {grid.warmup_steps}: must be 0 or more")
    if grid.num_sequences < task.min_sequences:
        raise UserError(
            f"--num-sequences {grid.num_sequences}: must be at least {task.min_sequences}"
        )
    train = task.num_train(grid.num_sequences)
    steps = train // grid.batch_size
    if not steps:
        raise UserError(
            f"--num-sequences {grid.num_sequences}: the training split ({train}) is smaller than "
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
    task = "" if grid.task == GridConfig().task else f"{grid.task}: "
    return task + " x ".join(axes)
