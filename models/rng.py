"""Random number generators keyed by what they are for.

    make_rng(seed, "order", epoch)

The key decides the numbers: never a clock, a rank, or what was sampled before. So a run that is
killed and resumed samples what an uninterrupted one samples, and N workers sample what one does.

The strings in the keys ("start", "split", "order", "train", "z", "quality", ...) are part of the
results: renaming one changes every number that is sampled with it.
"""

import hashlib

import torch


def make_rng(*key: int | str) -> torch.Generator:
    """Returns a CPU generator that depends on `key` alone and is the same on every machine.

    Sample on the CPU and move the numbers: a GPU's generator gives different ones.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    # manual_seed keeps 32 bits of the seed, so the key is hashed to 32 bits.
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
