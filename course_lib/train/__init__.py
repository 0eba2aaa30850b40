"""Training: optimizers, schedules, and what keeps a run stable."""

from course_lib.train.optim import AdamW, adamw_step, clip_grad_norm
from course_lib.train.schedule import cosine_schedule

__all__ = ["AdamW", "adamw_step", "clip_grad_norm", "cosine_schedule"]
