"""Training: data, optimizers, schedules, and what keeps a long run alive.

Parts in NumPy and in torch live side by side here: a name imports its module at first use, so that a lesson
that needs only NumPy never waits for torch.
"""

from course_lib.lazy import lazy_exports

__all__ = [
    "AdamW",
    "Diverged",
    "HeldOut",
    "LossScaler",
    "Muon",
    "Packed",
    "Recipe",
    "ScalingLaw",
    "TokenLoader",
    "TrainingStopped",
    "adamw_step",
    "build_optimizer",
    "checkpoint_interval",
    "clean_text",
    "clip_grad_norm",
    "clusters",
    "cosine_schedule",
    "document_ids",
    "document_mask",
    "evaluate",
    "fit",
    "fit_scaling_law",
    "jaccard",
    "load_checkpoint",
    "loss_mask",
    "lost_share",
    "mfu",
    "minhash_duplicates",
    "mix",
    "pack_documents",
    "prepare",
    "quality_problems",
    "save_checkpoint",
    "shingles",
    "train_step",
    "training_flops",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.train.checkpoint": ["load_checkpoint", "save_checkpoint"],
        "course_lib.train.clean": ["clean_text", "quality_problems"],
        "course_lib.train.data": ["prepare"],
        "course_lib.train.dedup": ["clusters", "jaccard", "minhash_duplicates", "shingles"],
        "course_lib.train.faults": ["checkpoint_interval", "lost_share"],
        "course_lib.train.loader": ["TokenLoader"],
        "course_lib.train.loop": ["HeldOut", "TrainingStopped", "fit"],
        "course_lib.train.mixing": ["mix"],
        "course_lib.train.muon": ["Muon", "build_optimizer"],
        "course_lib.train.optim": ["AdamW", "adamw_step", "clip_grad_norm"],
        "course_lib.train.packing": [
            "Packed",
            "document_ids",
            "document_mask",
            "loss_mask",
            "pack_documents",
        ],
        "course_lib.train.precision": ["LossScaler"],
        "course_lib.train.recipe": ["Recipe"],
        "course_lib.train.scaling": ["ScalingLaw", "fit_scaling_law", "mfu", "training_flops"],
        "course_lib.train.schedule": ["cosine_schedule"],
        "course_lib.train.step": ["Diverged", "evaluate", "train_step"],
    },
)
