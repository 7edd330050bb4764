"""Draws what a sweep found: the report's Figures 1-3, and what its networks can.

  python analysis/sweep.py ~/ray_results/figures --out figures
  python analysis/sweep.py ~/ray_results/figures ~/ray_results/more-seeds
  python analysis/sweep.py s3://BUCKET/sweeps/figures --tested 200

Each figure is a PNG with the numbers behind it beside it as a CSV; drops.csv
lists the sharp drops of accuracy. A sweep that is still running may be drawn:
trials that have not reached their last epoch are left out, and counted.
"""

from analysis.arguments import Parser, check_writable, end_quietly, exit_with

if __name__ == "__main__":
    end_quietly()  # for as long as it runs: the imports alone take seconds

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import LOOKS, NAMES, STARTS, heat_map, save
from analysis.results import NoResults, Trial, epochs_table, read_trials, trials_table
from models.palindromes import Sequences, palindromes
from models.recurrent import CELLS, DIGITS, RecurrentNetwork, has_ended, predict

CHANCE = 1 / DIGITS
REMEMBERS = 0.99  # validation accuracy from which on a length counts as remembered
DROP = 0.2  # a fall of validation accuracy, from one epoch to the next, that counts as sharp
LONGEST_OF_FIGURE_1 = 24  # the report's Figures 1 and 2 end here, and its Figure 3 begins after it
SETTING = ["cell", "start", "length"]

# Settings that the first runs had no name for, as those were.
BEFORE = {
    "variant": "plain", "warmup": 0, "decay": "none", "inputs": "digit", "hold": None, "checks": 1,
    "probe": False,
}  # fmt: skip


def read_sweeps(folders: list[str], settings: list[str] = SETTING) -> list[Trial]:
    """Reads the trials of one sweep or several, each trial once.

    Args:
        settings: what makes a trial another one, beside its seed.

    Raises:
        NoResults: there are none, or trials that differ in more than their seed would be drawn as
            if they did not.
    """
    trials: dict[tuple, Trial] = {}
    recipes: dict[tuple, dict] = {}
    for folder, trial in ((place, trial) for place in folders for trial in read_trials(place)):
        config = BEFORE | trial.config
        setting = tuple(config.get(name) for name in settings)
        if None in setting or "epochs" not in config:
            raise NoResults(f"{folder}: {trial.name} is not a trial of jobs/sweep.py")
        recipe = {name: value for name, value in config.items() if name != "seed"}
        other = recipes.setdefault(setting, recipe)
        differ = [name for name in {**recipe, **other} if recipe.get(name) != other.get(name)]
        if differ:
            raise NoResults(f"trials of one length differ in {', '.join(differ)}: draw them apart")
        same = trials.setdefault((*setting, trial.config["seed"]), trial)
        if len(trial.rows) > len(same.rows):
            trials[(*setting, trial.config["seed"])] = trial
    return list(trials.values())


def is_finished(trial: Trial) -> bool:
    """Returns whether a trial has done its epochs, or ended before, having held its accuracy."""
    return has_ended(trial.rows, trial.config["epochs"], trial.config.get("hold"))


def read_finished(
    folders: list[str], out: Path, settings: list[str] = SETTING
) -> tuple[list[Trial], list[Trial]]:
    """Reads sweeps, and makes the folder that they will be drawn into.

    Returns:
        The trials that are finished, and all of them.

    Raises:
        NoResults: as `read_sweeps`, or no trial is finished yet.
        OSError: the folder cannot be made, or written to.
    """
    trials = read_sweeps(folders, settings)
    done = [trial for trial in trials if is_finished(trial)]
    if not done:
        raise NoResults(f"{' '.join(folders)}: no trial is finished yet")
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out)
    return done, trials


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each cell, start and length, the seeds' mean, least and largest accuracy."""
    found = table.groupby(SETTING)["val_accuracy"].agg(["mean", "min", "max", "count"])
    return found.reset_index().rename(columns={"count": "seeds"})


