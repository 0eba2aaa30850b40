"""The loop in MLX: the same numbers as in torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mlx.core", reason="MLX is not installed on this machine")

from course_lib.model.gpt import GPT, GPTConfig
from course_lib.tokenizer import Tokenizer
from course_lib.train import mlx_loop
from course_lib.train.data import prepare
from course_lib.train.loader import TokenLoader
from course_lib.train.loop import HeldOut, fit
from course_lib.train.muon import build_optimizer
from course_lib.train.recipe import Recipe

LETTERS = Tokenizer({bytes([byte]): i for i, byte in enumerate(b"abcdefghij ")}, {})
RECIPE = Recipe(
    steps=6,
    batch_size=4,
    accumulation=2,
    block_size=16,
    warmup=2,
    cooldown=2,
    evaluate_every=3,
    save_every=2,
    precision="float32",
)


@pytest.fixture
def shards(tmp_path):
    rng = np.random.default_rng(0)
    return prepare(["".join(rng.choice(list("abcdefghij "), 3000))], LETTERS, tmp_path / "tokens").paths


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(LETTERS.vocab_size, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def test_logits_equal_torch():
    import mlx.core as mx

    model = gpt()
    ids = torch.arange(30).view(2, 15) % 11
    ours = np.array(mlx_loop.MlxGPT(model)(mlx_loop.MlxGPT(model).weights, mx.array(ids.numpy())))
    np.testing.assert_allclose(ours, model(ids).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("muon_lr", [None, 2e-3])
def test_a_run_equals_torch_s(shards, tmp_path, muon_lr):
    recipe = replace(RECIPE, muon_lr=muon_lr)
    held_out = np.arange(100) % 11
    model = gpt()
    optimizer = build_optimizer(model, recipe.lr, recipe.muon_lr, recipe.weight_decay)
    text = HeldOut(torch.from_numpy(held_out), 99)
    theirs = fit(model, optimizer, TokenLoader(shards, 4, 16), recipe, text, tmp_path / "torch")
    other = mlx_loop.MlxGPT(gpt())
    ours = mlx_loop.fit(other, TokenLoader(shards, 4, 16), recipe, held_out, 99, tmp_path / "mlx")
    # Torch's Muon iterates in bfloat16, MLX's in float32.
    rtol = 1e-4 if muon_lr is None else 5e-3
    for a, b in zip(theirs, ours, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds"}:
            assert b[key] == pytest.approx(a[key], rel=rtol), key
    if muon_lr is None:
        for x, y in zip(model.parameters(), other.to_torch().parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def test_stopped_and_resumed_ends_bit_for_bit_the_same(shards, tmp_path):
    recipe = replace(RECIPE, precision="bfloat16")
    held_out = np.arange(50) % 11
    whole = mlx_loop.MlxGPT(gpt())
    history = mlx_loop.fit(whole, TokenLoader(shards, 4, 16), recipe, held_out, 49, tmp_path / "whole")

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    cut = mlx_loop.MlxGPT(gpt())
    with pytest.raises(KeyboardInterrupt):
        mlx_loop.fit(cut, TokenLoader(shards, 4, 16), recipe, held_out, 49, tmp_path / "cut", stop)
    cut = mlx_loop.MlxGPT(gpt())
    again = mlx_loop.fit(cut, TokenLoader(shards, 4, 16), recipe, held_out, 49, tmp_path / "cut")
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in history]
    for a, b in zip(whole.to_torch().parameters(), cut.to_torch().parameters(), strict=True):
        assert torch.equal(a, b)
