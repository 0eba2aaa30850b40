"""Muon for the matrices inside the blocks, AdamW for everything else, behind one optimizer's methods."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.parts import exercise

# Coefficients of the odd polynomial whose iteration brings singular values between 0 and 1 near 1 (to between
# 0.7 and 1.2) in few steps: Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks".
QUINTIC = (3.4445, -4.7750, 2.0315)


@exercise(day=9)
def orthogonalize(
    x: Float[Tensor, "*batch rows cols"],
    steps: int = 5,
) -> Float[Tensor, "*batch rows cols"]:
    """Bring every singular value of each matrix near 1, and keep its singular vectors.

    Newton-Schulz iteration, in bfloat16: it needs matrix products alone, and few digits.

    Args:
        x: one matrix, or many of one shape, each by itself; left as it is.
        steps: of the iteration. With 0 a matrix is only divided by its norm.

    Returns:
        A tensor of x's shape and dtype. A matrix of zeros stays one.

    Source: Jordan et al. (2024), "Muon".
    """
    a, b, c = QUINTIC
    tall = x.size(-2) > x.size(-1)
    y = (x.mT if tall else x).bfloat16()  # the Gram matrix is then that of the shorter side
    # No singular value is above this norm: afterwards all are 1 at most.
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if tall else y).to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: a step moves every direction of a matrix by the same amount.

    Args:
        matrices: weights of two axes, each with the rows of the projections that are stacked in it: a fused
            query-key-value weight is three matrices to Muon. A plain one is a single section.
        lr: scaled so that a step is as large as AdamW's would be (0.2 sqrt(max(rows, cols))): AdamW's rates
            and decays fit.

    Matrices of one shape are worked on together: one batched product instead of many small ones.

    Source: Jordan et al. (2024), "Muon"; the scale: Liu et al. (2025), "Muon is Scalable for LLM Training",
    equation 4.
    """

    def __init__(
        self,
        matrices: Sequence[tuple[nn.Parameter, list[int]]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        self.sections = dict(matrices)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(self.sections), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state: dict[str, Any] = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                state["mean"].lerp_(weight.grad, 1 - momentum)
                update = weight.grad.lerp(state["mean"], momentum)  # Nesterov: one step ahead of the mean
                sections = self.sections[weight]
                for rows, piece in zip(weight.split(sections), update.split(sections), strict=True):
                    by_shape.setdefault(piece.shape, []).append((rows, piece))
            for shape, pairs in by_shape.items():
                updates = orthogonalize(torch.stack([piece for _, piece in pairs]))
                for (rows, _), update in zip(pairs, updates, strict=True):
                    rows.mul_(1 - lr * decay).sub_(update, alpha=0.2 * max(shape) ** 0.5 * lr)


class Together:
    """Several optimizers, each for weights of its own, used as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def block_matrices(model: nn.Module) -> Iterator[tuple[nn.Parameter, list[int]]]:
    """The matrices inside the blocks of a GPT or a Decoder, with the rows of what is fused in them."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and re.search(r"(^|\.)(h|layers)\.\d+\.", name):
            rows: dict[str, int] | None = getattr(model.get_submodule(name.rpartition(".")[0]), "rows", None)
            if "c_attn" in name:
                yield weight, [len(weight) // 3] * 3  # query, key and value
            else:
                yield weight, list(rows.values()) if rows else [len(weight)]


def build_optimizer(model: nn.Module, lr: float, muon_lr: float | None, weight_decay: float) -> Together:
    """The course's optimizer of a GPT or a Decoder.

    Muon takes the matrices inside the blocks, or nothing if `muon_lr` is None; AdamW the rest. Embeddings and
    matrices decay; biases and the weights of norms, vectors all of them, do not. Each group remembers its
    highest rate as `peak`, which the schedule multiplies.
    """
    matrices = list(block_matrices(model)) if muon_lr is not None else []
    taken = {id(weight) for weight, _ in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in taken]
    adamw = torch.optim.AdamW(
        [
            {"params": [w for w in rest if w.dim() > 1], "weight_decay": weight_decay},
            {"params": [w for w in rest if w.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.95),
        fused=rest[0].device.type in ("cpu", "cuda", "mps"),
    )
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if muon_lr is not None:
        optimizers.append(Muon(matrices, muon_lr, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return Together(*optimizers)