def effective_length(accuracies: pd.DataFrame, unfinished: Iterable[int] = ()) -> int | None:
    """Returns the length up to which every seed ends at 99 % or more, 0 without one.

    None where that is not known yet: it may end at one of the `unfinished` lengths, or go on there.

    Args:
        accuracies: of one cell and start, as `spread` returns them.
    """
    failed = accuracies.loc[accuracies["min"] < REMEMBERS, "length"]
    stop = failed.min() if len(failed) else math.inf
    if any(length < stop for length in unfinished):
        return None
    learned = accuracies.loc[accuracies["length"] < stop, "length"]
    return int(learned.max()) if len(learned) else 0


def effective_lengths(found: pd.DataFrame, unfinished: list[Trial]) -> dict[tuple, int | None]:
    """Returns the effective length of each cell and start."""
    reaches = {}
    for kind, accuracies in found.groupby(["cell", "start"]):
        lengths = [t.config["length"] for t in unfinished
                   if (t.config["cell"], t.config["start"]) == kind]  # fmt: skip
        reaches[kind] = effective_length(accuracies, lengths)
    return reaches


def in_words(reach: int | None) -> str:
    return "not known yet" if reach is None else f"{reach or 'none'}"


def sharp_drops(epochs: pd.DataFrame) -> pd.DataFrame:
    """Returns the epochs whose validation accuracy is more than 20 points below the one before."""
    ordered = epochs.sort_values([*SETTING, "seed", "epoch"])
    before = ordered.groupby([*SETTING, "seed"])["val_accuracy"].shift()
    fell = ordered.assign(before=before)[before - ordered["val_accuracy"] > DROP]
    return fell[[*SETTING, "seed", "epoch", "before", "val_accuracy"]]


def told(found: pd.DataFrame, reaches: dict[tuple, int | None] | None = None) -> str:
    """Returns in words what a figure of accuracy over length shows."""
    lines = []
    for (cell, start), accuracies in found.groupby(["cell", "start"]):
        (least, first), (most, last) = (
            (row["length"], row["mean"])
            for _, row in accuracies.sort_values("length").iloc[[0, -1]].iterrows()
        )
        marked = f"; effective length {in_words(reaches[cell, start])}" if reaches else ""
        lines.append(
            f"{NAMES[cell]}, {start} start: {first:.0%} at {least} digits, {last:.0%} at {most}"
            f"{marked}."
        )
    return "Mean validation accuracy over sequence length. " + " ".join(lines)


def draw_accuracy(axes: Axes, cell: str, start: str, accuracies: pd.DataFrame, name: str) -> None:
    """Draws the seeds' mean over the length, and their spread as a band."""
    look = LOOKS[cell]
    percent = 100 * accuracies[["mean", "min", "max"]]
    axes.plot(accuracies["length"], percent["mean"], ls=STARTS[start], label=name, lw=1.6, **look)
    axes.fill_between(
        accuracies["length"], percent["min"], percent["max"], color=look["color"], alpha=0.18, lw=0
    )


def finish_accuracy(axes: Axes, title: str) -> None:
    axes.axhline(100 * CHANCE, color="black", lw=1, ls=(0, (1, 2)))
    axes.text(0.01, 100 * CHANCE + 1, "chance", transform=axes.get_yaxis_transform())
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(title=title, xlabel="sequence length (digits read)", ylabel="validation accuracy (%)")
    axes.set_ylim(0, 103)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))


def shown_range(numbers: pd.Series) -> str:
    least, most = numbers.min(), numbers.max()
    return f"{least}" if least == most else f"{least}-{most}"


