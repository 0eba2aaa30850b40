"""Learning from a larger model: targets are its probabilities, not only the next token."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from course_lib.train.loader import TokenLoader


class TeachingLoader:
    """A TokenLoader whose targets are a teacher's opinion of each next token, mixed with the truth.

    teacher: ids (B, T) to logits (B, T, V), of the student's vocabulary. truth: the share of the token that
    really follows; the teacher's probabilities, at temperature 1, have the rest.

    Cross-entropy against such targets is, up to a constant, the divergence of the student from them.

    Source: Hinton, Vinyals & Dean (2015), "Distilling the Knowledge in a Neural Network".
    """

    def __init__(self, loader: TokenLoader, teacher: nn.Module, truth: float = 0.0) -> None:
        if not 0 <= truth <= 1:
            raise ValueError(f"truth is {truth}; expected a share from 0 to 1")
        self.loader, self.teacher, self.truth = loader, teacher.eval(), truth
        self.rank = loader.rank

    @torch.no_grad()
    def next_batch(
        self,
    ) -> tuple[Int64[np.ndarray, "batch block"], Float32[np.ndarray, "batch block vocab"]]:
        """The inputs, and a distribution for the token after each."""
        inputs, targets = self.loader.next_batch()
        device = next(self.teacher.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            logits = self.teacher(torch.from_numpy(inputs).to(device))  # (B, T, V)
        opinion = (1 - self.truth) * logits.float().softmax(-1).cpu().numpy()
        rows = np.take_along_axis(opinion, targets[..., None], axis=-1)
        np.put_along_axis(opinion, targets[..., None], rows + np.float32(self.truth), axis=-1)
        return inputs, opinion

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
