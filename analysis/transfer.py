"""Tests of trained networks on unseen sequences; on palindromes, also at other lengths."""

import argparse

import pandas as pd

from analysis.cli import show_progress
from analysis.results import CONFIG_COLUMNS, Trial
from models.recurrent import CELLS, NUM_CLASSES, RecurrentNetwork
from models.recurrent_training import evaluate, predict


def load_network(trial: Trial) -> RecurrentNetwork | None:
    """Loads the network of a trial's latest valid checkpoint, None without one."""
    checkpoint = trial.latest_checkpoint()
    if checkpoint is None:
        return None
    config = trial.config
    network = CELLS[config["cell"]](
        config["hidden_size"], config["input_encoding"], config["num_layers"],
        trial.task.num_outputs,
    )  # fmt: skip
    network.load_state_dict(checkpoint.state["network"])
    return network


def add_num_test_samples(parser: argparse.ArgumentParser) -> None:
    """Adds --num-test-samples: at least ten, so that each digit occurs among the palindromes."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < NUM_CLASSES:
            raise argparse.ArgumentTypeError(f"{text}: must be an integer from {NUM_CLASSES} on")
        return int(text)

    parser.add_argument(
        "--num-test-samples", type=parse, default=1000, metavar="N",
        help="test sequences per network and length (1000)",
    )  # fmt: skip


def losses_on_unseen(trials: list[Trial], count: int) -> pd.DataFrame:
    """Tests each trial's network at its own length; returns its loss by (cell, init, length, seed).

    Args:
        count: sequences of each test.
    """
    rows = []
    for trial in show_progress(trials, "testing network"):
        network = load_network(trial)
        if network is None:
            continue
        data = trial.task.sample_unseen(trial.config["seed"], trial.config["length"], count)
        loss = evaluate(network, trial.task, data)["loss"]
        labels = {name: trial.config[name] for name in (*CONFIG_COLUMNS, "seed")}
        rows.append({**labels, "epochs": len(trial.rows), "test_loss": loss})
    return pd.DataFrame(rows, columns=[*CONFIG_COLUMNS, "seed", "epochs", "test_loss"])


def evaluate_transfer(trials: list[Trial], count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tests each trial's network at every length of its cell, and by digit at its own length.

    Args:
        count: palindromes of each test.

    Returns:
        Accuracy by (cell, init, length, seed, tested length), and by (cell, init, length, seed,
        digit).
    """
    lengths: dict[str, list[int]] = {}
    for trial in trials:
        lengths.setdefault(trial.config["cell"], []).append(trial.config["length"])
    by_length, by_digit = [], []
    for trial in show_progress(trials, "testing network"):
        network = load_network(trial)
        if network is None:
            continue
        labels = {name: trial.config[name] for name in (*CONFIG_COLUMNS, "seed")}
        for tested in sorted(set(lengths[trial.config["cell"]])):
            data = trial.task.sample_unseen(trial.config["seed"], tested, count)
            correct = (predict(network, data).argmax(1) == data.targets).double()
            by_length.append({**labels, "tested": tested, "accuracy": correct.mean().item()})
            if tested == trial.config["length"]:
                for digit in range(NUM_CLASSES):
                    accuracy = correct[data.targets == digit].mean().item()
                    by_digit.append({**labels, "digit": digit, "accuracy": accuracy})
    return pd.DataFrame(by_length), pd.DataFrame(by_digit)