def accuracy_figure(
    found: pd.DataFrame, title: str, reaches: dict[tuple, int | None] | None = None
) -> Figure:
    """Draws accuracy over length, by cell and start, and how far each reaches, if that is given."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for (cell, start), accuracies in found.groupby(["cell", "start"]):
        seeds = shown_range(accuracies["seeds"])
        name = f"{NAMES[cell]}, {start} start, mean and range of {seeds} seeds"
        if reaches:
            name += f"\n   effective length: {in_words(reaches[cell, start])}"
        draw_accuracy(axes, cell, start, accuracies, name)
        if reaches and reaches[cell, start]:
            axes.axvline(reaches[cell, start], color=LOOKS[cell]["color"], lw=1, ls=STARTS[start])
    finish_accuracy(axes, title)
    return figure


def draw_report_figures(
    finished: pd.DataFrame, out: Path, unfinished: Iterable[Trial] = ()
) -> list[Path]:
    """Draws Figures 1, 2 and 3 of the report, and LSTM and RNN in one."""
    found, pictures = spread(finished), []
    short = found["length"] <= LONGEST_OF_FIGURE_1
    for name, cell, rows in (
        ("figure1", "lstm", short),
        ("figure2", "rnn", short),
        ("figure3", "lstm", ~short),
    ):
        part = found[(found["cell"] == cell) & rows]
        if part.empty:
            continue
        epochs = sorted(finished.merge(part[SETTING], on=SETTING)["epoch"].unique())  # done
        title = f"Figure {name[-1]}: {NAMES[cell]} after {' or '.join(map(str, epochs))} epochs"
        pictures.append(save(accuracy_figure(part, title), part, out, name, told(part)))
    # Where only one cell was trained there is nothing to compare, and its epochs may be fewer.
    shared = found.groupby("length")["cell"].transform("nunique") == found["cell"].nunique()
    both = found[shared] if shared.any() else found
    longest = both["length"].max()
    reaches = effective_lengths(both, [t for t in unfinished if t.config["length"] <= longest])
    figure = accuracy_figure(both, "LSTM against RNN", reaches)
    pictures.append(save(figure, both, out, "comparison", told(both, reaches)))
    return pictures


def draw_learning(trials: list[Trial], out: Path) -> list[Path]:
    """Draws, for each cell and start, accuracy over length and epoch: the mean of the seeds.

    A seed that ended early, having held its accuracy, counts with it until the last one ends.
    """
    pictures = []
    for (cell, start), table in epochs_table(trials).groupby(["cell", "start"]):
        of_seeds = table.pivot(index=["length", "seed"], columns="epoch", values="val_accuracy")
        by_epoch = of_seeds.ffill(axis=1).groupby("length").mean()
        by_epoch = by_epoch.where(of_seeds.notna().groupby("length").any())
        mean = by_epoch.melt(value_name="val_accuracy", ignore_index=False).dropna().reset_index()
        mean = mean.sort_values(["length", "epoch"])
        learned = [
            f"{length} digits after {above.idxmax()}" if above.any() else f"{length} never"
            for length, above in (by_epoch >= REMEMBERS).iterrows()
        ]
        alt = f"Epochs until the seeds' mean accuracy is 99%: {', '.join(learned)}."
        figure = heat_map(
            by_epoch,
            f"{NAMES[cell]}, {start} start: how it learns (mean of the seeds)",
            "epoch",
            "sequence length (digits read)",
            "validation accuracy (%)",
        )
        pictures.append(save(figure, mean, out, f"learning_{cell}_{start}", alt))
    return pictures


def load_network(trial: Trial) -> RecurrentNetwork | None:
    """Returns the trial's network as its newest whole checkpoint holds it."""
    checkpoint = trial.newest_checkpoint()
    if checkpoint is None:
        return None
    config = trial.config
    network = CELLS[config["cell"]](config["hidden"], config.get("inputs", "digit"))
    network.load_state_dict(checkpoint.state["network"])
    return network


def test_sequences(seed: int, length: int, count: int) -> Sequences:
    """Returns palindromes that no trial of that seed and length was trained on."""
    return palindromes(seed, length, 5 * count).validation  # a fifth of them


