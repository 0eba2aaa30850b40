"""GPT-2 in PyTorch: the model that Day 9 trains, under the names that Hugging Face gives its weights.

Shapes use these letters: B sequences, T tokens of each, C numbers a token (`n_embd`), H heads, D = C / H
numbers a head, V tokens in the vocabulary.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_lib.model.errors import CheckpointError
from course_lib.parts import exercise

PREFIX = "transformer."  # before every name in a checkpoint of a language model
# GPT-2's checkpoints keep these matrices as (in, out), nn.Linear as (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT, in the field names of Hugging Face's GPT-2; `dropout` only acts in training."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1 up")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} does not divide into {self.n_head} heads of equal size")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a share from 0 to below 1")


@exercise(day=9)
class Block(nn.Module):
    """One layer of GPT-2: attention, then an MLP of four times the width, each added to its input.

    Both read a normalized copy of the residual stream (pre-norm) and drop a share of what they
    write to it while the model trains. Submodules and their names are GPT-2's: `ln_1`, `attn`
    (`c_attn`, `c_proj`), `ln_2`, `mlp` (`c_fc`, `c_proj`); all have biases.

    Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners";
    openai/gpt-2 `src/model.py`.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, eps = config.n_embd, config.layer_norm_epsilon
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        c_attn, c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn = nn.ModuleDict({"c_attn": c_attn, "c_proj": c_proj})
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.ModuleDict({"c_fc": c_fc, "c_proj": c_proj})
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Every token looks at itself and at those before it, then each is worked on alone."""
        batch, tokens, width = x.shape
        heads = (batch, tokens, self.n_head, width // self.n_head)
        query, key, value = (
            part.view(heads).transpose(1, 2)  # (B, H, T, D)
            for part in self.attn["c_attn"](self.ln_1(x)).split(width, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.drop(self.attn["c_proj"](mixed))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")  # (B, T, 4C)
        return x + self.drop(self.mlp["c_proj"](hidden))


@exercise(day=9)
class GPT(nn.Module):
    """GPT-2: token and position embeddings, `n_layer` blocks, a last norm, logits by the token
    table.

    The submodules are `wte`, `wpe`, `h` (a list of Block) and `ln_f`; `config` is kept. There is no
    output matrix: the logits are the last hidden states times the transposed token table (tied
    embeddings). The sum of the embeddings is dropped out, too.

    A new model's matrices and tables are normal with deviation 0.02, biases 0. The two matrices of
    a block that write to the residual stream start smaller by sqrt(2 * n_layer), so that the
    stream keeps its size however many of them add to it.

    Source: as for Block; initialization: section 2.3.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.dropout)
        for name, param in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(param)
            elif param.dim() > 1:
                writes = name.endswith("c_proj.weight")
                nn.init.normal_(param, std=0.02 / math.sqrt(2 * config.n_layer) if writes else 0.02)

    def forward(self, ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits for the token after each of `ids`.

        Raises:
            ValueError: more tokens than positions; the message says how many of these there are.
        """
        tokens, places = ids.shape[1], self.config.n_positions
        if tokens > places:
            raise ValueError(f"{tokens} tokens do not fit: the model has {places} positions")
        positions = torch.arange(tokens, device=ids.device)
        x = self.drop(self.wte(ids) + self.wpe(positions))  # (B, T, C)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def save_gpt(
    model: GPT,
    folder: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` as Hugging Face's GPT-2 does.

    `extra` adds entries to config.json, such as the id of the token that ends a text (`eos_token_id`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, param in model.named_parameters():
        stored = param.T if name.endswith(TRANSPOSED) else param
        weights[PREFIX + name] = stored.detach().to("cpu", dtype).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    c = model.config
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": c.vocab_size,
        "n_positions": c.n_positions,
        "n_embd": c.n_embd,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": None,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "initializer_range": 0.02,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
        **(extra or {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_gpt(folder: str | Path, dtype: torch.dtype = torch.float32) -> GPT:
    """Read what `save_gpt` or Hugging Face's `save_pretrained` wrote for a GPT-2.

    Raises:
        CheckpointError: a file is missing or damaged, or it holds another model.
    """
    folder = Path(folder)
    try:
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as problem:
        raise CheckpointError(f"{folder} cannot be read as a checkpoint: {problem}") from problem
    if given.get("model_type") != "gpt2":
        raise CheckpointError(
            f"{folder} holds a model of type {given.get('model_type')!r}; load_gpt reads only 'gpt2'."
        )
    config = GPTConfig(
        vocab_size=given["vocab_size"],
        n_positions=given["n_positions"],
        n_embd=given["n_embd"],
        n_layer=given["n_layer"],
        n_head=given["n_head"],
        dropout=given.get("resid_pdrop", 0.0),
        layer_norm_epsilon=given.get("layer_norm_epsilon", 1e-5),
    )
    model = GPT(config).to(dtype)
    with torch.no_grad():
        for name, param in model.named_parameters():
            weight = stored.get(PREFIX + name, stored.get(name))  # a bare GPT2Model is stored without prefix
            if weight is None:
                raise CheckpointError(f"{folder}/model.safetensors has no tensor {PREFIX + name!r}.")
            weight = weight.T if name.endswith(TRANSPOSED) else weight
            if weight.shape != param.shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(weight.shape)}; config.json asks for {tuple(param.shape)}."
                )
            param.copy_(weight)
    return model
