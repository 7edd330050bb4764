"""How far back a recurrent network remembers, seen in its gradients, and how it is moved by them.

    probe(network, data)["gradient_h"]   # by steps back from the end: 0, 1, … length
    steps = OptimizerSteps(network)      # steps.see(rate) after each, then steps.means_since_last()

Where the gradient of the loss with respect to the hidden state vanishes over the steps back,
nothing can be learned from the digits read there (Hochreiter 1991, Bengio et al. 1994).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.palindromes import Sequences
from models.recurrent import RecurrentNetwork


def gradient_norms(network: RecurrentNetwork, data: Sequences) -> dict[str, Tensor]:
    """Returns the mean norm of the gradient with respect to the state, by steps back from the end.

    Of each sequence's own cross entropy, with respect to its own state; the mean is over them.

    Returns:
        {"h": (length + 1,)}, and for an LSTM "c" as well; the last is of the state before any
        digit was read.
    """
    with torch.enable_grad():
        states = []
        for state in network.equations(network.read(data.digits)):
            if not states:
                for value in state.values():
                    value.requires_grad_()
            states.append(state)
        p = network.prediction(states[-1]["h"])
        loss = F.cross_entropy(p, data.targets, reduction="sum")
        names = list(states[0])
        wanted = [state[name] for name in names for state in reversed(states)]
        found = torch.autograd.grad(loss, wanted)
    # In float64: the squares of what is below 1e-19 would be too small for float32.
    norms = torch.stack([gradient.double().norm(dim=1).mean() for gradient in found])
    return dict(zip(names, norms.split(len(states)), strict=True))


@torch.no_grad()
def forget_gates(network: RecurrentNetwork, data: Sequences) -> Tensor:
    """Returns five numbers of the memory cells' mean forget gates over sequences and steps.

    Returns:
        (5,), the least, the quartiles and the largest: each between 0, forgets, and 1, keeps.
    """
    gates = [state["f"] for state in network.equations(network.read(data.digits)) if "f" in state]
    return torch.stack(gates).mean((0, 1)).quantile(gates[0].new_tensor([0, 0.25, 0.5, 0.75, 1]))


def spectral_radii(network: RecurrentNetwork) -> list[float]:
    """Returns the largest absolute eigenvalue of each recurrent matrix: of an LSTM's i, f, g, o."""
    matrices = network.recurrent.weight_hh_l0.detach().cpu().split(network.recurrent.hidden_size)
    return [torch.linalg.eigvals(matrix).abs().max().item() for matrix in matrices]


def probe(network: RecurrentNetwork, data: Sequences) -> dict[str, list[float]]:
    """Returns what is seen of the network's memory, as plain numbers.

    Returns:
        gradient_h (and gradient_c): see gradient_norms; spectral_radii; forget_gates, of an LSTM.
    """
    seen = {f"gradient_{name}": n.tolist() for name, n in gradient_norms(network, data).items()}
    seen["spectral_radii"] = spectral_radii(network)
    if "gradient_c" in seen:
        seen["forget_gates"] = forget_gates(network, data).tolist()
    return seen


class OptimizerSteps:
    """Sees what the optimizer is given at each step, and how far it moves the recurrent weights."""

    def __init__(self, network: RecurrentNetwork):
        self.network = network
        self.before = network.recurrent.weight_hh_l0.detach().clone()
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def see(self, rate: float) -> None:
        """Is called after each step, before the next gradient, with the step's learning rate."""
        gradients = [parameter.grad for parameter in self.network.parameters()]
        after = self.network.recurrent.weight_hh_l0
        moved = (after - self.before).square().mean().sqrt() / rate
        self.seen.append(torch.stack([nn.utils.get_total_norm(gradients), moved]))
        self.before.copy_(after)

    def means_since_last(self) -> dict[str, float]:
        """Returns means over the steps that were seen since this was last asked.

        Returns:
            gradient_norm: of all parameters together, as it was given to the optimizer: clipped.
            step_size: the root mean square of the changes of the recurrent weights, over the
                learning rate. Adam's is about 1 while gradients keep their direction, and near 0
                while they are smaller than they were (Kingma & Ba 2015, section 2.1).
        """
        gradient_norm, step_size = torch.stack(self.seen).mean(0).tolist()
        self.seen.clear()
        return {"gradient_norm": gradient_norm, "step_size": step_size}
