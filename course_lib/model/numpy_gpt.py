"""GPT-2 in NumPy: a whole decoder-only transformer, from a checkpoint's bytes to logits.

A model is a configuration and a dictionary of float32 arrays under Hugging Face's names, without their
prefix `transformer.`. The matrices of GPT-2 are stored as (in, out), so x @ weight needs no transpose.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from course_lib.model.attention import causal_mask, multi_head_attention
from course_lib.model.errors import CheckpointError
from course_lib.nn import gelu, layer_norm, linear
from course_lib.numerics import round_to_bfloat16
from course_lib.parts import exercise

Weights = Mapping[str, np.ndarray]
BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # a number's, by the dtype's name in a safetensors file


@dataclass(frozen=True)
class GPTConfig:
    """The numbers that fix a GPT-2's shape, under the names of its config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int

    @classmethod
    def read(cls, folder: str | Path) -> "GPTConfig":
        """From the `config.json` in a model's folder.

        Raises:
            CheckpointError: the file is missing or broken, or describes another model than a plain GPT-2.
        """
        path = Path(folder) / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"There is no {path}; a model's folder needs one.") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON ({error}).") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds no object of settings.")
        sizes: dict[str, Any] = {name: content.get(name) for name in cls.__dataclass_fields__}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{path}: {name} is {value!r}; expected a whole number from 1 up.")
        config = cls(**sizes)
        if config.n_embd % config.n_head:
            raise CheckpointError(f"{path}: {config.n_head} heads do not divide a width of {config.n_embd}.")
        # What would change the arithmetic must be what `block` and `gpt_forward` compute.
        expected = {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "n_inner": 4 * config.n_embd,
            "tie_word_embeddings": True,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        }
        for name, value in expected.items():
            given = content.get(name)
            if given is not None and given != value:
                raise CheckpointError(
                    f"{path}: {name} is {given!r}; this model computes with {value!r} only."
                )
        return config


@dataclass(frozen=True)
class GPT:
    """A model that can be run: its configuration, and its weights by name."""

    config: GPTConfig
    weights: Weights

    def layer(self, index: int) -> dict[str, np.ndarray]:
        """The weights of one block, by their names inside it: "ln_1.weight", "attn.c_attn.bias", …"""
        prefix = f"h.{index}."
        return {n.removeprefix(prefix): w for n, w in self.weights.items() if n.startswith(prefix)}


