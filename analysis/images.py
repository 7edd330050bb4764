"""Images of digits as pictures, and what the classifier sees in them."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from models import classifier, digits, quality

GREY = {"cmap": "gray", "vmin": -1, "vmax": 1}  # one scale for all images


def show(axes: plt.Axes, image: Tensor) -> None:
    """Draws an image (784,), and no axes."""
    axes.imshow(image.view(digits.SIDE, digits.SIDE).numpy(), **GREY)
    axes.set_axis_off()


def tiled(images: Tensor, columns: int) -> Tensor:
    """Returns images (n, 784) as one, n / columns rows of them, two pixels of black between."""
    square = images.view(-1, columns, digits.SIDE, digits.SIDE)
    apart = torch.nn.functional.pad(square, (1, 1, 1, 1), value=-1.0)
    return apart.transpose(1, 2).flatten(2).flatten(0, 1)  # (rows * 30, columns * 30)


def seen_table(images: Tensor, eye: classifier.Classifier) -> pd.DataFrame:
    """Returns what the classifier sees in each image: the digit, and how sure it is."""
    confidence, digit = quality.look(images, eye).logits.softmax(1).max(1)
    return pd.DataFrame({"image": range(len(images)), "digit": digit, "confidence": confidence})
