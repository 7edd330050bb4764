"""What a sweep is: a grid of trials, each with its settings and a name; and the presets.

parts = changed(PRESETS["horizon"], {"seeds": (0,)})
configs = {trial_name(config): config for config in trial_configs(*parts)}
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from jobs.flags import Trouble, setting, shown
from jobs.progress import plural
from models import palindromes, recurrent

STARTS = dict.fromkeys(start for cell in recurrent.CELLS.values() for start in cell.starts)


@dataclass(frozen=True)
class Sweep:
    """A grid of trials. It is what a run is: other values need another name."""

    cells: tuple[str, ...] = setting(
        ("lstm", "rnn"), f"one or more of {', '.join(recurrent.CELLS)}"
    )
    lengths: tuple[int, ...] = setting(range(3, 25), "digits that the network reads")
    seeds: tuple[int, ...] = setting(range(3), "each draws its own data, start and order")
    start: tuple[str, ...] = setting(("uniform",), ", ".join(STARTS))
    variants: tuple[str, ...] = setting(("plain",), "plain, no-clip, no-decay, ... one-hot")
    epochs: int = setting(20, "times that the training part is seen")
    samples: int = setting(100_000, "palindromes, a fifth of them for validation")
    batch_size: int = setting(128, "sequences of one training step")
    lr: float = setting(0.001, "learning rate")
    hidden: int = setting(128, "size of the hidden state")
    optimizer: Literal["adam", "rmsprop"] = setting("adam", "what takes the training steps")
    clip: float | None = setting(None, "largest norm of a gradient, or none")
    warmup: int = setting(0, "steps in which the learning rate rises")
    decay: Literal["none", "cosine"] = setting("none", "how the learning rate falls, to 0")
    inputs: Literal[recurrent.INPUTS] = setting(
        "digit", "a digit as a number, standardised, or one-hot"
    )
    hold: int | None = setting(None, "end after so many epochs at 99.9 % in a row")
    checks: int = setting(1, "looks at the accuracy in an epoch, in even steps")
    probe: bool = setting(False, "after each epoch, see how far back gradients reach")


# What a variant changes of the settings as they are given.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": 1.0},
    "no-clip": {"clip": None},
    "no-warmup": {"warmup": 0},
    "no-decay": {"decay": "none"},
    "no-scaling": {"inputs": "digit"},
    "one-hot": {"inputs": "one-hot"},
}

# What training needs to reach far and not to fall: each cell's recipe (docs/horizon.md).
STEADY = Sweep(warmup=100, decay="cosine", inputs="standard", hold=3, checks=10)
LSTM = replace(STEADY, cells=("lstm",), start=("chrono",), lr=0.005, clip=1.0)
RNN = replace(STEADY, cells=("rnn",), start=("orthogonal",), lr=0.0003)

# The same with an eighth of the sequences. In them an RNN learns 100 digits at 0.001, which with
# all of them it does not bear, and not at 0.0003.
SHORT = {"samples": 25_000, "epochs": 10}
SHORT_LSTM = replace(LSTM, **SHORT)
SHORT_RNN = replace(RNN, **SHORT, lr=0.001)
FAR = (10, 20, 35, 50, 75, 100, 150)

# A preset is one grid or several, and flags change them all.
PRESETS = {
    "figures": (Sweep(), Sweep(cells=("lstm",), lengths=tuple(range(25, 36)), epochs=5)),
    "quick": (Sweep(lengths=(3, 5, 8, 12, 16, 20), seeds=(0, 1), epochs=10, samples=20_000),),
    "recipe": tuple(
        replace(part, lengths=(3, *range(5, 36, 5)), seeds=tuple(range(5))) for part in (LSTM, RNN)
    ),
    "horizon": (
        replace(SHORT_LSTM, lengths=FAR, start=("uniform", "orthogonal", "forget", "chrono")),
        replace(SHORT_RNN, lengths=FAR, start=("uniform", "orthogonal", "identity")),
    ),
}
ABLATION = tuple(replace(part, lengths=(35, 100)) for part in (SHORT_LSTM, SHORT_RNN))


def trial_configs(*parts: Sweep) -> list[dict[str, Any]]:
    """Returns each trial's settings: seed by seed, so that a run cut short has whole figures."""
    configs = []
    for part in parts:
        recipe = asdict(part)
        for axis in ("cells", "lengths", "seeds", "start", "variants"):
            del recipe[axis]
        configs += [
            {"cell": cell, "length": length, "seed": seed, "start": start, "variant": variant}
            | recipe
            | VARIANTS[variant]
            for seed in part.seeds
            for length in part.lengths
            for cell in part.cells
            for start in part.start
            for variant in part.variants
        ]
    # And the long ones first: no straggler at the end.
    return sorted(configs, key=lambda config: (config["seed"], -config["length"]))