def tensor_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a GPT-2 and its shape, in the order in which a forward pass uses them."""
    c = config.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, c)}
    shapes["wpe.weight"] = (config.n_positions, c)
    for i in range(config.n_layer):
        for name, matrix in (
            ("ln_1", None),
            ("attn.c_attn", (c, 3 * c)),
            ("attn.c_proj", (c, c)),
            ("ln_2", None),
            ("mlp.c_fc", (c, 4 * c)),
            ("mlp.c_proj", (4 * c, c)),
        ):
            shapes[f"h.{i}.{name}.weight"] = matrix or (c,)
            shapes[f"h.{i}.{name}.bias"] = (matrix[1] if matrix else c,)
    return shapes | {"ln_f.weight": (c,), "ln_f.bias": (c,)}


@exercise(day=7)
def count_parameters(config: GPTConfig) -> dict[str, int]:
    """How many numbers a GPT-2 has learned, by what they are for.

    Args:
        config: `n_layer`, `n_embd`, `n_positions` and `vocab_size` matter.

    Returns:
        "embeddings": the token and the position table. The output layer is the token table again.
        "attention": of all blocks, c_attn and c_proj with their biases.
        "mlp": of all blocks, c_fc and c_proj with their biases.
        "norms": two LayerNorms a block and the last one, weights and biases.
        "total": their sum.
    """
    c, layers = config.n_embd, config.n_layer
    counts = {
        "embeddings": (config.vocab_size + config.n_positions) * c,
        "attention": layers * (c * 3 * c + 3 * c + c * c + c),
        "mlp": layers * (c * 4 * c + 4 * c + 4 * c * c + c),
        "norms": (2 * layers + 1) * 2 * c,
    }
    return counts | {"total": sum(counts.values())}


@exercise(day=7)
def block(
    x: Float[np.ndarray, "... t c"],
    weights: Weights,
    heads: int,
) -> Float[np.ndarray, "... t c"]:
    """One transformer block: tokens meet in attention, then each is worked on alone by the MLP.

    Both read the residual stream through a LayerNorm, and add what they found to it.

    Args:
        x: the residual stream, float32; left as it is.
        weights: the block's own, by the names of `GPT.layer`. "attn.c_attn" makes queries, keys and
            values at once, next to one another in this order.
        heads: attention heads; each token sees itself and what comes before it.

    Returns:
        The residual stream after the block, of x's shape and type.

    Source: Radford et al. (2019), section 2.3; `Block` in openai/gpt-2 src/model.py.
    """
    t = x.shape[-2]
    seen = layer_norm(x, weights["ln_1.weight"], weights["ln_1.bias"])
    qkv = linear(seen, weights["attn.c_attn.weight"], weights["attn.c_attn.bias"])  # (..., t, 3c)
    q, k, v = np.split(qkv, 3, axis=-1)
    mixed = multi_head_attention(q, k, v, heads, mask=causal_mask(t, t))
    x = x + linear(mixed, weights["attn.c_proj.weight"], weights["attn.c_proj.bias"])

    seen = layer_norm(x, weights["ln_2.weight"], weights["ln_2.bias"])
    wide = linear(seen, weights["mlp.c_fc.weight"], weights["mlp.c_fc.bias"])  # (..., t, 4c)
    return x + linear(gelu(wide), weights["mlp.c_proj.weight"], weights["mlp.c_proj.bias"])


@exercise(day=7)
def gpt_forward(model: GPT, ids: Int[np.ndarray, "... t"]) -> Float[np.ndarray, "... t vocab"]:
    """Logits for the token after each position: the whole of GPT-2.

    Args:
        model: configuration and weights.
        ids: token ids, any leading axes; the first of each row stands at position 0.

    Returns:
        float32 of shape (..., t, vocab_size).

    Raises:
        ValueError: t is 0 or beyond n_positions, or an id lies outside 0..vocab_size-1.

    Source: Radford et al. (2019); `model` in openai/gpt-2 src/model.py.
    """
    config, w = model.config, model.weights
    t = ids.shape[-1]
    if not 1 <= t <= config.n_positions:
        raise ValueError(f"{t} tokens: this model reads 1 to {config.n_positions}")
    if not 0 <= ids.min() <= ids.max() < config.vocab_size:
        raise ValueError(f"ids {ids.min()}..{ids.max()}: expected 0..{config.vocab_size - 1}")
    x = w["wte.weight"][ids] + w["wpe.weight"][:t]  # (..., t, c)
    for i in range(config.n_layer):
        x = block(x, model.layer(i), config.n_head)
    x = layer_norm(x, w["ln_f.weight"], w["ln_f.bias"])
    return x @ w["wte.weight"].T


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors file has it: its dtype by name ("BF16"), its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray  # uint8, one axis

    @classmethod
    def of(cls, values: Float[np.ndarray, "..."], dtype: str = "F32") -> "StoredTensor":
        """Numbers as they are stored in "F32", "F16" or "BF16", rounded to the nearest."""
        if dtype == "BF16":  # the upper halves of the float32 numbers
            stored = (round_to_bfloat16(values).view(np.uint32) >> 16).astype(np.uint16)
        else:
            stored = values.astype({"F32": np.float32, "F16": np.float16}[dtype])
        return cls(dtype, values.shape, np.frombuffer(stored.tobytes(), dtype=np.uint8))


def read_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, nothing converted.

    The file: eight bytes with the length of the header; the header, JSON with dtype, shape and place
    of each tensor; then the tensors' bytes, little endian, without gaps.

    Raises:
        CheckpointError: the file is missing, cut short, or no safetensors file.

    Source: huggingface/safetensors, README.md, "Format".
    """
    path = Path(path)
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        raise CheckpointError(f"There is no {path}.") from None
    try:
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        header.pop("__metadata__", None)
        places = {name: entry["data_offsets"] for name, entry in header.items()}
        end = start + max((stop for _, stop in places.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(
            f"{path} has no safetensors header: cut short, or another kind of file."
        ) from None
    if len(content) != end:
        raise CheckpointError(
            f"{path} has {len(content):,} bytes, its header speaks of {end:,}: fetch it again."
        )
    for name, (first, stop) in places.items():
        entry = header[name]
        size = math.prod(entry["shape"]) * BYTES.get(entry["dtype"], 0)
        if size and stop - first != size:
            raise CheckpointError(f"{path}: {name} should take {size:,} bytes and has {stop - first:,}.")
    return {
        name: StoredTensor(entry["dtype"], tuple(entry["shape"]), content[start + first : start + stop])
        for name, entry in header.items()
        for first, stop in [places[name]]
    }


def write_safetensors(path: str | Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write a file that `read_safetensors` and every other reader of the format understands."""
    header: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        end = position + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers then begin at a multiple of eight
    data = b"".join(tensor.data.tobytes() for tensor in tensors.values())
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


@exercise(day=7)
def load_gpt2(folder: str | Path) -> GPT:
    """Load a GPT-2 from a folder with `config.json` and `model.safetensors`, as float32.

    Hugging Face writes some checkpoints with "transformer." before every name and some without;
    both are read. Not weights, and passed over: "h.0.attn.bias" and "h.0.attn.masked_bias", the
    causal mask of every block, and "lm_head.weight", the token table once more.

    Args:
        folder: a model's folder. Tensors may be "F32", "F16" or "BF16".

    Returns:
        The model; its weights have exactly the names and shapes of `tensor_shapes`.

    Raises:
        CheckpointError: a file is missing or cut short (from `read_safetensors`, `GPTConfig.read`);
            a tensor is missing, has no place in this model, or has another shape or dtype. The
            message names the tensor.
    """
    config = GPTConfig.read(folder)
    wanted = tensor_shapes(config)
    weights = {}
    for stored_name, tensor in read_safetensors(Path(folder) / "model.safetensors").items():
        name = stored_name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
            continue
        if name not in wanted:
            raise CheckpointError(f"{stored_name} has no place in this model: see tensor_shapes")
        if tensor.shape != wanted[name]:
            shape = wanted[name]
            raise CheckpointError(f"{stored_name} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype == "BF16":
            # The upper half of a float32, so 16 zero bits below make it one.
            bits = tensor.data.view(np.uint16).astype(np.uint32) << 16
            values = bits.view(np.float32)
        elif tensor.dtype in ("F16", "F32"):
            values = tensor.data.view({"F16": np.float16, "F32": np.float32}[tensor.dtype])
        else:
            raise CheckpointError(f"{stored_name} is {tensor.dtype}; F32, F16 and BF16 can be read")
        weights[name] = values.astype(np.float32).reshape(tensor.shape)
    if missing := [name for name in wanted if name not in weights]:
        raise CheckpointError(f"the file lacks {len(missing)} tensors, the first is {missing[0]}")
    return GPT(config, weights)
