"""The arithmetic under every language model: probabilities, losses, sampling, number formats.

NumPy only. Whatever turns logits into numbers we act on computes in at least float32, whatever the
logits' own type: PyTorch and vLLM do the same before they sample.
"""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Int

from course_lib.parts import exercise


def at_least_float32(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Widen float16 to float32 and integers to float64; float32 and float64 stay as they are."""
    x = np.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float32), copy=False)


@exercise(day=1)
def contractions() -> dict[str, str]:
    """Five products of a transformer, each as the subscript string that `np.einsum` takes.

    b batch, t query position, s key position, h head, k width of a head, d width of the model,
    v vocabulary entry. You are free to use other letters; the order of the axes is what counts.

    Returns a dictionary with these five keys:
        "project"  x (b,t,d), w (d,h,k)          -> (b,t,h,k)  activations into each head's queries
        "scores"   q (b,t,h,k), keys (b,s,h,k)   -> (b,h,t,s)  every query with every key, per head
        "mix"      p (b,h,t,s), values (b,s,h,k) -> (b,t,h,k)  values averaged with weights p
        "merge"    o (b,t,h,k), w (h,k,d)        -> (b,t,d)    heads back into the model's width
        "unembed"  x (b,t,d), table (v,d)        -> (b,t,v)    one logit a vocabulary entry

    Source: Vaswani et al. (2017), section 3.2.
    """
    return {
        "project": "btd,dhk->bthk",
        "scores": "bthk,bshk->bhts",
        "mix": "bhts,bshk->bthk",
        "merge": "bthk,hkd->btd",
        "unembed": "btd,vd->btv",
    }


@exercise(day=1)
def softmax(x: Float[np.ndarray, "..."], axis: int = -1) -> Float[np.ndarray, "..."]:
    """Turn logits into probabilities along one axis: exp(x_i) / sum_j exp(x_j), never overflowing.

    Args:
        x: logits of any shape; -inf rules a choice out: its probability is exactly 0.
        axis: the axis along which the result sums to 1.

    Returns:
        An array of x's shape, in float32 or wider (see `at_least_float32`). Where every logit is
        -inf there is no distribution: NaN, as in PyTorch.

    Source: Blanchard, Higham & Higham (2021), "Accurately computing the log-sum-exp and softmax
    functions".
    """
    x = at_least_float32(x)  # in float16, 65,520 equal logits already sum to infinity
    shifted = x - x.max(axis=axis, keepdims=True)  # the largest becomes 0: exp is at most 1
    weights = np.exp(shifted)
    return weights / weights.sum(axis=axis, keepdims=True)


@exercise(day=1)
def logsumexp(x: Float[np.ndarray, "..."], axis: int = -1) -> Float[np.ndarray, "..."]:
    """log(sum(exp(x))) along one axis, without overflow or underflow; that axis disappears.

    Args:
        x: numbers of any shape; -inf and +inf are allowed.
        axis: the axis to sum over.

    Returns:
        float32 or wider (see `at_least_float32`). Where every entry is -inf the answer is
        log(0) = -inf, not NaN.

    Source: Blanchard, Higham & Higham (2021).
    """
    x = at_least_float32(x)
    top = x.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)  # inf - inf is NaN: no shift where top is infinite
    with np.errstate(divide="ignore"):  # log(0) is meant where everything is -inf
        return np.log(np.exp(x - top).sum(axis=axis)) + top.squeeze(axis)


@exercise(day=1)
def log_softmax(x: Float[np.ndarray, "..."], axis: int = -1) -> Float[np.ndarray, "..."]:
    """Log-probabilities along one axis: x - logsumexp(x).

    Safer than log(softmax(x)), where a small probability has already become 0.

    Args:
        x: logits of any shape.
        axis: the axis along which the probabilities sum to 1.

    Returns:
        An array of x's shape, in float32 or wider.
    """
    return x - np.expand_dims(logsumexp(x, axis=axis), axis)


@exercise(day=1)
def cross_entropy(logits: Float[np.ndarray, "... vocab"], targets: Int[np.ndarray, "..."]) -> float:
    """Mean of -log p(target) over all positions, in nats: what training minimizes.

    Args:
        logits: (..., vocab), unnormalized.
        targets: (...), the index that really occurred at each position.

    Returns:
        A Python float.

    Raises:
        ValueError: targets doesn't have the shape of logits without its last axis, is empty, or
            holds an index outside 0..vocab-1 (NumPy would take -1 for the last entry, silently).
    """
    vocab = logits.shape[-1]
    if targets.shape != logits.shape[:-1] or targets.size == 0:
        raise ValueError(f"targets {targets.shape} don't fit logits {logits.shape}, or are empty")
    low, high = targets.min(), targets.max()
    if low < 0 or high >= vocab:
        raise ValueError(f"targets lie in {low}..{high}; expected 0..{vocab - 1}")
    chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # -log softmax(logits)[target] = logsumexp(logits) - logits[target]: no probability is formed.
    return float(np.mean(logsumexp(logits) - chosen))


@exercise(day=1)
def perplexity(logprobs: Iterable[Float[np.ndarray, " tokens"]]) -> float:
    """exp of the mean negative log-probability a token: how many equal choices it feels like.

    Args:
        logprobs: one array a document, holding log p in nats of each token that really occurred.
            Documents differ in length and may be empty; every token counts the same.

    Returns:
        A Python float, 1 or more.

    Raises:
        ValueError: there is no token at all.

    Source: Jelinek et al. (1977), "Perplexity: a measure of the difficulty of speech recognition
    tasks".
    """
    total, count = 0.0, 0
    for document in logprobs:
        total += np.sum(document, dtype=np.float64)  # in float16 a long sum overflows
        count += len(document)
    if count == 0:
        raise ValueError("perplexity needs at least one token")
    return float(np.exp(-total / count))


@exercise(day=1)
def numerical_gradient(
    f: Callable[[np.ndarray], float], x: Float[np.ndarray, "..."], h: float = 1e-5
) -> Float[np.ndarray, "..."]:
    """Gradient of f at x by central differences, (f(x + h) - f(x - h)) / 2h in each entry.

    Args:
        f: takes an array of x's shape, returns one number.
        x: any shape, also () and integers; left as it was.
        h: the step; 1e-5 is near the best for float64.

    Returns:
        float64, x's shape. Costs 2 * x.size calls of f: a tool to test gradients, not to train.
    """
    x = np.array(x, dtype=np.float64)  # a copy, and of floats: an integer array would drop the step
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        kept = x[i]
        x[i] = kept + h
        above = f(x)
        x[i] = kept - h
        below = f(x)
        x[i] = kept
        gradient[i] = (above - below) / (2 * h)
    return gradient


@exercise(day=1)
def sample_categorical(
    probs: Float[np.ndarray, "... vocab"], uniform: Float[np.ndarray, "..."]
) -> Int[np.ndarray, "..."]:
    """Draw one index a row by inverse CDF: the first whose cumulative probability exceeds the draw.

    The randomness comes in as an argument, so the same draws always give the same tokens.

    Args:
        probs: (..., vocab), none negative; each row is taken relative to its own sum, so a row
            that adds up to 0.9999 by rounding, or to 7, is as good as one that adds up to 1.
        uniform: (...), one draw from [0, 1) a row; for a single row a plain number will do.

    Returns:
        (...), integers in 0..vocab-1; never an index of probability 0.

    Raises:
        ValueError: a row's sum is 0, NaN or infinite, or a draw lies outside [0, 1).
    """
    uniform = np.asarray(uniform)
    if not np.all((uniform >= 0) & (uniform < 1)):
        raise ValueError("uniform draws must lie in [0, 1): 0 may occur, 1 may not")
    cdf = np.cumsum(probs, axis=-1, dtype=np.float64)  # (..., vocab), rising
    total = cdf[..., -1:]  # (..., 1)
    if not np.all((total > 0) & np.isfinite(total)):
        raise ValueError("each row of probs needs a positive, finite sum")
    # The entries at or below the threshold all lie before the one we want: their number is its
    # index. Scaling by the total keeps the threshold under the last entry whatever was rounded.
    return (cdf <= uniform[..., None] * total).sum(axis=-1)


@exercise(day=1)
def round_to_bfloat16(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Round to the nearest bfloat16, ties to even, as a float32 whose lower 16 bits are zero.

    bfloat16 is the upper half of a float32: the sign, 8 exponent bits, 7 of 23 mantissa bits.

    Args:
        x: any shape; float32, or what converts to it.

    Returns:
        float32, x's shape. Values that round beyond the largest bfloat16, about 3.39e38, become
        infinite; NaN stays NaN; infinities, both zeros and subnormals are kept.

    Source: `round_to_nearest_even` in PyTorch's torch/headeronly/util/BFloat16.h (2.13.0).
    """
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    # A NaN with all its set mantissa bits in the lower half would turn into infinity. Setting the
    # top mantissa bit keeps it a NaN; clearing the lower half leaves nothing to round.
    bits = np.where(np.isnan(x), bits & 0xFFFF0000 | 0x00400000, bits)
    # Adding 0x7FFF carries into the upper half if the lower half is more than one half of its
    # range; adding 1 more if the upper half is odd carries at exactly one half, too: ties to even.
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) & 0xFFFF0000).view(np.float32)
