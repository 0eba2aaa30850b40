"""Choosing the next token from the logits: the best one, or one drawn from a filtered distribution."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from course_lib.decode.adjust import adjust
from course_lib.decode.params import SamplingParams
from course_lib.decode.randomness import uniform
from course_lib.decode.text import Row

__all__ = ["Sampler", "SamplingParams", "uniform"]


def keep_top_k(probs: Float[Tensor, "B V"], k: Sequence[int]) -> Float[Tensor, "B V"]:
    """Zero all but each row's k largest (0: keep all). Ties at the border stay, as at Hugging Face."""
    largest = probs.topk(min(max(k), probs.shape[-1]), dim=-1).values  # (B, max k)
    index = torch.tensor([[min(n, probs.shape[-1]) - 1 if n else 0] for n in k], device=probs.device)
    border = largest.gather(1, index)  # (B, 1)
    off = torch.tensor([[n == 0] for n in k], device=probs.device)
    return torch.where((probs >= border) | off, probs, 0.0)


def keep_top_p(probs: Float[Tensor, "B V"], p: Float[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
    """Zero what lies outside the smallest set of tokens that holds a share p of the row's total; ties stay.

    Source: Holtzman et al. (2019), "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    share = p * probs.sum(-1, keepdim=True)  # (B, 1)
    border = torch.zeros_like(share)  # what is less probable goes; with p = 1 nothing does
    searching = torch.where(p[:, 0] < 1)[0]
    # Mostly some tens of tokens hold the share, and finding them costs a thirtieth of sorting all. Only rows
    # whose share is not reached are looked at again, further down.
    most = 4
    while len(searching):
        most = min(16 * most, probs.shape[-1])
        ranked = probs[searching].topk(most, dim=-1).values  # (rows, most), the largest first
        held = ranked.cumsum(-1)
        before = (held < share[searching]).sum(-1, keepdim=True)  # so many do not hold the share yet
        border[searching] = ranked.gather(1, before.clamp(max=most - 1))
        searching = searching[(before[:, 0] == most) & (most < probs.shape[-1])]
    return torch.where(probs >= border, probs, 0.0)


def keep_min_p(probs: Float[Tensor, "B V"], min_p: Float[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
    """Zero what is less than min_p times as probable as the row's best.

    Source: Nguyen et al. (2024), "Min-p Sampling", arXiv:2407.01082.
    """
    return torch.where(probs >= min_p * probs.amax(-1, keepdim=True), probs, 0.0)


def draw(weights: Float[Tensor, "B V"], u: Float[Tensor, "B 1"]) -> Int64[Tensor, " B"]:
    """Inverse-CDF sampling: the first token at which the running sum passes u times the total."""
    running = weights.double().cumsum(-1)
    return torch.searchsorted(running, u * running[:, -1:], right=True).squeeze(1)


class Sampler:
    """Chooses one token for each row of a batch, each row by its own parameters.

    First what changes the logits (`adjust`), then the filters in Hugging Face's order: temperature, top-k,
    top-p, min-p; each sees what the one before it left. Nothing is computed that no row asks for.
    """

    def __init__(self, params: Sequence[SamplingParams]):
        self.params = list(params)
        if missing := [i for i, p in enumerate(self.params) if not p.greedy and p.seed is None]:
            raise ValueError(
                f"Row {missing[0]} samples without a seed: give one, so that its text can be repeated."
            )

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        positions: Sequence[int],
        rows: Sequence[Row | None] | None = None,
    ) -> Int64[Tensor, " B"]:
        """Choose a token for each row.

        Args:
            positions: the place in its sequence of the token that a row chooses now.
            rows: the text before it, for rows whose parameters ask for more than their logits.
        """
        if rows is not None:
            logits = adjust(logits, rows)
        for i, p in enumerate(self.params):
            if p.changes_logits and (rows is None or rows[i] is None):
                raise ValueError(
                    f"Row {i} has penalties, biases or bans: give the text that it continues, too."
                )
        if logits.device.type == "mps":  # Metal has no float64, which the running sum needs
            logits = logits.cpu()
        drawing = [i for i, p in enumerate(self.params) if not p.greedy]
        if len(drawing) == len(self.params):
            return self.draw(logits, drawing, positions)
        chosen = logits.max(-1).indices  # the first of several; argmax is four times slower in bfloat16
        if drawing:
            chosen[drawing] = self.draw(logits[drawing], drawing, positions)
        return chosen

    def draw(
        self, logits: Float[Tensor, "B V"], rows: Sequence[int], positions: Sequence[int]
    ) -> Int64[Tensor, " B"]:
        """Draw a token for each of the rows that are named."""
        params = [self.params[i] for i in rows]

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

        # Subtracted before the division: a tiny temperature then gives -inf, and never inf - inf. As float32
        # it must not become 0.
        logits = logits.float() - logits.float().amax(-1, keepdim=True)
        probs = torch.softmax(logits / column([max(p.temperature, 1e-30) for p in params]), dim=-1)
        if any(p.top_k for p in params):
            probs = keep_top_k(probs, [p.top_k for p in params])
        if any(p.top_p < 1 for p in params):
            probs = keep_top_p(probs, column([p.top_p for p in params]))
        if any(p.min_p for p in params):
            probs = keep_min_p(probs, column([p.min_p for p in params]))
        u = [uniform(p.seed or 0, positions[i]) for p, i in zip(params, rows, strict=True)]
        return draw(probs, column(u, torch.float64))