def differs(variant: str, sweep: Sweep) -> bool:
    """Says whether a variant changes any of the sweep's settings."""
    return any(getattr(sweep, name) != value for name, value in VARIANTS[variant].items())


def ablated(parts: tuple[Sweep, ...]) -> tuple[Sweep, ...]:
    """Returns the grids as they are and with each part of their recipe changed, one at a time."""
    return tuple(
        replace(part, variants=("plain", *(name for name in VARIANTS if differs(name, part))))
        for part in parts
    )


def trial_name(config: dict[str, Any]) -> str:
    """Returns a trial's name and folder, which never change: so its checkpoints are found."""
    changed = "" if config["variant"] == "plain" else f"-{config['variant']}"
    return "{cell}-{start}{changed}-length{length:03}-seed{seed}".format(changed=changed, **config)


def check(sweep: Sweep) -> None:
    """Raises Trouble for settings that cannot be run."""
    for cell in sweep.cells:
        for start in sweep.start:
            try:
                recurrent.build(cell, hidden=1, start=start, seed=0, length=2)
            except ValueError as error:
                raise Trouble(str(error)) from None
    if min(sweep.lengths) < 2:
        raise Trouble(f"--lengths {min(sweep.lengths)}: a sequence has 2 digits or more")
    for variant in sweep.variants:
        if variant not in VARIANTS:
            raise Trouble(f"--variants {variant}: it is one of {', '.join(VARIANTS)}")
        if variant != "plain" and not differs(variant, sweep):
            raise Trouble(f"--variants {variant}: that is what plain is here")
    for name in ("epochs", "batch_size", "lr", "hidden", "clip", "hold", "checks"):
        value = getattr(sweep, name)
        if value is not None and not 0 < value < math.inf:
            raise Trouble(f"--{name.replace('_', '-')} {value}: must be more than 0, and finite")
    if sweep.warmup < 0:
        raise Trouble(f"--warmup {sweep.warmup}: must be 0 or more")
    if sweep.samples < palindromes.FEWEST:
        raise Trouble(f"--samples {sweep.samples}: {palindromes.FEWEST} or more are needed")
    steps = palindromes.training_samples(sweep.samples) // sweep.batch_size
    if not steps:
        raise Trouble(
            f"--samples {sweep.samples}: four fifths of them do not fill one batch "
            f"of --batch-size {sweep.batch_size}"
        )
    if sweep.checks > steps:
        raise Trouble(f"--checks {sweep.checks}: an epoch has {plural(steps, 'step')}")
    if sweep.warmup > steps * sweep.epochs:
        raise Trouble(f"--warmup {sweep.warmup}: there are {steps * sweep.epochs} steps in all")


def changed(preset: tuple[Sweep, ...], changes: dict[str, Any]) -> tuple[Sweep, ...]:
    """Returns a preset's grids with the settings that were typed, each trial in one of them.

    Raises:
        Trouble: they cannot be run.
    """
    parts: list[Sweep] = []
    names: set[str] = set()
    for part in preset:
        typed = changes.get("cells", part.cells)
        cells = tuple(cell for cell in typed if cell in part.cells or cell not in recurrent.CELLS)
        if not cells:
            continue
        part = replace(part, **{**changes, "cells": cells})
        check(part)
        new = {trial_name(config) for config in trial_configs(part)} - names
        if new:
            parts.append(part)
        names |= new
    return tuple(parts)


def describe(part: Sweep) -> str:
    axes = [",".join(part.cells), f"lengths {shown(part.lengths)}", f"seeds {shown(part.seeds)}"]
    axes += [f"starts {shown(part.start)}", f"{part.epochs} epochs of {part.samples} palindromes"]
    if part.variants != Sweep().variants:
        axes.insert(4, f"variants {shown(part.variants)}")
    return " x ".join(axes)
