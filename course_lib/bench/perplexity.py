"""`python -m course_lib.bench.perplexity`: what fewer bits cost in perplexity, on held-out text.

Fewer bits a weight, and fewer bits for each key and value: each, and both together.
"""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from jaxtyping import Float, Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from course_lib.cache.paged import PAGED_CACHES, KVCacheDtype, Step
from course_lib.engine.load import load
from course_lib.model.decoder import Decoder
from course_lib.quant.linear import Scheme
from course_lib.train.run import hold_out
from course_lib.train.step import evaluate
from course_lib.train.texts import read_text

BATCH = 4  # windows a pass


@dataclass(frozen=True)
class Format:
    """How the weights are kept: the dtype of those that are not quantized, the scheme, its groups; and how
    keys and values are.
    """

    name: str
    dtype: torch.dtype
    quantize: Scheme | Literal["off"] = "off"
    group_size: int = 32
    kv_cache_dtype: KVCacheDtype = "auto"


WEIGHTS = (
    Format("fp32", torch.float32),
    Format("bf16", torch.bfloat16),
    Format("int8, fp32 activations", torch.float32, "int8"),
    Format("int8, bf16 activations", torch.bfloat16, "int8"),
    Format("int4 by 32, fp32 activations", torch.float32, "int4", 32),
    Format("int4 by 32, bf16 activations", torch.bfloat16, "int4", 32),
    Format("int4 by 128, fp32 activations", torch.float32, "int4", 128),
)
FORMATS = tuple(replace(form, kv_cache_dtype=kept) for kept in PAGED_CACHES for form in WEIGHTS)


@dataclass(frozen=True)
class Result:
    """One format: bytes of all weights and of a token's keys and values, and how well the model predicts."""

    name: str
    kv_cache_dtype: KVCacheDtype
    weight_bytes: int
    kv_bytes: int
    bits_per_byte: float
    perplexity: float  # e to the mean loss of a token, in nats


class Paged(nn.Module):
    """A decoder that reads keys and values where the engine's cache keeps them."""

    def __init__(self, model: Decoder, kv_cache_dtype: KVCacheDtype, tokens: int, block_size: int = 16):
        """With room for `tokens` tokens, in all the texts of a batch."""
        super().__init__()
        self.model, self.block_size = model, block_size
        self.blocks = -(-tokens // block_size)
        kind = PAGED_CACHES[kv_cache_dtype]
        self.cache = kind(model.config, self.blocks, block_size, model.dtype, model.device)

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        batch, tokens = ids.shape
        own = self.blocks // batch  # blocks of a text
        firsts = range(0, batch * own, own)
        slots = [first * self.block_size + place for first in firsts for place in range(tokens)]
        chunks = [(tokens, range(first, first + own), tokens) for first in firsts]
        self.cache.begin(Step.build(slots, chunks, ids.device))
        positions = torch.arange(tokens, device=ids.device).repeat(batch)
        return self.model(ids.view(1, -1), self.cache, positions=positions).view(batch, tokens, -1)


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
    paged = Paged(loaded.model, form.kv_cache_dtype, BATCH * (window + 15))  # whole blocks for each text
    with torch.inference_mode():
        bits = evaluate(paged, text.ids, text.text_bytes, window, BATCH, torch.float32)  # no autocast
    nats = bits * math.log(2) * text.text_bytes / (len(text.ids) - 1)
    kv_bytes = paged.cache.bytes_per_token(loaded.config, form.dtype)
    size = weight_bytes(loaded.model)
    return Result(form.name, form.kv_cache_dtype, size, kv_bytes, bits, math.exp(nats))


def table(results: list[Result]) -> Table:
    first = results[0]
    beside = f"beside {first.name}"
    shown = Table("weights", "MB", "keys, values", "bytes a token", "perplexity", beside, "bits a byte")
    for result in results:
        shown.add_row(
            result.name,
            f"{result.weight_bytes / 1e6:.1f}",
            result.kv_cache_dtype,
            f"{result.kv_bytes:,}",
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
    """Print the perplexity of a model on held-out text for every format of its weights, keys and values."""
    console, results = Console(), []
    for form in FORMATS:
        with console.status(f"{form.name}, keys and values {form.kv_cache_dtype}"):
            results.append(measure(model, text, form, tokens))
    console.print(table(results))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"perplexity-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {"model": model, "text": text, "tokens": tokens, "results": [asdict(r) for r in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"as JSON: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
