"""Stochastic gradient descent: what to do with gradients once they are there."""

from collections.abc import Mapping, Sequence

import numpy as np

from course_lib.parts import exercise

Arrays = Mapping[str, np.ndarray]  # parameters or gradients, by name


@exercise(day=3)
def sgd_step(params: Arrays, grads: Arrays, learning_rate: float) -> None:
    """Move every parameter a little against its gradient, in place: p -= learning_rate * dL/dp.

    In place, so that whoever else holds the array sees the new values, too.

    Args:
        params: arrays by name; changed.
        grads: the gradients under the same names, each of its parameter's shape.
        learning_rate: above 0.

    Raises:
        ValueError: names or shapes differ. Nothing has been changed then.

    Source: Robbins & Monro (1951), "A stochastic approximation method".
    """
    if params.keys() != grads.keys():
        raise ValueError(f"parameters {sorted(params)}, but gradients {sorted(grads)}")
    for name, p in params.items():
        if p.shape != grads[name].shape:  # it might broadcast, and train the wrong thing
            raise ValueError(f"{name} has shape {p.shape}, its gradient {grads[name].shape}")
    for name, p in params.items():
        p -= learning_rate * grads[name]


@exercise(day=3)
def average_gradients(gradients: Sequence[Arrays], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """The gradient of one large batch, from those of the smaller batches it was cut into.

    Args:
        gradients: one dictionary a small batch: the gradients of the mean loss over its positions.
        counts: how many positions each small batch has; 0 is allowed.

    Returns:
        The gradients of the mean loss over all positions together, as new arrays of the same types.

    Raises:
        ValueError: there is no position at all, or not one count for each dictionary.
    """
    total = sum(counts)
    if len(counts) != len(gradients) or total == 0:
        raise ValueError(f"{len(gradients)} gradients, but the counts are {list(counts)}")
    share = [count / total for count in counts]
    # Turn each mean back into a share of the sum: a small batch weighs as much as it has positions.
    return {
        name: np.sum([g[name] * s for g, s in zip(gradients, share, strict=True)], axis=0)
        for name in gradients[0]
    }
