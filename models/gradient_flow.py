"""How far back the gradients of a recurrent network reach, and how the optimizer moves its weights.

    probe(network, task, data)["grad_norm_h"]   # by steps back from the end: 0, 1, … length
    tracker = UpdateTracker(network)      # tracker.record(lr) after each step, then pop_means()

Where the gradient of the loss with respect to the hidden state vanishes over the steps back,
nothing can be learned from what is read there (Hochreiter 1991, Bengio et al. 1994).
"""

import math

import torch
from torch import Tensor, nn

from models.recurrent import RecurrentNetwork
from models.sequences import Sequences
from models.tasks import Task


def gradient_norms(network: RecurrentNetwork, task: Task, data: Sequences) -> dict[str, Tensor]:
    """Returns the mean norm of the gradient with respect to the state, by steps back from the end.

    The gradient of each sequence's own loss with respect to its own state, averaged over the
    sequences. Of several layers it is that of all their states together; the gradient of a lower
    one includes its way through the layer above at the same step.

    Returns:
        {"h": (length + 1,)}, and for an LSTM "c" as well; the last one belongs to the state before
        the first input.
    """
    with torch.enable_grad():
        states: list[list[dict[str, Tensor]]] = []  # by step and layer
        for layers in network.unroll(network.encode(data.inputs)):
            if not states:
                for value in (value for state in layers for value in state.values()):
                    value.requires_grad_()
            states.append(layers)
        outputs = network.head(states[-1][-1]["h"])
        loss = task.loss(outputs, data.targets, reduction="sum")
        names, num_layers = list(network.state_names), len(states[0])
        inputs = [s[name] for name in names for layers in reversed(states) for s in layers]
        gradients = torch.autograd.grad(loss, inputs)
    # In float64: the squares of numbers below 1e-19 underflow in float32.
    by_state = [
        torch.cat(gradients[i : i + num_layers], dim=1).double()  # (batch, layers * hidden_size)
        for i in range(0, len(gradients), num_layers)
    ]
    norms = torch.stack([gradient.norm(dim=1).mean() for gradient in by_state])
    return dict(zip(names, norms.split(len(states)), strict=True))


@torch.no_grad()
def forget_gate_quantiles(network: RecurrentNetwork, data: Sequences) -> Tensor | None:
    """Returns quantiles over the memory cells of the forget gate's mean over sequences and steps.

    Returns:
        (5,) minimum, quartiles and maximum: each between 0 (forgets) and 1 (keeps). None for a
        cell without a forget gate.
    """
    _, *steps = network.unroll(network.encode(data.inputs))
    if "f" not in steps[0][0]:
        return None
    gates = torch.stack([torch.cat([state["f"] for state in layers], dim=1) for layers in steps])
    return gates.mean((0, 1)).quantile(gates.new_tensor([0, 0.25, 0.5, 0.75, 1]))


def spectral_radii(network: RecurrentNetwork) -> list[float]:
    """Returns the largest absolute eigenvalue of each recurrent matrix: of each layer and gate.

    NaN if training has diverged: LAPACK crashes on a matrix that is not finite.
    """
    matrices = [
        matrix
        for cell in network.cells
        for matrix in cell.weight_hh.detach().cpu().split(cell.hidden_size)
    ]
    return [
        torch.linalg.eigvals(matrix).abs().max().item() if matrix.isfinite().all() else math.nan
        for matrix in matrices
    ]


def probe(network: RecurrentNetwork, task: Task, data: Sequences) -> dict[str, list[float]]:
    """Returns all of the above as plain numbers, for a row of metrics.

    Returns:
        grad_norm_h (and grad_norm_c): see gradient_norms; spectral_radii; and of a cell with a
        forget gate forget_gate_quantiles.
    """
    norms = gradient_norms(network, task, data)
    metrics = {f"grad_norm_{name}": norm.tolist() for name, norm in norms.items()}
    metrics["spectral_radii"] = spectral_radii(network)
    quantiles = forget_gate_quantiles(network, data)
    if quantiles is not None:
        metrics["forget_gate_quantiles"] = quantiles.tolist()
    return metrics


class UpdateTracker:
    """Tracks the gradient norm of each step and how far the step moves the recurrent weights."""

    def __init__(self, network: RecurrentNetwork):
        self.network = network
        self.before = self._recurrent_weights()
        self.records: list[Tensor] = []

    @torch.no_grad()
    def record(self, lr: float) -> None:
        """Call after each step, before the next gradient, with the learning rate of the step."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        after = self._recurrent_weights()
        update_rms_over_lr = (after - self.before).square().mean().sqrt() / lr
        self.records.append(torch.stack([nn.utils.get_total_norm(gradients), update_rms_over_lr]))
        self.before = after

    def _recurrent_weights(self) -> Tensor:
        return torch.cat([cell.weight_hh.detach() for cell in self.network.cells])

    def pop_means(self) -> dict[str, float]:
        """Returns means over the steps since the last call.

        Returns:
            grad_norm: norm of the gradient of all parameters, after clipping.
            update_rms_over_lr: root mean square change of the recurrent weights, divided by the
                learning rate. Adam's is about 1 while gradients keep their direction, and near 0
                while gradients shrink (Kingma & Ba 2015, section 2.1).
        """
        grad_norm, update_rms_over_lr = torch.stack(self.records).mean(0).tolist()
        self.records.clear()
        return {"grad_norm": grad_norm, "update_rms_over_lr": update_rms_over_lr}
