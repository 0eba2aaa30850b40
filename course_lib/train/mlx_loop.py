"""Day 9's loop in MLX, for Apple chips: the same model, recipe and data, another array library.

    model = MlxGPT(GPT(config))         # starts from the torch model's weights
    fit(model, loader, recipe, held_out_ids, held_out_bytes, run)
    model.to_torch()                    # for save_gpt

What differs from `loop.py`: nothing is computed until `mx.eval` asks for it; a gradient is a function of a
function (`value_and_grad`), not a field of each weight; a compiled step is one graph for the GPU; and there
is no autocast, so the weights are cast where they are used.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from course_lib.model.errors import CheckpointError
from course_lib.model.gpt import GPT, GPTConfig
from course_lib.train.loader import TokenLoader
from course_lib.train.recipe import Recipe

Weights = Any  # a tree of dictionaries and lists, as GPT's modules are nested, with arrays as leaves


class MlxGPT:
    """GPT-2's forward pass as a function of a tree of weights, under `GPT`'s own names."""

    def __init__(self, model: GPT) -> None:
        self.config: GPTConfig = model.config
        flat = [(name, mx.array(w.detach().float().cpu().numpy())) for name, w in model.named_parameters()]
        self.weights: Weights = tree_unflatten(flat)

    def to_torch(self) -> GPT:
        """The same model in torch."""
        model, flat = GPT(self.config), dict(tree_flatten(self.weights))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.from_numpy(np.array(flat[name])))
        return model

    def __call__(self, weights: Weights, ids: mx.array, dropout: float = 0.0) -> mx.array:
        """Logits (B, T, V) for ids (B, T), in the weights' dtype."""
        c = self.config
        batch, tokens = ids.shape
        scale = (c.n_embd // c.n_head) ** -0.5
        drop = nn.Dropout(dropout) if dropout else lambda x: x
        x = drop(weights["wte"]["weight"][ids] + weights["wpe"]["weight"][:tokens])  # (B, T, C)

        def linear(x: mx.array, layer: Weights) -> mx.array:
            return mx.addmm(layer["bias"], x, layer["weight"].T)

        def norm(x: mx.array, layer: Weights) -> mx.array:
            return mx.fast.layer_norm(x, layer["weight"], layer["bias"], c.layer_norm_epsilon)

        for block in weights["h"]:
            qkv = linear(norm(x, block["ln_1"]), block["attn"]["c_attn"])
            query, key, value = (
                part.reshape(batch, tokens, c.n_head, -1).swapaxes(1, 2)  # (B, H, T, D)
                for part in mx.split(qkv, 3, axis=-1)
            )
            mixed = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask="causal")
            mixed = mixed.swapaxes(1, 2).reshape(batch, tokens, c.n_embd)
            x = x + drop(linear(mixed, block["attn"]["c_proj"]))
            hidden = nn.gelu_approx(linear(norm(x, block["ln_2"]), block["mlp"]["c_fc"]))  # (B, T, 4C)
            x = x + drop(linear(hidden, block["mlp"]["c_proj"]))
        return norm(x, weights["ln_f"]) @ weights["wte"]["weight"].T


class Muon(optim.Muon):
    """MLX's Muon with our scale, decoupled decay, and the query, key and value of `c_attn` apart."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        state["v"] = self.momentum * state["v"] + (1 - self.momentum) * gradient
        update = (1 - self.momentum) * gradient + self.momentum * state["v"]
        rows, columns = parameter.shape
        pieces = mx.split(update, 3) if rows == 3 * columns else [update]
        scale = 0.2 * math.sqrt(max(pieces[0].shape))
        steps = [scale * self._zeropower_via_newtonschulz5(piece, self.ns_steps) for piece in pieces]
        return parameter * (1 - self.learning_rate * self.weight_decay) - self.learning_rate * mx.concatenate(
            steps
        )


def build_optimizer(recipe: Recipe) -> optim.MultiOptimizer:
    """As in `muon.build_optimizer`: Muon for the blocks' matrices, AdamW for the rest; no vector decays."""

    def adamw(decay: float) -> optim.AdamW:
        return optim.AdamW(recipe.lr, betas=[0.9, 0.95], eps=1e-8, weight_decay=decay, bias_correction=True)

    def matrix(name: str, weight: mx.array) -> bool:
        return weight.ndim == 2

    def matrix_in_a_block(name: str, weight: mx.array) -> bool:
        return weight.ndim == 2 and name.startswith("h.")

    tables, vectors = adamw(recipe.weight_decay), adamw(0.0)
    if recipe.muon_lr is None:
        return optim.MultiOptimizer([tables, vectors], [matrix])
    muon = Muon(recipe.muon_lr, weight_decay=recipe.weight_decay)
    return optim.MultiOptimizer([muon, tables, vectors], [matrix_in_a_block, matrix])


