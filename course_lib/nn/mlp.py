"""An MLP language model: embed the last few tokens, one hidden layer, one logit a vocabulary entry.

After Bengio et al. (2003), "A Neural Probabilistic Language Model", equation 1, without its direct
connections and with GELU in place of tanh.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from course_lib.nn.layers import (
    cross_entropy_backward,
    embedding_backward,
    gelu,
    gelu_backward,
    linear,
    linear_backward,
)
from course_lib.nn.sgd import sgd_step
from course_lib.numerics import cross_entropy
from course_lib.parts import exercise


def mlp_init(vocab: int, context: int, width: int, hidden: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Fresh float32 parameters, by name; the same seed gives the same ones.

    Weights are normal with a standard deviation of 1/sqrt(fan_in), so that a layer's outputs are as
    large as its inputs (Day 4 says why); the output layer's are ten times smaller, so that all
    tokens begin almost equally likely. Biases are zero.
    """
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, scale: float) -> np.ndarray:
        return (scale * rng.normal(size=(rows, columns))).astype(np.float32)

    return {
        "embedding": normal(vocab, width, 1.0),
        "hidden.weight": normal(context * width, hidden, (context * width) ** -0.5),
        "hidden.bias": np.zeros(hidden, dtype=np.float32),
        "output.weight": normal(hidden, vocab, 0.1 * hidden**-0.5),
        "output.bias": np.zeros(vocab, dtype=np.float32),
    }


def mlp_logits(
    params: Mapping[str, np.ndarray], contexts: Int[np.ndarray, "batch context"]
) -> Float[np.ndarray, "batch vocab"]:
    """The forward pass alone: logits for the token after each context."""
    embedded = params["embedding"][contexts].reshape(len(contexts), -1)  # (batch, context * width)
    hidden = gelu(linear(embedded, params["hidden.weight"], params["hidden.bias"]))
    return linear(hidden, params["output.weight"], params["output.bias"])


@exercise(day=3)
def mlp_train_step(
    params: Mapping[str, np.ndarray],
    contexts: Int[np.ndarray, "batch context"],
    targets: Int[np.ndarray, " batch"],
    learning_rate: float,
) -> float:
    """Forward, backward and one step of gradient descent on one batch.

    Args:
        params: "embedding" (vocab, width), "hidden.weight" (context * width, hidden), "hidden.bias"
            (hidden,), "output.weight" (hidden, vocab), "output.bias" (vocab,); changed in place.
        contexts: the last tokens, oldest first.
        targets: the token that came next.
        learning_rate: above 0.

    Returns:
        The mean cross-entropy in nats, as it was before the step.
    """
    batch, context = contexts.shape
    table, w1, w2 = params["embedding"], params["hidden.weight"], params["output.weight"]

    # Forward, keeping what each backward will ask for.
    e = table[contexts].reshape(batch, -1)  # (batch, context * width)
    z = linear(e, w1, params["hidden.bias"])  # (batch, hidden)
    h = gelu(z)
    logits = linear(h, w2, params["output.bias"])  # (batch, vocab)
    loss = cross_entropy(logits, targets)

    # Backward: the same lines from the last to the first. Nothing is updated before all are done.
    dlogits = cross_entropy_backward(logits, targets)
    dh, dw2, db2 = linear_backward(dlogits, h, w2)
    dz = gelu_backward(dh, z)
    de, dw1, db1 = linear_backward(dz, e, w1)
    dtable = embedding_backward(de.reshape(batch, context, -1), contexts, len(table))

    grads = {
        "embedding": dtable,
        "hidden.weight": dw1,
        "hidden.bias": db1,
        "output.weight": dw2,
        "output.bias": db2,
    }
    sgd_step(params, grads, learning_rate)
    return loss
