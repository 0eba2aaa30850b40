"""Rotary position embeddings, and the ways of stretching them over longer texts than a model was trained on.

A head's D numbers are D/2 pairs; a token at position t turns pair i by t times the pair's own angle.
Products of queries and keys then depend only on how far apart two tokens stand.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from course_lib.model.config import RopeParameters


def rope_frequencies(head_dim: int, theta: float) -> Float[Tensor, " half"]:
    """The angle by which one step in position turns each pair: theta^(-2i / head_dim), in radians.

    Source: Su et al. (2021), "RoFormer", section 3.2.2.
    """
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rope_table(
    positions: Int64[Tensor, "*batch T"], frequencies: Float[Tensor, " half"]
) -> tuple[Float[Tensor, "*batch T half"], Float[Tensor, "*batch T half"]]:
    """Cosines and sines of the angles by which each position turns each pair."""
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(
    x: Float[Tensor, "B T heads D"], cos: Float[Tensor, "*batch T half"], sin: Float[Tensor, "*batch T half"]
) -> Float[Tensor, "B T heads D"]:
    """Rotate the plane of coordinates i and i + D/2 of every head by the angle of its token's position.

    `cos` and `sin` are (T, D/2) where all sequences of the batch stand at the same positions, otherwise
    (B, T, D/2).

    That pairing (Hugging Face's "rotate half") is one of two in use; the other pairs 2i with 2i + 1
    (GGUF's order for Llamas, see `load.unpermute`). Source: Su et al. (2021), "RoFormer", equation 34.
    """
    first, second = x.chunk(2, dim=-1)  # each (B, T, heads, D/2)
    cos, sin = cos[..., None, :], sin[..., None, :]  # (..., T, 1, D/2): the same for every head
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def llama3_frequencies(
    frequencies: Float[Tensor, " half"],
    factor: float,
    original_positions: int,
    low_turns: float = 1.0,
    high_turns: float = 4.0,
) -> Float[Tensor, " half"]:
    """Slow the pairs down that make few turns within the original length; leave the fast ones alone.

    A pair that makes more than `high_turns` full turns tells near tokens apart and stays. One that makes
    fewer than `low_turns` has been seen at few of its angles: it is slowed down by `factor`, so that the
    longer text stays within those. Between lies a ramp.
    Source: Grattafiori et al. (2024), "The Llama 3 Herd of Models"; meta-llama/llama-models `model.py`.
    """
    turns = original_positions * frequencies / (2 * math.pi)
    kept = ((turns - low_turns) / (high_turns - low_turns)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def yarn_frequencies(
    head_dim: int,
    theta: float,
    factor: float,
    original_positions: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Float[Tensor, " half"]:
    """YaRN ("NTK by parts"): as in `llama3_frequencies`, but the ramp is straight over the pairs' numbers.

    It runs from the pair that makes `beta_fast` turns within the original length to the one that makes
    `beta_slow`, each rounded outwards to a whole pair.
    Source: Peng et al. (2023), "YaRN: Efficient Context Window Extension", section 3.2.
    """
    frequencies = rope_frequencies(head_dim, theta)

    def pair_with(turns: float) -> float:
        """The (fractional) number of the pair that makes so many turns: its frequency's formula, inverted."""
        return head_dim * math.log(original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(beta_fast)), 0)
    last = min(math.ceil(pair_with(beta_slow)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    slowed = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies * (1 - slowed) + frequencies / factor * slowed


def stretched_frequencies(head_dim: int, rope: RopeParameters) -> Float[Tensor, " half"]:
    """The frequencies that a checkpoint asks for."""
    frequencies = rope_frequencies(head_dim, rope.rope_theta)
    original = rope.original_max_position_embeddings
    match rope.rope_type:
        case "default":
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            low, high = rope.low_freq_factor, rope.high_freq_factor
            return llama3_frequencies(frequencies, rope.factor, original, low, high)
        case "yarn":
            return yarn_frequencies(
                head_dim, rope.rope_theta, rope.factor, original, rope.beta_fast, rope.beta_slow
            )
        case "table":
            return frequencies / torch.tensor(rope.factors, dtype=torch.float32, device=frequencies.device)
    raise ValueError(f"unknown rope_type {rope.rope_type!r}; there are default, linear, llama3, yarn, table")
