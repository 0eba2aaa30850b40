"""From files to a running decoder: GGUF, or a local folder with `config.json` and safetensors."""

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from course_lib.model.config import ModelConfig
from course_lib.model.decoder import Decoder
from course_lib.model.errors import CheckpointError
from course_lib.model.families import (
    GGUF_NAMES,
    HF_NAMES,
    POST_NORMS,
    PRE_NORM,
    read_config,
    read_gguf_config,
    stored_name,
)
from course_lib.model.gguf_file import read_gguf

FLOATS = ("F64", "F32", "F16", "BF16")
# Stored by some although they can be computed: GPT-2's causal mask, Llama's rotary frequencies.
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


class Checkpoint(Protocol):
    """A set of weights, each read when it is asked for, under the file's own names.

    `stored` translates from the decoder's; `shape` and `tensor` are as the decoder wants them.
    """

    path: Path
    config: ModelConfig

    def names(self) -> set[str]: ...

    def stored(self, name: str) -> str: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


class GGUFCheckpoint:
    """A .gguf file; `metadata` holds its tokenizer and chat template too."""

    def __init__(self, path: Path):
        self.path = path
        file = read_gguf(path)
        self.metadata: dict[str, Any] = file.metadata
        self.tensors = file.tensors
        # The first layers of a long-context Llama carry the divisors of its rotary angles as a tensor.
        factors = self.tensors.pop("rope_freqs.weight", None)
        divisors = () if factors is None else tuple(factors.dequantize().flatten().tolist())
        self.config = read_gguf_config(file.metadata, self.tensors, divisors)
        if divisors and len(divisors) != self.config.head_dim // 2:
            raise CheckpointError(
                f"{path.name}: rope_freqs.weight has {len(divisors)} numbers; a head of "
                f"{self.config.head_dim} turns {self.config.head_dim // 2} pairs."
            )
        self.table = GGUF_NAMES | (POST_NORMS if self.config.post_norms else PRE_NORM)

    def names(self) -> set[str]:
        return set(self.tensors)

    def stored(self, name: str) -> str:
        return stored_name(name, self.table)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def tensor(self, name: str) -> Tensor:
        weight = self.tensors[name].dequantize()
        if self.metadata["general.architecture"] != "llama":
            return weight
        if ".attn_q." in name:
            return unpermute(weight, self.config.num_attention_heads)
        if ".attn_k." in name:
            return unpermute(weight, self.config.num_key_value_heads)
        return weight


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Undo what llama.cpp's converter does to the rows of a Llama's q_proj and k_proj.

    It stores each head's rows as pairs (0, D/2), (1, D/2 + 1), ... because ggml rotates neighbors there;
    we rotate row i with row i + D/2 (see `rope.apply_rope`), so the rows go back to where Hugging Face had
    them.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


class SafetensorsCheckpoint:
    """A folder as Hugging Face's `save_pretrained` writes it: `config.json` and .safetensors files."""

    def __init__(self, path: Path):
        self.path = path
        self.config = read_config(read_json(path / "config.json"))
        self.table = HF_NAMES.get(self.config.model_type, {})
        self.where: dict[str, Any] = {}
        for name, file in weight_files(path).items():
            self.where[name] = file
        # GPT-2's oldest checkpoints leave the prefix out.
        if self.config.model_type == "gpt2" and "wte.weight" in self.where:
            self.table = {ours: theirs.removeprefix("transformer.") for ours, theirs in self.table.items()}

    def names(self) -> set[str]:
        return {name for name in self.where if not f".{name}".endswith(NO_WEIGHTS)}

    def stored(self, name: str) -> str:
        return stored_name(name, self.table)

    def shape(self, name: str) -> tuple[int, ...]:
        info = self.where[name].get_slice(name)
        if (kind := info.get_dtype()) not in FLOATS:
            raise CheckpointError(
                f"{self.path.name}: {name} is stored as {kind}; expected one of {', '.join(FLOATS)}."
            )
        shape = tuple(info.get_shape())
        return shape[::-1] if self.is_transposed(name) else shape

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self.where[name].get_tensor(name)
        return tensor.T if self.is_transposed(name) else tensor

    def is_transposed(self, name: str) -> bool:
        """GPT-2's checkpoints hold the matrices of its blocks as (in, out)."""
        return self.config.model_type == "gpt2" and name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        )


def weight_files(folder: Path) -> dict[str, Any]:
    """The name of each tensor in a folder -> the opened file that holds it.

    `model.safetensors.index.json`, where there is one, says which files belong together; otherwise the
    weights are in `model.safetensors`, or in the only .safetensors file that is there.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(f"{index} has no weight_map from tensor names to file names.")
        files = sorted(set(listed.values()))
        for name in files:
            if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index} names the file {name!r}; expected .safetensors files beside it, and no paths."
                )
        opened = {name: open_safetensors(folder / name) for name in files}
        for name, file in listed.items():
            if name not in opened[file].keys():  # noqa: SIM118  # a file, which only looks like a dictionary
                raise CheckpointError(f"{index} says that {name} is in {file}, but it is not.")
        return {name: opened[file] for name, file in listed.items()}
    there = sorted(folder.glob("*.safetensors"))
    if (folder / "model.safetensors") in there:
        there = [folder / "model.safetensors"]
    if not there:
        raise CheckpointError(f"{folder} has a config.json but no .safetensors file.")
    if len(there) > 1:
        raise CheckpointError(
            f"{folder} has {len(there)} .safetensors files, none of them model.safetensors, and no "
            f"{index.name} that says how they belong together."
        )
    file = open_safetensors(there[0])
    return dict.fromkeys(file.keys(), file)


def open_safetensors(path: Path) -> Any:
    """The file's directory is read and checked, by the safetensors library; the weights stay on disk."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; the model's index names it.") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is no complete safetensors file ({error}); fetch it again."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}; a model's folder needs one."
        ) from None
    except (ValueError, RecursionError) as error:
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
    weights = {checkpoint.stored(name): target for name, target in model.named_weights()}
    # A tied head may be stored again.
    known = weights.keys() | ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
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
