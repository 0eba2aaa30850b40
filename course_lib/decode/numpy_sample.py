"""Choosing the next token from logits, in NumPy: greedy, or drawn from a filtered distribution.

`sampler.py` has the same for torch, with the same filters in the same order.
"""

import numpy as np
from jaxtyping import Float, Int

from course_lib.numerics import sample_categorical, softmax
from course_lib.parts import exercise


@exercise(day=7)
def keep_top_p(probs: Float[np.ndarray, "... vocab"], p: float) -> Float[np.ndarray, "... vocab"]:
    """Keep each row's fewest most probable tokens that hold at least a share p of its sum.

    Args:
        probs: none negative, any leading axes; rows need not sum to 1.
        p: above 0, at most 1.

    Returns:
        An array of probs' shape and type: what was kept, not divided by its sum, and 0 elsewhere.
        Tokens as probable as the last one kept stay, too.

    Raises:
        ValueError: p is not above 0 and at most 1.

    Source: Holtzman et al. (2019), "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top-p is {p}: expected a share above 0 and at most 1")
    ranked = np.sort(probs, axis=-1)[..., ::-1]  # the most probable first
    # float64: in float32 a running sum over 50,000 tokens may end above or below the true one.
    running = np.cumsum(ranked, axis=-1, dtype=np.float64)
    before = running - ranked  # what the more probable tokens hold together
    kept = (before < p * running[..., -1:]).sum(axis=-1, keepdims=True)  # (..., 1), at least 1
    border = np.take_along_axis(ranked, kept - 1, axis=-1)
    return np.where(probs >= border, probs, 0)


@exercise(day=7)
def sample(
    logits: Float[np.ndarray, "... vocab"],
    uniform: Float[np.ndarray, "..."] | float,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Int[np.ndarray, "..."]:
    """Choose a token for each row: the best, or one drawn from what the filters leave.

    First temperature, then top-k, top-p, min-p, each on what the one before it left.

    Args:
        logits: one row a choice, below +inf; -inf rules a token out.
        uniform: one draw from [0, 1) a row; for a single row a plain number will do.
        temperature: from 0 up. 0 takes the most probable token (of equal ones the first), whatever
            the filters are; 1 is the model's own distribution; lower is sharper.
        top_k: from 0 up: keep the k most probable tokens, and those as probable as the k-th; 0
            keeps all.
        top_p: above 0, at most 1: keep the fewest tokens that hold this share (`keep_top_p`); 1
            keeps all.
        min_p: 0 to 1: keep tokens at least this many times as probable as the best; 0 keeps all.

    Returns:
        (...), integers in 0..vocab-1.

    Raises:
        ValueError: a setting outside its range; a row with a NaN or +inf, or without a
            finite logit. At temperature 0, too.

    Source: Fan et al. (2018) for top-k; Holtzman et al. (2019) for top-p; Nguyen et al. (2024) for
    min-p.
    """
    if not temperature >= 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(f"{temperature=}, {top_k=}, {top_p=}, {min_p=}: one is out of its range")
    best = logits.max(axis=-1, keepdims=True)  # NaN if one of the row is
    if not np.isfinite(best).all():
        raise ValueError(f"the largest logits are {best.ravel()[:5]}: nothing to choose by")
    if temperature == 0:
        return logits.argmax(axis=-1)
    # Subtracted before the division: a tiny temperature then gives -inf, and never inf - inf.
    probs = softmax((logits - best) / temperature)
    if top_k > 0:
        k = min(top_k, logits.shape[-1])
        kth = np.sort(probs, axis=-1)[..., -k, None]
        probs = np.where(probs >= kth, probs, 0)
    if top_p < 1:
        probs = keep_top_p(probs, top_p)
    # The last filter; what is left is drawn from relative to its sum.
    probs = np.where(probs >= min_p * probs.max(axis=-1, keepdims=True), probs, 0)
    return sample_categorical(probs, np.asarray(uniform))
