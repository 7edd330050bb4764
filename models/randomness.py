"""Where every random draw comes from: a generator named by what it is drawn for.

    generator(seed, "order", epoch)

The name, never a clock, a worker's number or what was drawn before, decides the numbers. So a run
that is killed and goes on draws what an undisturbed one draws, and N workers draw what one does.
"""

import hashlib

import torch


def generator(*name: int | str) -> torch.Generator:
    """Returns a CPU generator that is the same for the same `name`, on every machine.

    Draw on the CPU and move the numbers: a GPU's generator gives other ones.
    """
    digest = hashlib.blake2b(repr(name).encode(), digest_size=4).digest()
    # manual_seed keeps 32 bits of the seed, so the name is hashed down to what it keeps.
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
