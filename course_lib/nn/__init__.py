"""Neural networks in NumPy, with every backward pass by hand: layers, descent, an MLP language model."""

from course_lib.nn.layers import (
    cross_entropy_backward,
    embedding_backward,
    gelu,
    gelu_backward,
    linear,
    linear_backward,
)
from course_lib.nn.mlp import mlp_init, mlp_logits, mlp_train_step
from course_lib.nn.norm import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from course_lib.nn.sgd import average_gradients, sgd_step

__all__ = [
    "average_gradients",
    "cross_entropy_backward",
    "embedding_backward",
    "gelu",
    "gelu_backward",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "mlp_init",
    "mlp_logits",
    "mlp_train_step",
    "rms_norm",
    "rms_norm_backward",
    "sgd_step",
]