def fit(
    model: MlxGPT,
    loader: TokenLoader,
    recipe: Recipe,
    held_out: np.ndarray,
    text_bytes: int,
    run: Path,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """As `loop.fit`: train until recipe.steps, going on from the last checkpoint in `run`."""
    optimizer = build_optimizer(recipe)
    optimizer.init(model.weights)
    peaks = [float(each.learning_rate) for each in optimizer.optimizers]
    compute = mx.bfloat16 if recipe.precision == "bfloat16" else mx.float32

    def loss_of(weights: Weights, x: mx.array, y: mx.array) -> mx.array:
        narrow = tree_map(lambda w: w.astype(compute), weights)  # the gradient goes back to the wide ones
        logits = model(narrow, x, model.config.dropout).astype(mx.float32)
        return nn.losses.cross_entropy(logits, y, reduction="mean")

    gradient = mx.value_and_grad(loss_of)
    history: list[dict[str, Any]] = []
    step = 0
    path = run / "checkpoint.safetensors"
    if path.is_file():
        step, history = load_checkpoint(path, model, optimizer, loader)
    while step < recipe.steps:
        started = time.perf_counter()
        step += 1
        mx.random.seed(recipe.seed + step)
        for each, peak in zip(optimizer.optimizers, peaks, strict=True):
            each.learning_rate = mx.array(peak * recipe.factor(step))
        total, grads = mx.array(0.0), tree_map(mx.zeros_like, model.weights)
        for _ in range(recipe.accumulation):
            x, y = loader.next_batch()
            loss, new = gradient(model.weights, mx.array(x), mx.array(y))
            total += loss / recipe.accumulation
            grads = tree_map(lambda a, b: a + b / recipe.accumulation, grads, new)
            mx.eval(total, grads)  # or the graph of all passes would be held at once
        grads, norm = optim.clip_grad_norm(grads, recipe.clip)
        if not math.isfinite(norm.item()):
            raise ArithmeticError(f"Step {step} was not made: the gradient's length is {norm.item()}.")
        model.weights = optimizer.apply_gradients(grads, model.weights)
        mx.eval(model.weights, optimizer.state)
        record = {"step": step, "loss": total.item(), "norm": norm.item(), "rate": recipe.factor(step)}
        record["seconds"] = time.perf_counter() - started
        last = step == recipe.steps
        if last or (recipe.evaluate_every and step % recipe.evaluate_every == 0):
            record["bits_per_byte"] = evaluate(model, held_out, text_bytes, recipe.block_size, compute)
        history.append(record)
        if last or (recipe.save_every and step % recipe.save_every == 0):
            save_checkpoint(path, model, optimizer, loader, step, history)
        report(record)
    return history


def evaluate(
    model: MlxGPT, ids: np.ndarray, text_bytes: int, block_size: int, dtype: mx.Dtype = mx.float32
) -> float:
    """As `step.evaluate`: bits per byte, each token but the first predicted once."""
    weights = tree_map(lambda w: w.astype(dtype), model.weights)
    nats = 0.0
    for start in range(0, len(ids) - 1, block_size):
        window = mx.array(ids[start : start + block_size + 1])
        logits = model(weights, window[None, :-1]).astype(mx.float32)
        nats += float(nn.losses.cross_entropy(logits[0], window[1:], reduction="sum"))
    return nats / math.log(2) / text_bytes


def save_checkpoint(
    path: Path,
    model: MlxGPT,
    optimizer: optim.MultiOptimizer,
    loader: TokenLoader,
    step: int,
    history: list[dict[str, Any]],
) -> None:
    """As `checkpoint.save_checkpoint`, in one safetensors file whose metadata holds what is no array."""
    arrays = dict(tree_flatten({"model": model.weights, "optimizer": optimizer.state}))
    facts = {"step": step, "history": history, "loader": loader.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part.safetensors")
    try:
        mx.save_safetensors(str(part), arrays, metadata={"facts": json.dumps(facts)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(
    path: Path, model: MlxGPT, optimizer: optim.MultiOptimizer, loader: TokenLoader
) -> tuple[int, list[dict[str, Any]]]:
    """Put a run back into the state of `save_checkpoint`, and return its (step, history)."""
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        facts = json.loads(metadata["facts"])
    except (RuntimeError, KeyError, ValueError) as problem:
        raise CheckpointError(f"{path} is damaged: {problem}. Delete it to begin anew.") from problem
    tree = tree_unflatten(list(arrays.items()))
    model.weights, optimizer.state = tree["model"], tree["optimizer"]
    loader.load_state_dict(facts["loader"])
    return facts["step"], facts["history"]
