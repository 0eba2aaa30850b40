"""GPT-2 in torch, a step, Muon and the evaluation: each against another way to the same number."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.model.errors import CheckpointError
from course_lib.model.gpt import GPT, GPTConfig, load_gpt, save_gpt
from course_lib.train.muon import Muon, block_matrices, build_optimizer, orthogonalize
from course_lib.train.recipe import Recipe
from course_lib.train.shapes import MODELS, attention_shape, context, multiplying_weights
from course_lib.train.step import Diverged, evaluate, train_step

SHAPE = GPTConfig(vocab_size=61, n_positions=24, n_embd=16, n_layer=3, n_head=2)


def gpt(shape: GPTConfig = SHAPE, seed: int = 0) -> GPT:
    """A model whose every weight counts: biases and norms are random, too."""
    torch.manual_seed(seed)
    model = GPT(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def batch(rows: int, tokens: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(61, (rows, tokens + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def test_logits_equal_transformers(tmp_path):
    from transformers import GPT2LMHeadModel

    model = gpt().eval()
    save_gpt(model, tmp_path, torch.float32, {"bos_token_id": 60, "eos_token_id": 60})
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = batch(3, 24)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_reads_what_transformers_saves(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=61, n_positions=24, n_embd=16, n_layer=2, n_head=4, bos_token_id=60, eos_token_id=60
    )
    theirs = GPT2LMHeadModel(shape).eval()
    theirs.save_pretrained(tmp_path)
    ids = batch(2, 20)[0]
    with torch.no_grad():
        torch.testing.assert_close(load_gpt(tmp_path).eval()(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_is_the_same_in_float32_and_rounded_in_bfloat16(tmp_path):
    model = gpt()
    save_gpt(model, tmp_path / "wide", torch.float32)
    save_gpt(model, tmp_path / "narrow")
    wide, narrow = load_gpt(tmp_path / "wide"), load_gpt(tmp_path / "narrow")
    assert wide.config == narrow.config == SHAPE
    for ours, same, rounded in zip(model.parameters(), wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(ours, same)
        assert torch.equal(ours.bfloat16().float(), rounded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "cannot be read"),
        (lambda f: edit(f, model_type="llama"), "'llama'"),
        (lambda f: edit(f, vocab_size=62), r"wte.weight has shape \(61, 16\).*\(62, 16\)"),
        (lambda f: edit(f, n_layer=4), "has no tensor 'transformer.h.3"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, change, message):
    save_gpt(gpt(), tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_gpt(tmp_path)


def edit(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("wrong", [{"n_head": 3}, {"n_layer": 0}, {"dropout": 1.0}])
def test_an_impossible_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"n_embd 16|n_layer is 0|dropout is 1"):
        GPTConfig(**{**SHAPE.__dict__, **wrong})


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="25 tokens do not fit: the model has 24"):
        gpt()(torch.zeros(1, 25, dtype=torch.long))


def test_new_weights_have_the_published_sizes():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, n_positions=64, n_embd=128, n_layer=8, n_head=4))
    sizes = {name: weight.std().item() for name, weight in model.named_parameters() if weight.dim() > 1}
    for name, size in sizes.items():
        assert size == pytest.approx(0.02 / 4 if name.endswith("c_proj.weight") else 0.02, rel=0.05), name
    assert all(not weight.any() for name, weight in model.named_parameters() if name.endswith("bias"))


def test_dropout_acts_in_training_alone():
    model = gpt(GPTConfig(**{**SHAPE.__dict__, "dropout": 0.5}))
    ids = batch(2, 10)[0]
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_accumulation_equals_one_large_batch():
    inputs, targets = batch(8, 12)
    results = []
    for pieces in (1, 4):
        model = gpt()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = list(zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True))
        results.append((train_step(model, optimizer, batches, clip=1e9, dtype=torch.float32), model))
    (whole, one), (parts, four) = results
    assert whole == pytest.approx(parts, rel=1e-5)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_is_the_one_computed_by_hand():
    inputs, targets = batch(4, 12)
    model, other = gpt(), gpt()
    loss, norm = train_step(
        model, torch.optim.SGD(model.parameters(), lr=0.5), [(inputs, targets)], clip=0.1, dtype=torch.float32
    )
    expected = F.cross_entropy(other(inputs).view(-1, 61), targets.reshape(-1))
    grads = torch.autograd.grad(expected, list(other.parameters()))
    length = math.sqrt(sum(g.square().sum().item() for g in grads))
    assert length > 0.1, "else nothing would be clipped"
    assert (loss, norm) == pytest.approx((expected.item(), length), rel=1e-5)
    for new, old, grad in zip(model.parameters(), other.parameters(), grads, strict=True):
        torch.testing.assert_close(new, old - 0.5 * 0.1 / length * grad, rtol=1e-5, atol=1e-6)


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights():
    seen = []
    model = gpt()
    inner = model.get_submodule("h.0.mlp.c_fc")
    inner.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), [batch(2, 8)])
    assert seen == [torch.bfloat16]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_gradient_that_is_not_finite_changes_no_weight():
    model = gpt()
    with torch.no_grad():
        model.ln_f.weight[0] = math.inf
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(Diverged, match="gradient"):
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), [batch(2, 8)])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Uniform(nn.Module):
    """Thinks that every token is equally likely, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen.append(tuple(ids.shape))
        return torch.zeros(*ids.shape, 64)


