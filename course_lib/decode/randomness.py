"""Random numbers that depend on who asks for which, and on nothing else."""

import numpy as np


def uniform(seed: int, position: int, purpose: int = 0) -> float:
    """A number in [0, 1) that depends on its arguments and on nothing else.

    Philox scrambles a counter under a key, so the draw for position 1000 needs no 999 draws before it:
    who else is in the batch, or how often a request was interrupted, cannot change a text. `purpose`
    separates draws at one position (choose, accept a draft, ...). Source: Salmon et al. (2011), "Parallel
    Random Numbers: As Easy as 1, 2, 3".
    """
    bits = np.random.Philox(key=seed, counter=(position, purpose, 0, 0)).random_raw()
    return (int(bits) >> 12) / 2**52
