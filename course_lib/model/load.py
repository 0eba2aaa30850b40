"""From files to a running decoder: GGUF, or a local folder with `config.json` and safetensors."""

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from course_lib.model.config import ModelConfig
from course_lib.model.decoder import Decoder
from course_lib.model.errors import CheckpointError
from course_lib.model.gguf_file import read_gguf


class Checkpoint(Protocol):
    """A set of weights under Hugging Face's names, each read when it is asked for."""

    path: Path
    config: ModelConfig

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


# GGUF's names for a Llama's tensors, block by block and outside of the blocks.
GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; an unknown name stays as it is."""
    stem, _, kind = gguf_name.rpartition(".")
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in GGUF_LAYER_NAMES:
        return f"model.layers.{parts[1]}.{GGUF_LAYER_NAMES[parts[2]]}.{kind}"
    return gguf_name


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Undo what llama.cpp's converter does to the rows of q_proj and k_proj.

    It stores each head's rows as pairs (0, D/2), (1, D/2 + 1), ... because ggml rotates neighbors; we
    rotate row i with row i + D/2 (see `layers.apply_rope`), so the rows go back to where Hugging Face had
    them.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


class GGUFCheckpoint:
    def __init__(self, path: Path):
        self.path = path
        file = read_gguf(path)
        self.metadata: dict[str, Any] = file.metadata
        self.tensors = {hf_name(name): tensor for name, tensor in file.tensors.items()}
        self.config = ModelConfig.from_gguf(file.metadata, tied="lm_head.weight" not in self.tensors)

    def names(self) -> set[str]:
        return set(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def tensor(self, name: str) -> Tensor:
        weight = self.tensors[name].dequantize()
        if ".q_proj." in name:
            return unpermute(weight, self.config.num_attention_heads)
        if ".k_proj." in name:
            return unpermute(weight, self.config.num_key_value_heads)
        return weight


class SafetensorsCheckpoint:
    """A folder as Hugging Face's `save_pretrained` writes it: `config.json` and .safetensors files."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        self.config = ModelConfig.from_hf(read_json(path / "config.json"))
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{path} has a config.json but no .safetensors file.")
        self.where: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(
                    f"{file.name} is no complete safetensors file ({error}); fetch it again."
                ) from error
            self.where.update(dict.fromkeys(opened.keys(), opened))

    def names(self) -> set[str]:
        return set(self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.where[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        return self.where[name].get_tensor(name)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}; a model's folder needs one."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected an object of settings.")
    return content


def open_checkpoint(path: str | Path) -> GGUFCheckpoint | SafetensorsCheckpoint:
    """A .gguf file, or a folder with config.json and safetensors."""
    path = Path(path)
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    return GGUFCheckpoint(path)


def fill(model: Decoder, checkpoint: Checkpoint) -> None:
    """Copy every tensor of the checkpoint into its place, converting to the model's dtype.

    Raises:
        CheckpointError: a tensor is missing, has the wrong shape, or is there although the model has no
        place for it.
    """
    given = checkpoint.names()
    weights = dict(model.named_weights())
    # A tied head may be stored again; buffers that can be computed are no weights.
    known = weights.keys() | {name for name in given if name.endswith("rotary_emb.inv_freq")}
    if model.config.tie_word_embeddings:
        known |= {"lm_head.weight"}
    if missing := sorted(weights.keys() - given):
        raise CheckpointError(
            f"{checkpoint.path.name} lacks {len(missing)} of {len(weights)} tensors, "
            f"the first is {missing[0]}."
        )
    if extra := sorted(given - known):
        raise CheckpointError(
            f"{checkpoint.path.name} holds {len(extra)} tensors that this {model.config.model_type} "
            f"has no place for, the first is {extra[0]}; without them it would compute something else."
        )
    for name, target in weights.items():
        if (shape := checkpoint.shape(name)) != tuple(target.shape):
            raise CheckpointError(
                f"{checkpoint.path.name}: {name} has the shape {shape}; "
                f"the configuration asks for {tuple(target.shape)}."
            )
        target.copy_(checkpoint.tensor(name))


def load_model(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pack: bool = False,
) -> Decoder:
    """Build the decoder of a checkpoint on a device and fill it.

    `pack=True` reorders the matrices for a CPU afterwards: faster, but the weights can no longer be read
    by name.

    Raises:
        CheckpointError: the files do not fit the configuration; the message says where.
    """
    # A damaged configuration must not make us build a model of 10^15 numbers before we notice.
    held = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    if checkpoint.config.parameters > 2 * held:
        raise CheckpointError(
            f"The configuration of {checkpoint.path.name} describes "
            f"{checkpoint.config.parameters:,} weights; its files hold {held:,}."
        )
    with torch.no_grad():
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = Decoder(checkpoint.config)
        finally:
            torch.set_default_dtype(previous)
        fill(model, checkpoint)
        if pack:
            model.pack()
    return model.eval()
