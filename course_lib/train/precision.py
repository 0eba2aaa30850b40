"""Keeping small gradients alive in 16 bits."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from course_lib.parts import exercise


@exercise(day=8)
class LossScaler:
    """Dynamic loss scaling: the loss is multiplied by `scale`, the gradients are divided by it.

    A gradient that is not finite says that the scale is too large: it is halved, and the step is
    left out. After growth_interval steps in a row without that, it is doubled.

    Args:
        scale: of the first step; a power of two, so that multiplying by it rounds nothing.
        growth_interval: good steps until the scale doubles, 1 or more.

    Attributes:
        scale: what to multiply the next loss by.
        good_steps: finite steps since the scale last changed.

    Source: Micikevicius et al. (2018), "Mixed Precision Training", section 3.2.
    """

    def __init__(self, scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.scale = scale
        self.growth_interval = growth_interval
        self.good_steps = 0

    def unscale(
        self,
        grads: Sequence[Float[np.ndarray, "..."]],
    ) -> list[Float32[np.ndarray, "..."]] | None:
        """Return the gradients of the unscaled loss, and adapt the scale for the next step.

        Args:
            grads: gradients of scale * loss, of any float type.

        Returns:
            New float32 arrays; or None if any entry is infinite or NaN: leave this step out.
        """
        if not all(np.isfinite(grad).all() for grad in grads):
            self.scale /= 2
            self.good_steps = 0
            return None
        # First to float32: in float16 the division would round small gradients to zero again.
        unscaled = [grad.astype(np.float32) / np.float32(self.scale) for grad in grads]
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale *= 2
            self.good_steps = 0
        return unscaled
