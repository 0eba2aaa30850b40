"""The loop: steps, looks, checkpoints, until the run is done."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from course_lib.parts import exercise
from course_lib.train.checkpoint import checkpoint_path, checkpoints, load_checkpoint, prune, save_checkpoint
from course_lib.train.loader import TokenLoader
from course_lib.train.recipe import Recipe
from course_lib.train.step import Diverged, evaluate, train_step


@dataclass(frozen=True)
class HeldOut:
    """A text that is never trained on: its tokens, and the bytes that all but the first stand for."""

    ids: Int64[Tensor, " N"]
    text_bytes: int


class TrainingStopped(RuntimeError):
    """The run cannot go on as it is; the message says why, what is kept, and what to do."""


@exercise(day=9)
def fit(
    model: nn.Module,
    optimizer: Any,
    loader: TokenLoader,
    recipe: Recipe,
    held_out: HeldOut,
    run: Path,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Train until recipe.steps steps are made, from the last checkpoint in `run` if there is one.

    Killed at any moment and called again with the same arguments, it ends with the same weights,
    bit for bit, as a run that was never killed. For that a step may depend on the checkpoint alone:
    the random numbers of step n (dropout) come from the seed recipe.seed + n.

    Args:
        model: ids to logits, in training mode.
        optimizer: each of its param_groups has the highest rate as "peak"; the rate of a step is
            peak * recipe.factor(step).
        loader: recipe.accumulation batches of it make a step. Among several ranks, each with a
            loader of its own, only rank 0 evaluates, saves and reports.
        held_out: evaluated every recipe.evaluate_every steps (0: never between) and after the last.
        run: folder of the checkpoints, one every recipe.save_every steps (0: never between) and
            after the last.
        report: called after each step with what it gave.

    Returns:
        One dictionary a step: step, loss (nats a token), norm, rate (the factor), seconds, and
        bits_per_byte where it was evaluated.

    Raises:
        TrainingStopped: the gradient was not finite; the message names the step. The last
            checkpoint is from before.
        CheckpointError: the last checkpoint is damaged, or of another model.
        OSError: a checkpoint could not be written. The one before it is still there.
    """
    step = 0
    history: list[dict[str, Any]] = []
    if saved := checkpoints(run):
        step, history = load_checkpoint(saved[-1], model, optimizer, loader)

    def due(every: int) -> bool:
        return loader.rank == 0 and (step == recipe.steps or (every > 0 and step % every == 0))

    while step < recipe.steps:
        started = time.perf_counter()
        step += 1
        torch.manual_seed(recipe.seed + step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * recipe.factor(step)
        arrays = [loader.next_batch() for _ in range(recipe.accumulation)]
        batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in arrays]
        try:
            loss, norm = train_step(model, optimizer, batches, recipe.clip, recipe.dtype)
        except Diverged as problem:
            raise TrainingStopped(f"Step {step} was not made: {problem}.") from problem
        record = {"step": step, "loss": loss, "norm": norm, "rate": recipe.factor(step)}
        record["seconds"] = time.perf_counter() - started
        if due(recipe.evaluate_every):
            record["bits_per_byte"] = evaluate(
                model, held_out.ids, held_out.text_bytes, recipe.block_size, dtype=recipe.dtype
            )
        history.append(record)
        if due(recipe.save_every):
            save_checkpoint(checkpoint_path(run, step), model, optimizer, loader, step, history)
            prune(run)
        report(record)
    return history
