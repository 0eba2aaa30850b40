"""A runner without torch: Day 7's GPT-2 in NumPy, with Day 24's attention over blocks."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from jaxtyping import Float, Int

from course_lib.decode.numpy_sample import sample
from course_lib.decode.params import SamplingParams
from course_lib.decode.randomness import uniform
from course_lib.engine.runner import Batch, flatten, verified
from course_lib.engine.scheduler import Schedule
from course_lib.kernels.paged import paged_attention
from course_lib.model.numpy_gpt import GPT
from course_lib.nn import gelu, layer_norm, linear
from course_lib.tensors import split_heads

# What Day 7's sampler takes, and what the engine does by itself.
SUPPORTED = ("temperature", "top_k", "top_p", "min_p", "seed")
BY_THE_ENGINE = ("max_tokens", "stop_token_ids", "ignore_eos", "stop", "n")


class NumpyRunner:
    """Serves a GPT-2 as readable as it gets: every line is one of the course's own parts."""

    def __init__(self, model: GPT, num_blocks: int, block_size: int = 16):
        self.model = model
        config = model.config
        self.vocab_size = config.vocab_size
        width = config.n_embd // config.n_head
        shape = (config.n_layer, num_blocks, block_size, config.n_head, width)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def refuse(self, params: SamplingParams) -> None:
        """Raise ValueError for what Day 7's sampler does not do."""
        for field in fields(params):
            if field.name not in SUPPORTED + BY_THE_ENGINE and getattr(params, field.name) != field.default:
                raise ValueError(f"{field.name} is not supported by the NumPy runner.")

    def execute(self, schedule: Schedule) -> Float[np.ndarray, "rows vocab"] | None:
        if not schedule.chunks:
            return None
        for source, target in schedule.copies:
            self.keys[:, target], self.values[:, target] = self.keys[:, source], self.values[:, source]
        return self.forward(flatten(schedule))

    def forward(self, batch: Batch) -> Float[np.ndarray, "rows vocab"]:
        """One pass of the model over all tokens; logits of those that are asked for."""
        w, positions = self.model.weights, np.array(batch.positions)
        described = batch.tables()
        tables = np.zeros((len(positions), max(len(blocks) for _, blocks, _ in described)), np.int64)
        row = 0
        for count, blocks, _ in described:
            tables[row : row + count, : len(blocks)] = blocks
            row += count
        slots = np.array(batch.slots)
        x = w["wte.weight"][batch.token_ids] + w["wpe.weight"][positions]  # (N, C)
        for index in range(self.model.config.n_layer):
            x = self.block(x, index, slots, tables, positions + 1)  # a token sees itself, too
        x = layer_norm(x[batch.rows], w["ln_f.weight"], w["ln_f.bias"])
        return x @ w["wte.weight"].T

    def block(
        self,
        x: Float[np.ndarray, "N C"],
        index: int,
        slots: Int[np.ndarray, " N"],
        tables: Int[np.ndarray, "N most"],
        lengths: Int[np.ndarray, " N"],
    ) -> Float[np.ndarray, "N C"]:
        """`model.numpy_gpt.block`, but for where keys and values come from: each token's own blocks."""
        w, keys, values = self.model.layer(index), self.keys[index], self.values[index]
        seen = layer_norm(x, w["ln_1.weight"], w["ln_1.bias"])
        qkv = linear(seen, w["attn.c_attn.weight"], w["attn.c_attn.bias"])  # (N, 3C)
        heads = self.model.config.n_head
        q, k, v = (split_heads(part, heads).swapaxes(0, 1) for part in np.split(qkv, 3, axis=-1))  # (N, H, D)
        keys.reshape(-1, *keys.shape[2:])[slots] = k
        values.reshape(-1, *values.shape[2:])[slots] = v
        mixed = paged_attention(q, keys, values, tables, lengths).reshape(x.shape)
        x = x + linear(mixed, w["attn.c_proj.weight"], w["attn.c_proj.bias"])
        seen = layer_norm(x, w["ln_2.weight"], w["ln_2.bias"])
        wide = linear(seen, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])  # (N, 4C)
        return x + linear(gelu(wide), w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])

    def sample(self, logits: Float[np.ndarray, "rows vocab"] | None, schedule: Schedule) -> list[list[int]]:
        chosen, first = [], 0
        for chunk in schedule.chunks:
            for member in (chunk.request, *chunk.request.siblings) if chunk.samples else ():
                assert logits is not None
                rows = logits[first : first + chunk.samples]
                chosen.append(verified(chunk, self.choose(rows, member.params, member.num_tokens)))
            first += chunk.samples
        return chosen

    def choose(
        self, logits: Float[np.ndarray, "rows vocab"], params: SamplingParams, position: int
    ) -> Sequence[int]:
        """Tokens for a request's places from `position` on, one a row."""
        if params.greedy:
            return logits.argmax(axis=-1).tolist()
        draws = [uniform(params.seed or 0, position + ahead) for ahead in range(len(logits))]
        return sample(
            logits, np.array(draws), params.temperature, params.top_k, params.top_p, params.min_p
        ).tolist()
