"""Choosing the next token from the logits: the best one, or one drawn from a filtered distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How one request wants its tokens chosen, and when it wants to stop.

    temperature: 0 takes the most probable token; 1 draws from the model's own distribution; lower is sharper.
    top_k: draw only from the k most probable tokens (0: from all).
    top_p: draw only from the fewest tokens that together have probability p (1: from all).
    min_p: draw only from tokens at least min_p times as probable as the most probable one (0: from all).
    seed: the same seed gives the same text; None takes a fresh one.
    max_tokens: end after so many tokens. stop_token_ids: end at these, besides the model's own end tokens.
    ignore_eos: go on at the model's own end tokens (for benchmarks).
    stop: end where one of these texts begins; a single text is taken as a list of one.
    n: so many texts for one prompt, which is computed once.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    n: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

        def must(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")

        must(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a number from 0 up")
        must(self.top_k >= 0, "top_k", "0 (off) or a number of tokens")
        must(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        must(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        must(self.max_tokens >= 1, "max_tokens", "at least 1")
        must(self.n >= 1, "n", "at least 1")
        must(all(isinstance(text, str) and text for text in self.stop), "stop", "texts, none of them empty")
        must(self.seed is None or 0 <= self.seed < 2**64, "seed", "None or a whole number from 0 to 2^64 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


def uniform(seed: int, position: int, purpose: int = 0) -> float:
    """A number in [0, 1) that depends on its arguments and on nothing else.

    Philox scrambles a counter under a key, so the draw for position 1000 needs no 999 draws before it:
    who else is in the batch, or how often a request was interrupted, cannot change a text. `purpose`
    separates draws at one position (choose, accept a draft, ...). Source: Salmon et al. (2011), "Parallel
    Random Numbers: As Easy as 1, 2, 3".
    """
    bits = np.random.Philox(key=seed, counter=(position, purpose, 0, 0)).random_raw()
    return (int(bits) >> 12) / 2**52


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
    # A few hundred tokens hold nearly everything, and finding them is ten times faster than sorting all.
    ranked = probs.topk(min(1024, probs.shape[-1]), dim=-1).values
    if (ranked.sum(-1, keepdim=True) < share).any():
        ranked = probs.sort(dim=-1, descending=True).values  # (B, V)
    before = ranked.cumsum(-1) - ranked  # what the more probable tokens hold together
    border = ranked.gather(1, (before < share).sum(-1, keepdim=True) - 1)  # (B, 1)
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

    The filters run in Hugging Face's order: temperature, top-k, top-p, min-p; each sees what the one
    before it left.
    """

    def __init__(self, params: Sequence[SamplingParams]):
        self.params = list(params)
        if missing := [i for i, p in enumerate(self.params) if not p.greedy and p.seed is None]:
            raise ValueError(
                f"Row {missing[0]} samples without a seed: give one, so that its text can be repeated."
            )

    def __call__(self, logits: Float[Tensor, "B V"], positions: Sequence[int]) -> Int64[Tensor, " B"]:
        """`positions[i]` is the place in its sequence of the token that row i chooses now."""
        best = logits.argmax(-1)
        if all(p.greedy for p in self.params):
            return best

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

        if logits.device.type == "mps":  # Metal has no float64, which the running sum needs
            logits = logits.cpu()
        probs = torch.softmax(logits.float() / column([p.temperature or 1.0 for p in self.params]), dim=-1)
        if any(p.top_k for p in self.params):
            probs = keep_top_k(probs, [p.top_k for p in self.params])
        if any(p.top_p < 1 for p in self.params):
            probs = keep_top_p(probs, column([p.top_p for p in self.params]))
        if any(p.min_p for p in self.params):
            probs = keep_min_p(probs, column([p.min_p for p in self.params]))
        u = [uniform(p.seed or 0, position) for p, position in zip(self.params, positions, strict=True)]
        drawn = draw(probs, column(u, torch.float64))
        greedy = torch.tensor([p.greedy for p in self.params], device=logits.device)
        return torch.where(greedy, best.to(logits.device), drawn)
