"""Grids of generated images, and the classifier's predictions for them."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor
from torchvision.utils import make_grid

from models.classifier import Classifier
from models.gan_metrics import classify
from models.image_data import IMAGE_SIZE

GRAY_IMAGE: dict[str, Any] = {"cmap": "gray", "vmin": -1, "vmax": 1}  # one scale for all


def show_image(axes: plt.Axes, image: Tensor) -> None:
    """Shows an image (784,) without axes."""
    axes.imshow(image.view(IMAGE_SIZE, IMAGE_SIZE).numpy(), **GRAY_IMAGE)
    axes.set_axis_off()


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Tiles images (n, 784) in rows of `columns`, with a black gap of two pixels.

    Returns:
        (n / columns * 30, columns * 30)
    """
    square = images.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    grid = make_grid(square, nrow=columns, padding=2, pad_value=-1.0)
    return grid[0, 1:-1, 1:-1]  # one of three equal channels, with a border of one pixel


def prediction_table(images: Tensor, classifier: Classifier) -> pd.DataFrame:
    """Returns the predicted digit of each image, and the classifier's confidence."""
    confidence, digit = classify(images, classifier).logits.softmax(1).max(1)
    return pd.DataFrame({"image": range(len(images)), "digit": digit, "confidence": confidence})


def describe_predictions(predictions: pd.DataFrame) -> str:
    """Describes a grid of images by the predicted digits, as alternative text."""
    counts = predictions["digit"].value_counts().sort_index()
    digits = ", ".join(f"{digit}: {count}" for digit, count in counts.items())
    return (
        f"{len(predictions)} generated images. Predicted digits and their counts: {digits}; "
        f"median confidence of the classifier {predictions['confidence'].median():.0%}."
    )