def examine(trials: list[Trial], count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tests each trial's network at every length of its cell, and by digit at its own.

    Returns:
        Accuracy by (cell, start, seed, length, tested length), and by (cell, start, seed, length,
        digit).
    """
    lengths: dict[str, list[int]] = {}
    for trial in trials:
        lengths.setdefault(trial.config["cell"], []).append(trial.config["length"])
    by_length, by_digit = [], []
    for number, trial in enumerate(trials):
        if sys.stdout.isatty():
            print(f"\rtesting network {number + 1} of {len(trials)}", end="", flush=True)
        network = load_network(trial)
        if network is None:
            continue
        labels = {name: trial.config[name] for name in (*SETTING, "seed")}
        for tested in sorted(set(lengths[trial.config["cell"]])):
            data = test_sequences(trial.config["seed"], tested, count)
            right = (predict(network, data).argmax(1) == data.targets).double()
            by_length.append({**labels, "tested": tested, "accuracy": right.mean().item()})
            if tested == trial.config["length"]:
                for digit in range(DIGITS):
                    accuracy = right[data.targets == digit].mean().item()
                    by_digit.append({**labels, "digit": digit, "accuracy": accuracy})
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    return pd.DataFrame(by_length), pd.DataFrame(by_digit)


def draw_examination(trials: list[Trial], count: int, out: Path) -> list[Path]:
    """Draws, by cell and start, trained against tested length, and accuracy by digit."""
    pictures = []
    for table, axis, name, xlabel, title in zip(
        examine(trials, count),
        ("tested", "digit"),
        ("transfer", "digits"),
        ("tested length (digits read)", "digit to remember"),
        ("lengths trained and tested", "accuracy by digit"),
        strict=True,
    ):
        if table.empty:  # no trial has a checkpoint left
            continue
        for (cell, start), part in table.groupby(["cell", "start"]):
            mean = part.groupby(["length", axis])["accuracy"].mean().unstack()
            figure = heat_map(
                mean,
                f"{NAMES[cell]}, {start} start: {title}",
                xlabel,
                "trained length (digits read)",
                "accuracy (%) on unseen palindromes",
            )
            best, worst = part.loc[part["accuracy"].idxmax()], part.loc[part["accuracy"].idxmin()]
            alt = ", ".join(
                f"{word} {row['accuracy']:.0%}, trained at {row['length']} with {axis} {row[axis]}"
                for word, row in (("best", best), ("worst", worst))
            )
            alt = f"Accuracy on unseen palindromes: mean {part['accuracy'].mean():.0%}, {alt}."
            pictures.append(save(figure, part, out, f"{name}_{cell}_{start}", alt))
    return pictures


def draw(done: list[Trial], trials: list[Trial], tested: int, out: Path) -> list[Path]:
    """Draws all figures of a sweep's finished trials; returns the pictures' paths."""
    torch.set_num_threads(1)  # the products are small: threads would wait for each other
    pictures = draw_report_figures(
        trials_table(done), out, [t for t in trials if not is_finished(t)]
    )
    sharp_drops(epochs_table(done)).to_csv(out / "drops.csv", index=False)
    return pictures + draw_learning(done, out) + draw_examination(done, tested, out)


def findings(done: list[Trial], trials: list[Trial]) -> list[str]:
    """Returns a line for each cell and start: what length it remembers, and how often it drops."""
    epochs = epochs_table(done)
    lines = []
    for kind, reach in effective_lengths(
        spread(trials_table(done)), [t for t in trials if not is_finished(t)]
    ).items():
        cell, start = kind
        part = epochs[(epochs["cell"] == cell) & (epochs["start"] == start)]
        lines.append(
            f"{NAMES[cell]}, {start} start: effective length {in_words(reach)}, "
            f"sharp drops {len(sharp_drops(part))} in {len(part)} epochs"
        )
    return lines


def tell_drawn(findings: list[str], pictures: list[Path], done: int, all_trials: int) -> None:
    """Prints what was found, how many trials were left out, and where the pictures are."""
    print("\n".join(findings))
    if done < all_trials:
        print(f"left out: {all_trials - done} of {all_trials} trials, which are not finished")
    print("\n".join(map(str, pictures)))


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a sweep: folder or URI")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder (figures)")
    parser.add_argument(
        "--tested", type=int, default=1000, metavar="N", help="palindromes of each test (1000)"
    )
    arguments = parser.parse_args()
    try:
        if arguments.tested < DIGITS:
            raise NoResults(f"--tested {arguments.tested}: {DIGITS} or more, one of each digit")
        done, trials = read_finished(arguments.results, arguments.out)
    except (NoResults, OSError) as error:
        print(f"analysis/sweep.py: {error}", file=sys.stderr)
        return 2
    pictures = draw(done, trials, arguments.tested, arguments.out)
    tell_drawn(findings(done, trials), pictures, len(done), len(trials))
    return 0


if __name__ == "__main__":
    exit_with(main)
