"""`python -m course_lib.bench.perplexity`: what fewer bits a weight cost in perplexity, on held-out text."""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from course_lib.engine.load import load
from course_lib.quant.linear import Scheme
from course_lib.train.run import hold_out
from course_lib.train.step import evaluate
from course_lib.train.texts import read_text


@dataclass(frozen=True)
class Format:
    """How the weights are kept: the dtype of those that are not quantized, the scheme, its groups."""

    name: str
    dtype: torch.dtype
    quantize: Scheme | Literal["off"] = "off"
    group_size: int = 32


FORMATS = (
    Format("fp32", torch.float32),
    Format("bf16", torch.bfloat16),
    Format("int8, fp32 activations", torch.float32, "int8"),
    Format("int8, bf16 activations", torch.bfloat16, "int8"),
    Format("int4 by 32, fp32 activations", torch.float32, "int4", 32),
    Format("int4 by 32, bf16 activations", torch.bfloat16, "int4", 32),
    Format("int4 by 128, fp32 activations", torch.float32, "int4", 128),
)


@dataclass(frozen=True)
class Result:
    """One format: bytes of all weights, and how well the model predicts on them."""

    name: str
    weight_bytes: int
    bits_per_byte: float
    perplexity: float  # e to the mean loss of a token, in nats


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and codes, a shared one counted once."""
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def measure(model: str | Path, source: str | Path, form: Format, tokens: int | None = None) -> Result:
    """Predict the first `tokens` of a held-out text (None: all of it), in windows as long as the model has
    positions.

    Args:
        model, source: as for `load` and `read_text`.
    """
    loaded = load(model, "cpu", form.dtype, quantize=form.quantize, group_size=form.group_size)
    text = hold_out(read_text(source), loaded.tokenizer, tokens)
    window = min(512, loaded.config.max_position_embeddings)
    with torch.inference_mode():
        bits = evaluate(loaded.model, text.ids, text.text_bytes, window, 4, torch.float32)  # no autocast
    nats = bits * math.log(2) * text.text_bytes / (len(text.ids) - 1)
    return Result(form.name, weight_bytes(loaded.model), bits, math.exp(nats))


def table(results: list[Result]) -> Table:
    first = results[0]
    shown = Table("weights", "MB", "perplexity", f"beside {first.name}", "bits a byte")
    for result in results:
        shown.add_row(
            result.name,
            f"{result.weight_bytes / 1e6:.1f}",
            f"{result.perplexity:.3f}",
            f"{result.perplexity / first.perplexity - 1:+.2%}",
            f"{result.bits_per_byte:.4f}",
        )
    return shown


def main(
    model: Annotated[str, typer.Option(help="course-10m, smollm2, a path, or owner/name.")] = "course-10m",
    text: Annotated[str, typer.Option(help="corpus, a file or a folder; its held-out part.")] = "corpus",
    tokens: Annotated[int | None, typer.Option(min=2, help="Only its first tokens.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = Path(".course/bench"),
) -> None:
    """Print the perplexity of a model on held-out text for every format of its weights."""
    console, results = Console(), []
    for form in FORMATS:
        with console.status(form.name):
            results.append(measure(model, text, form, tokens))
    console.print(table(results))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"perplexity-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {"model": model, "text": text, "tokens": tokens, "results": [asdict(r) for r in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"as JSON: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
