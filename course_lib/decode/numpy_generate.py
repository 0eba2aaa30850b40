"""The loop that writes text, in NumPy: run the model on all there is, choose a token, append it, again.

The definition of generation, not the way to do it fast: every step computes every token anew. `loop.py` has
the torch version, with a cache.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from course_lib.decode.numpy_sample import sample
from course_lib.parts import exercise

# Token ids in, logits for the token after each of them out.
Forward = Callable[[Int[np.ndarray, " t"]], Float[np.ndarray, "t vocab"]]


@exercise(day=7)
def generate(
    forward: Forward,
    prompt: Sequence[int],
    max_tokens: int,
    window: int,
    stop_ids: Collection[int] = (),
    seed: int = 0,
    **options: Any,
) -> Iterator[int]:
    """Continue a prompt: yield one token after another, each as soon as it is chosen.

    Args:
        forward: the model: (t,) ids to (t, vocab) logits, for 1 to `window` ids.
        prompt: at least one id; left as it is.
        max_tokens: end after so many new tokens.
        window: the most ids that `forward` can read; of a longer text it gets the last `window`.
        stop_ids: end after one of these; it is still yielded.
        seed: of the generator that gives one draw from [0, 1) for each token.
        options: temperature, top_k, top_p, min_p, as `sample` takes them.

    Raises:
        ValueError: the prompt is empty (when the first token is asked for).
    """
    ids = list(prompt)
    if not ids:
        raise ValueError("the prompt is empty: give at least one token to continue from")
    rng = np.random.default_rng(seed)
    for _ in range(max_tokens):
        logits = forward(np.array(ids[-window:]))[-1]  # (vocab,): what comes after the last token
        token = int(sample(logits, rng.random(), **options))
        yield token
        if token in stop_ids:
            return
        ids.append(token)
