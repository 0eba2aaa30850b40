"""One step of training, and how good a model is."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from course_lib.parts import exercise


class Diverged(ArithmeticError):
    """The gradient is no longer finite: this step was not made, and the weights are those before it."""


@exercise(day=9)
def train_step(
    model: nn.Module,
    optimizer: Any,
    batches: Sequence[tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]],
    clip: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[float, float]:
    """One optimizer step on the mean loss of several batches of one size: gradient accumulation.

    The forward passes run under autocast to `dtype`; the weights stay in their own. Float32 means
    no autocast.

    Args:
        model: ids (B, T) to logits (B, T, V).
        optimizer: has zero_grad() and step().
        batches: (inputs, targets), on any device, each target the token that follows its input. To
            learn from another model, a target may also be a row of V probabilities, so that all of
            them are (B, T, V).
        clip: gradients longer than this, all of them as one vector, are scaled to this length.

    Returns:
        (loss, norm): mean cross-entropy in nats a token, and the gradient's length before clipping.

    Raises:
        Diverged: the gradient holds an infinity or a NaN. The weights are left as they were.
    """
    optimizer.zero_grad()
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for i, (inputs, targets) in enumerate(batches):
        # Between ranks only the sum of all passes need travel: DDP's no_sync holds it back.
        held_back = getattr(model, "no_sync", nullcontext) if i + 1 < len(batches) else nullcontext
        with held_back():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(inputs.to(device))  # (B, T, V)
                loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(0, 1))
            (loss / len(batches)).backward()
        total += loss.detach() / len(batches)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    if not math.isfinite(norm):
        raise Diverged(f"the gradient's length is {norm}, the loss {total.item()}")
    optimizer.step()
    return total.item(), norm


@exercise(day=9)
@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: Int64[Tensor, " N"],
    text_bytes: int,
    block_size: int,
    batch_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """Bits that the model needs for a byte of the text whose tokens are `ids`.

    The text is cut into windows of block_size inputs, each beginning where the last one ended, so
    that every token but the first is predicted exactly once; the last window may be shorter. The
    model is put into eval mode, and back into the mode that it was in.

    Args:
        ids: N tokens, 2 or more.
        text_bytes: bytes of UTF-8 that tokens 1 to N - 1 stand for.
        block_size: the longest context, in tokens.
        batch_size: windows a forward pass.
        dtype: of autocast; float32 means none.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats = 0.0
    full = (len(ids) - 1) // block_size * block_size  # predictions in whole windows
    pieces = [
        (ids[:full].view(-1, block_size), ids[1 : full + 1].view(-1, block_size)),
        (ids[full:-1][None], ids[full + 1 :][None]),
    ]
    for inputs, targets in pieces:
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            if x.numel():
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = model(x.to(device))  # (B, T, V)
                nats += F.cross_entropy(
                    logits.flatten(0, 1).float(), y.to(device).flatten(), reduction="sum"
                ).item()
    model.train(was_training)
    return nats / math.log(2) / text_bytes
