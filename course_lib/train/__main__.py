"""`make train`: train a model on the plays or on a text of your own, within a budget of time.

python -m course_lib.train --budget 2min                       a small one, on the plays
python -m course_lib.train --budget 15min --data my/notes      on a text file or a folder of them
python -m course_lib.train --budget full                       the shipped model again, in an hour or two
torchrun --nproc-per-node 2 -m course_lib.train --budget 2min  on two processes

Stopped in any way, the same command goes on from the last checkpoint.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from course_lib.assets import REPOSITORY, AssetError
from course_lib.model.errors import CheckpointError
from course_lib.train.data import ShardError

FOR_BUDGET = {"2min": "course-1m", "15min": "course-4m", "full": "course-10m"}


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--budget", choices=FOR_BUDGET, default="2min", help="how long to train")
    parser.add_argument("--model", help="course-1m, course-4m, course-10m, modern-1m or modern-10m")
    parser.add_argument("--data", default="corpus", help="a text file, a folder, or a text by name")
    parser.add_argument(
        "--runs", type=Path, default=REPOSITORY / ".course" / "runs", help="where runs are kept"
    )
    parser.add_argument("--new", action="store_true", help="begin anew; what is there is kept beside it")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on CUDA)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--teacher", default="", help="learn from a model's opinion: course-10m, or a folder")
    parser.add_argument("--steps", type=int, help="instead of what the budget gives")
    parser.add_argument("--lr", type=float, help="AdamW's highest learning rate")
    parser.add_argument("--muon-lr", type=float, help="Muon's highest learning rate")
    parser.add_argument("--no-muon", action="store_true", help="AdamW for all weights")
    parser.add_argument("--batch-size", type=int, help="windows in a forward pass")
    parser.add_argument("--accumulation", type=int, help="forward passes in a step")
    parser.add_argument("--block-size", type=int, help="tokens in a window")
    parser.add_argument("--seed", type=int)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    # Waiting threads that spin take the processor from whoever else works on this machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from course_lib.train.loop import TrainingStopped
    from course_lib.train.run import Request, pick_device, train
    from course_lib.train.shapes import MODELS
    from course_lib.train.texts import read_text

    model = given.model or FOR_BUDGET[given.budget]
    if model not in MODELS:
        print(f"There is no model {model!r}: choose one of {', '.join(MODELS)}.", file=sys.stderr)
        return 2
    if given.threads:
        torch.set_num_threads(given.threads)
    names = ("steps", "lr", "batch_size", "accumulation", "block_size", "seed")
    changes: dict[str, Any] = {
        name: getattr(given, name) for name in names if getattr(given, name) is not None
    }
    if given.no_muon or given.muon_lr is not None:
        changes["muon_lr"] = None if given.no_muon else given.muon_lr
    leads = os.environ.get("RANK", "0") == "0"
    try:
        device = pick_device(given.device)
        text = read_text(given.data)
        folder = given.runs / f"{model}-{text.name}-{given.budget}{'-taught' if given.teacher else ''}"
        if given.new and folder.exists() and leads:
            folder.rename(folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}"))
        compiled = device.type == "cuda" if given.compile is None else given.compile
        request = Request(model, given.budget, given.dropout, changes, given.teacher)
        facts = train(request, text, folder, device, compile=compiled, tensorboard=given.tensorboard)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    except (
        FileNotFoundError,
        TrainingStopped,
        CheckpointError,
        ShardError,
        AssetError,
        ValueError,
    ) as problem:
        print(problem, file=sys.stderr)
        return 1
    except OSError as problem:
        print(
            f"{problem}. The last checkpoint is kept; mend this, and give the same command.", file=sys.stderr
        )
        return 1
    if facts:
        mine = put_as_mine(folder / "model", given.runs / "mine")
        print(
            f"{facts['bits_per_byte']:.4f} bits per byte of the whole held-out text, after "
            f"{facts['tokens']:,} tokens.\n"
            f"Your model is in {mine}: `make engine MODEL=mine` lets it talk."
        )
    return 0


def put_as_mine(model: Path, mine: Path) -> Path:
    """Make a copy of the run's model the one that the engine calls "mine"; the one before it is kept."""
    fresh = mine.with_name("mine.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(model, fresh)
    if mine.exists():
        shutil.rmtree(mine.with_name("mine.before"), ignore_errors=True)
        mine.rename(mine.with_name("mine.before"))
    return fresh.rename(mine)


if __name__ == "__main__":
    sys.exit(main())
