"""What a run is told: sizes, rates and how they change, and when to look and to save."""

from dataclasses import dataclass
from typing import Literal

import torch

from course_lib.train.schedule import cosine_schedule


@dataclass(frozen=True)
class Recipe:
    """A training run in numbers. Steps count from 1.

    steps           optimizer steps of the whole run
    batch_size      windows in a forward pass, on each rank
    accumulation    forward passes in a step
    block_size      tokens in a window
    lr              AdamW's highest rate: embeddings, biases, norms
    muon_lr         Muon's: the matrices inside the blocks; None gives them to AdamW as well
    warmup          steps of the straight line up from 0
    cooldown        steps of the straight line down to 0 at the end (trapezoid)
    schedule        "trapezoid" stays at the peak until the cooldown, so a run can be lengthened or ended
                    early by choosing `steps` anew; "cosine" falls all the way
    clip            longest gradient that is let through
    seed            of the weights, the order of the data and the dropout
    precision       "bfloat16": under autocast; "float32": without
    evaluate_every, save_every: in steps; 0 means only at the end
    """

    steps: int
    batch_size: int = 16
    accumulation: int = 1
    block_size: int = 256
    lr: float = 3e-3
    muon_lr: float | None = 3e-3
    weight_decay: float = 0.1
    warmup: int = 20
    cooldown: int = 0
    schedule: Literal["trapezoid", "cosine"] = "trapezoid"
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulation, self.block_size) < 1:
            raise ValueError("steps, batch_size, accumulation and block_size must be 1 or more")
        if not 0 <= self.warmup + self.cooldown <= self.steps:
            raise ValueError(
                f"warmup {self.warmup} and cooldown {self.cooldown} do not fit into {self.steps} steps"
            )

    @property
    def tokens(self) -> int:
        """Tokens that one rank reads in a step."""
        return self.batch_size * self.accumulation * self.block_size

    @property
    def dtype(self) -> torch.dtype:
        """What autocast computes in."""
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[self.precision]

    def factor(self, step: int) -> float:
        """What every group's peak rate is multiplied by at this step, from 0 to 1."""
        if self.schedule == "cosine":
            return cosine_schedule(step, 1.0, self.warmup, self.steps)
        up = step / self.warmup if step < self.warmup else 1.0
        left = self.steps - step + 1  # the last step still moves
        down = left / (self.cooldown + 1) if left <= self.cooldown else 1.0
        return up * down
