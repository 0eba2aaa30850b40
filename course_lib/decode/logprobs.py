"""Log-probabilities of chosen tokens and of their rivals, from the model's own distribution."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """A chosen token's log-probability, and (token, log-probability) of the most probable in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(
    logits: Float[Tensor, "B V"], tokens: Sequence[int], numbers: Sequence[int | None]
) -> list[TokenLogprobs | None]:
    """For each row the token chosen from it and the `numbers[i]` best; None for rows that want nothing."""
    told: list[TokenLogprobs | None] = [None] * len(tokens)
    rows = [i for i, number in enumerate(numbers) if number is not None]
    if not rows:
        return told
    wanted = logits if len(rows) == len(tokens) else logits[rows]
    logprobs = torch.log_softmax(wanted.float(), dim=-1)
    chosen = logprobs[range(len(rows)), [tokens[i] for i in rows]].tolist()
    best = logprobs.topk(min(max(numbers[i] or 0 for i in rows), logprobs.shape[-1]), dim=-1)
    values, indices = best.values.tolist(), best.indices.tolist()
    for at, i in enumerate(rows):
        top = list(zip(indices[at], values[at], strict=True))[: numbers[i]]
        told[i] = TokenLogprobs(tokens[i], chosen[at], tuple(top))
    return told
