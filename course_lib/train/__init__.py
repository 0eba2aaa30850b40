"""Training: data, optimizers, schedules, and what keeps a long run alive.

Parts in NumPy and in torch live side by side here: a name imports its module at first use, so that a lesson
that needs only NumPy never waits for torch.
"""

from course_lib.lazy import lazy_exports

__all__ = [
    "AdamW",
    "Diverged",
    "HeldOut",
    "Muon",
    "Recipe",
    "TokenLoader",
    "TrainingStopped",
    "adamw_step",
    "build_optimizer",
    "clip_grad_norm",
    "cosine_schedule",
    "evaluate",
    "fit",
    "load_checkpoint",
    "prepare",
    "save_checkpoint",
    "train_step",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.train.checkpoint": ["load_checkpoint", "save_checkpoint"],
        "course_lib.train.data": ["prepare"],
        "course_lib.train.loader": ["TokenLoader"],
        "course_lib.train.loop": ["HeldOut", "TrainingStopped", "fit"],
        "course_lib.train.muon": ["Muon", "build_optimizer"],
        "course_lib.train.optim": ["AdamW", "adamw_step", "clip_grad_norm"],
        "course_lib.train.recipe": ["Recipe"],
        "course_lib.train.schedule": ["cosine_schedule"],
        "course_lib.train.step": ["Diverged", "evaluate", "train_step"],
    },
)
