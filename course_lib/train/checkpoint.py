"""The state of a run on disk, so that a run can be killed at any moment."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course_lib.model.errors import CheckpointError
from course_lib.parts import exercise


@exercise(day=9)
def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    step: int,
    history: list[dict[str, Any]],
) -> None:
    """Write everything that the next step depends on to one file, or nothing.

    Whatever happens meanwhile, a kill, a power cut, a full disk, `path` is either what it was
    before or the whole new file. An error leaves no other file behind. The file is torch.save's, of
    one dictionary with the keys "model", "optimizer", "loader", "step" and "history".

    Args:
        path: its folder is made if need be.
        model, optimizer, loader: their state_dict() is stored.
        step: how many steps the run has made.
        history: what they gave; a list of dictionaries of numbers.

    Raises:
        OSError: the disk is full or not writable.
    """
    state = {
        "model": getattr(model, "module", model).state_dict(),  # DDP keeps the model it wraps there
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
        "step": step,
        "history": history,
    }
    # torch.save into a file would hide a full disk behind an error of its own.
    content = io.BytesIO()
    torch.save(state, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # the bytes must be on the disk before the name is
        part.replace(path)  # one step for the file system: never half a file under the name
    finally:
        part.unlink(missing_ok=True)


@exercise(day=9)
def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Any, loader: Any
) -> tuple[int, list[dict[str, Any]]]:
    """Put a run back into the state of `save_checkpoint`, and return its (step, history).

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch.save's format: it has checksums of its parts
            if (bad := file.testzip()) is not None:
                raise zipfile.BadZipFile(f"its part {bad} has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as problem:
        raise CheckpointError(
            f"{path} is damaged: {problem}. Delete it to go on from the one before."
        ) from problem
    try:
        getattr(model, "module", model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
    except (KeyError, RuntimeError, ValueError) as problem:
        raise CheckpointError(f"{path} is of another run: {problem}") from problem
    return state["step"], state["history"]


def checkpoint_path(run: Path, step: int) -> Path:
    return run / f"step_{step:08}.pt"


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the latest last."""
    return sorted(path for path in run.glob("step_*.pt") if re.fullmatch(r"step_\d{8}\.pt", path.name))


def prune(run: Path, keep: int = 2) -> None:
    """Delete all but the last `keep` checkpoints. The one before the last is for a disk that damages it."""
    for path in checkpoints(run)[:-keep]:
        path.unlink(missing_ok=True)