@pytest.mark.parametrize(("tokens", "windows"), [(33, 4), (30, 4), (5, 1), (2, 1)])
def test_a_uniform_guess_costs_log2_of_the_vocabulary(tokens, windows):
    model = Uniform()
    ids = torch.arange(tokens)
    assert evaluate(model, ids, text_bytes=3 * (tokens - 1), block_size=8) == pytest.approx(6 / 3)
    assert model.training
    assert sum(rows * width for rows, width in model.seen) == tokens - 1, "every token once"
    assert sum(rows for rows, _ in model.seen) == windows


def test_bits_per_byte_equal_a_plain_sum():
    model = gpt()
    ids = batch(1, 50)[0][0]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, 49, 24):
            window = ids[start : start + 25]
            nats -= (
                model(window[None, :-1]).log_softmax(-1)[0, range(len(window) - 1), window[1:]].sum().item()
            )
    found = evaluate(model, ids, text_bytes=100, block_size=24, batch_size=1, dtype=torch.float32)
    assert found == pytest.approx(nats / math.log(2) / 100, rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (3, 20, 12)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_vectors(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    found = orthogonalize(x)
    values = (u.mT @ found @ vt.mT).diagonal(dim1=-2, dim2=-1)
    assert found.dtype == x.dtype
    assert ((values > 0.5) & (values < 1.3)).all(), "for directions that are not tiny"


def test_muon_treats_the_sections_of_a_fused_matrix_apart():
    torch.manual_seed(0)
    fused, apart = nn.Parameter(torch.randn(12, 8)), []
    fused.grad = torch.randn(12, 8) * torch.tensor([1.0] * 4 + [100.0] * 8)[:, None]
    for rows, grad in zip(fused.detach().split([4, 8]), fused.grad.split([4, 8]), strict=True):
        piece = nn.Parameter(rows.clone())
        piece.grad = grad.clone()
        apart.append(piece)
    Muon([(fused, [4, 8])], lr=0.1, weight_decay=0.2).step()
    for piece in apart:
        Muon([(piece, [len(piece)])], lr=0.1, weight_decay=0.2).step()
    torch.testing.assert_close(fused.detach(), torch.cat([piece.detach() for piece in apart]))


def test_muon_steps_are_as_large_as_adamw_steps():
    weight = nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    Muon([(weight, [64])], lr=0.01).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.15)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_one_optimizer(name):
    model = MODELS[name](300, 0.0, 0)
    optimizer = build_optimizer(model, 1e-3, 2e-3, 0.1)
    given = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(given) == sorted(id(weight) for weight in model.parameters())
    muon = optimizer.optimizers[1].param_groups[0]["params"]
    layers, _ = attention_shape(model)
    assert len(muon) == 4 * layers
    assert all(weight.dim() == 2 and min(weight.shape) >= 64 for weight in muon)
    for weight, sections in block_matrices(model):
        assert sum(sections) == len(weight)
    assert [group["peak"] for group in optimizer.param_groups] == [1e-3, 1e-3, 2e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]
    assert context(model) == 512
    assert multiplying_weights(model) < sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", ["course-1m", "modern-1m"])
def test_either_design_learns_a_rule(name):
    """Tokens count up by three: after a few steps the next one is known."""
    model = MODELS[name](60, 0.0, 0)
    optimizer = build_optimizer(model, 3e-3, 3e-3, 0.0)
    ids = (torch.arange(20)[:, None] + 3 * torch.arange(33)) % 60
    losses = [train_step(model, optimizer, [(ids[:, :-1], ids[:, 1:])])[0] for _ in range(25)]
    assert losses[0] == pytest.approx(math.log(60), rel=0.1)
    assert losses[-1] < 0.5


def test_the_rate_of_a_trapezoid():
    recipe = Recipe(steps=10, warmup=4, cooldown=3)
    rates = [recipe.factor(step) for step in range(1, 11)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    longer = Recipe(steps=20, warmup=4, cooldown=3)
    assert [longer.factor(step) for step in range(1, 8)] == rates[:7], (
        "a run may be lengthened until it cools"
    )


def test_the_rate_of_a_cosine_is_day_four_s():
    from course_lib.train import cosine_schedule

    recipe = Recipe(steps=10, warmup=2, schedule="cosine")
    rates = [recipe.factor(step) for step in range(1, 11)]
    np.testing.assert_allclose(rates, [cosine_schedule(step, 1.0, 2, 10) for step in range(1, 11)])


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"warmup": 6, "cooldown": 5}, {"warmup": -1}]
)
def test_an_impossible_recipe_is_refused(wrong):
    with pytest.raises(ValueError, match=r"1 or more|do not fit"):
        Recipe(**{"steps": 10, "warmup": 0, **wrong})
