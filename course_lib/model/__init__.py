"""Models: configuration, layers, the decoder, and how checkpoints are read."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.model.config": ["ModelConfig", "RopeParameters"],
        "course_lib.model.decoder": ["Decoder", "init_weights"],
        "course_lib.model.errors": ["CheckpointError"],
        "course_lib.model.layers": [
            "grouped_query_attention",
            "moe_layer",
            "rms_norm",
            "sliding_window_mask",
            "swiglu",
        ],
        "course_lib.model.load": ["load_model", "open_checkpoint"],
        "course_lib.model.rope": ["apply_rope", "rope_frequencies", "rope_table", "yarn_frequencies"],
    },
)
