"""From gradients to a step: Adam with decoupled weight decay, and clipping by global norm. NumPy."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from course_lib.autograd.tensor import Tensor
from course_lib.parts import exercise


@exercise(day=4)
def adamw_step(
    param: Float[np.ndarray, "..."],
    grad: Float[np.ndarray, "..."],
    m: Float[np.ndarray, "..."],
    v: Float[np.ndarray, "..."],
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """One step of Adam with decoupled weight decay, for one array of weights.

    Args:
        param: the weights, of any shape; grad, m and v have the same.
        grad: the loss's gradient with respect to them.
        m: running mean of the gradients, zeros before the first step.
        v: running mean of their squares, zeros before the first step.
        step: counts from 1.
        lr: learning rate of this step.
        betas: how much of m and of v is kept, each in [0, 1).
        eps: added to the root of v, after bias correction.
        weight_decay: lr * weight_decay is the share of each weight that is taken off, whatever
            its gradient.

    Returns:
        (param, m, v) after the step, as new arrays of the same dtype.

    Source: Loshchilov & Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2, in
    PyTorch's form: the decay is multiplied by lr.
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    m_hat = m / (1 - beta1**step)  # m began at 0 and is too small: only 1 - beta1^step is in it yet
    v_hat = v / (1 - beta2**step)
    decayed = param * (1 - lr * weight_decay)
    return decayed - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


@exercise(day=4)
def clip_grad_norm(
    grads: Sequence[Float[np.ndarray, "..."]], max_norm: float
) -> tuple[list[Float[np.ndarray, "..."]], float]:
    """Scale all gradients by one factor, so that their common length is at most `max_norm`.

    The length is that of one long vector that holds every entry of every array. Where it is
    max_norm or less, the gradients come back unchanged; so do those whose length is infinite or
    NaN, for the caller to see.

    Args:
        grads: arrays of any shapes; possibly none at all.
        max_norm: above 0.

    Returns:
        (clipped, norm): new or the same arrays, of the same dtypes, and the length before
        clipping, a Python float.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural
    networks", algorithm 1.
    """
    # Squares of float32 gradients may leave float32's range, and a long sum its precision.
    norm = float(np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads)))
    if norm <= max_norm or not np.isfinite(norm):
        return list(grads), norm
    scale = max_norm / norm
    return [g * scale for g in grads], norm


class AdamW:
    """`adamw_step` for a list of tensors, with its memory of m and v.

    Weights of two axes or more decay; biases and the weights of norms, vectors all of them, do not.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.params = list(params)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m = [np.zeros_like(p.data) for p in self.params]
        self.v = [np.zeros_like(p.data) for p in self.params]
        self.steps = 0

    def step(self, grads: Sequence[np.ndarray], lr: float) -> None:
        """Move every tensor's data by one step of learning rate `lr`."""
        self.steps += 1
        for i, (p, grad) in enumerate(zip(self.params, grads, strict=True)):
            decay = self.weight_decay if p.data.ndim > 1 else 0.0
            p.data, self.m[i], self.v[i] = adamw_step(
                p.data, grad, self.m[i], self.v[i], self.steps, lr, self.betas, self.eps, decay
            )
