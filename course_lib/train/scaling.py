"""How much a run computes, how well it uses the machine, and what loss a budget buys."""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import huber

from course_lib.numerics import logsumexp
from course_lib.parts import exercise


class ScalingLaw(NamedTuple):
    """Loss in nats a token as a function of weights N and training tokens D: E + A / N^alpha + B / D^beta.

    E is what no model of the family gets below: the entropy of the text, as far as it can see it.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, weights: Any, tokens: Any) -> Any:
        """The predicted loss; `weights` and `tokens` are numbers, or arrays that broadcast."""
        return self.E + self.A / weights**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Weights and tokens with the least loss among all with 6 * weights * tokens = flops.

        Source: Hoffmann et al. (2022), equation 4.
        """
        total = self.alpha + self.beta
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        weights = g * (flops / 6) ** (self.beta / total)
        return weights, flops / 6 / weights


# Hoffmann et al. (2022), equation 10, with the digits of the paper's TeX source; and the fit of
# Besiroglu et al. (2024), "Chinchilla Scaling: A replication attempt", table 1, to points read off the
# paper's figure 4.
HOFFMANN = ScalingLaw(E=1.6934, A=406.4, alpha=0.3392, B=410.7, beta=0.2849)
BESIROGLU = ScalingLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)


@exercise(day=8)
def training_flops(
    weights: int,
    tokens: int,
    layers: int = 0,
    width: int = 0,
    context: int = 0,
    causal: bool = False,
    recompute: bool = False,
) -> int:
    """FLOPs of training on `tokens` tokens: 6 * weights * tokens, and attention's share.

    Forward, a token takes 2 FLOPs for each weight, and in each layer 4 * width for each key that
    its query meets (2 for the score, 2 for the value, summed over heads). Backward costs twice as
    much. With layers or width 0 there is no attention, and what is left is 6ND.

    Args:
        weights: those that multiply: all matrices, with the output layer; no look-up tables.
        tokens: how many are trained on, each epoch's counted.
        layers: of attention.
        width: of all query heads together: heads * head_dim.
        context: tokens in a window, all of which are keys.
        causal: count only keys a query may see: (context + 1) / 2 on average.
        recompute: activations are not kept, but computed a second time on the way back.

    Source: Kaplan et al. (2020), section 2.1; Chowdhery et al. (2022), "PaLM", appendix B.
    """
    twice_the_keys = context + 1 if causal else 2 * context
    forward = 2 * weights + 2 * layers * width * twice_the_keys
    return (4 if recompute else 3) * forward * tokens


@exercise(day=8)
def mfu(flops: float, seconds: float, peak: float, devices: int = 1) -> float:
    """Model FLOPs utilization: what the model needed, out of what the machine could have done.

    Args:
        flops: that the model's mathematics takes; what is recomputed to save memory is not counted.
        seconds: that they took, waiting for data and neighbors included.
        peak: FLOPs a second of one device, dense, in the type that the products run in.
        devices: how many were busy.

    Returns:
        A share, 1.0 at the peak.

    Raises:
        ValueError: seconds, peak or devices is not positive.

    Source: Chowdhery et al. (2022), "PaLM", section 4.1.
    """
    if min(seconds, peak, devices) <= 0:
        raise ValueError(f"{seconds} s, peak {peak}, {devices} devices: expected positive numbers")
    return flops / (seconds * peak * devices)


@exercise(day=8)
def fit_scaling_law(
    weights: Float[np.ndarray, " runs"],
    tokens: Float[np.ndarray, " runs"],
    losses: Float[np.ndarray, " runs"],
    delta: float = 1e-3,
) -> ScalingLaw:
    """Fit E, A, alpha, B and beta to the final losses of training runs.

    Minimizes the sum, over runs, of the Huber loss of log(predicted) - log(measured). Huber's loss
    is a square below delta and a straight line above, so that a failed run does not bend the law.

    Args:
        weights: N of each run; tokens: its D; losses: in nats a token. All positive, of one shape.
        delta: where the square ends; 1e-3 is a thousandth of the loss.

    Returns:
        ScalingLaw(E, A, alpha, B, beta).

    Raises:
        ValueError: fewer than five runs: there are five unknowns.

    Source: Hoffmann et al. (2022), section 3.3 and appendix D.2.
    """
    if len(losses) < 5:
        raise ValueError(f"{len(losses)} runs cannot determine five unknowns; give five or more")
    log_n, log_d, log_loss = np.log(weights), np.log(tokens), np.log(losses)
    # Around the means, a change of an exponent leaves the size of its term alone. Around 0 the
    # two can hardly be told apart, and the search ends early.
    n_mean, d_mean = log_n.mean(), log_d.mean()

    def objective(p: Float[np.ndarray, " 5"]) -> float:
        log_e, log_a, alpha, log_b, beta = p
        terms = (
            np.full_like(log_n, log_e),
            log_a - alpha * (log_n - n_mean),
            log_b - beta * (log_d - d_mean),
        )
        # Divided by delta, its size is near 1: an optimizer's stopping rule counts on that.
        return float(huber(delta, logsumexp(np.stack(terms), axis=0) - log_loss).sum()) / delta

    low = log_loss.min()  # to begin with, E is somewhat below the best run, and each term 10% of it
    exponents = product((0.2, 0.6), repeat=2)
    starts = [(low - 0.2, low - 2.3, alpha, low - 2.3, beta) for alpha, beta in exponents]
    options = {"maxfun": 20_000}
    fits = [minimize(objective, start, method="L-BFGS-B", options=options) for start in starts]
    log_e, log_a, alpha, log_b, beta = min(fits, key=lambda fit: fit.fun).x
    a, b = np.exp(log_a + alpha * n_mean), np.exp(log_b + beta * d_mean)
    return ScalingLaw(float(np.exp(log_e)), float(a), float(alpha), float(b), float(beta))
