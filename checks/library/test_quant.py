"""Quantized weights: how far they are from what they stand for, and the model on them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from checks.tiny import drain, tiny_engine, tiny_llama, tiny_model
from course_lib.decode import SamplingParams, generate_uncached
from course_lib.engine import LLM, EngineConfig
from course_lib.model.decoder import init_weights
from course_lib.model.layers import Linear
from course_lib.quant import (
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    dequantize_groups,
    dequantize_rows,
    quantize_groups,
    quantize_linears,
    quantize_rows,
)

CONFIG = tiny_llama(vocab_size=48, hidden_size=64, intermediate_size=96, head_dim=16)
SUMMING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of a product's largest number: order of summing


def weight_of(outputs=48, inputs=128, dtype=torch.float32):
    generator = torch.Generator().manual_seed(outputs + inputs)
    return (torch.randn(outputs, inputs, generator=generator) * torch.logspace(-3, 1, outputs)[:, None]).to(
        dtype
    )


def linear_of(outputs=48, inputs=128, dtype=torch.float32, bias=True):
    linear = Linear(inputs, outputs, bias).requires_grad_(False).to(dtype)
    linear.weight.copy_(weight_of(outputs, inputs))
    if linear.bias is not None:
        linear.bias.copy_(torch.linspace(-1, 1, outputs))
    return linear


def test_rows_are_off_by_half_a_scale_at_most():
    weight = weight_of()
    codes, scale = quantize_rows(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(1).tolist() == [127] * 48
    error = (dequantize_rows(codes, scale) - weight).abs()
    assert (error <= scale[:, None] * 0.5001).all()
    assert error.max() > 0


@pytest.mark.parametrize("size", [32, 64, 128])
def test_groups_are_off_by_half_a_scale_at_most(size):
    weight = weight_of() + 0.3  # no group lies around zero
    codes, scale, middle = quantize_groups(weight, size)
    assert scale.shape == middle.shape == (48, 128 // size)
    groups = codes.view(48, -1, size)
    assert (groups.amin(-1) == 0).all()
    assert (groups.amax(-1) == 15).all()
    error = (dequantize_groups(codes, scale, middle) - weight).abs().view(48, -1, size)
    assert (error <= scale[..., None] * 0.501).all()


def test_smaller_groups_are_nearer():
    weight = weight_of()
    errors = [F.mse_loss(dequantize_groups(*quantize_groups(weight, size)), weight) for size in (32, 64, 128)]
    errors.append(F.mse_loss(torch.zeros_like(weight), weight))
    assert errors == sorted(errors)
    assert F.mse_loss(dequantize_rows(*quantize_rows(weight)), weight) < errors[0] / 20


@pytest.mark.parametrize("weight", [torch.zeros(16, 32), torch.full((16, 32), -0.25)])
def test_a_constant_matrix_stays_what_it_is(weight):
    assert torch.allclose(dequantize_rows(*quantize_rows(weight)), weight)
    assert torch.allclose(dequantize_groups(*quantize_groups(weight, 32)), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize(("kind", "options"), [(Int8Linear, ()), (Int4Linear, (32,)), (Int4Linear, (128,))])
def test_torch_kernels_compute_the_reference(dtype, tokens, kind, options):
    linear = linear_of(dtype=dtype)
    x = torch.randn(2, tokens, 128, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    fast, plain = kind(linear, *options, fast=True), kind(linear, *options, fast=False)
    ours, theirs, exact = fast(x).float(), plain(x).float(), linear(x).float()
    assert ours.shape == (2, tokens, 48)
    largest = theirs.abs().amax()
    assert (ours - theirs).abs().max() <= SUMMING[dtype] * largest
    assert (theirs - exact).abs().max() > 2 * SUMMING[torch.float32] * largest  # it is not the same matrix
    assert (theirs - exact).norm() / exact.norm() < (0.02 if kind is Int8Linear else 0.15)


def test_codes_take_a_quarter_and_an_eighth():
    linear = linear_of(bias=False)
    for layer, bits in [
        (Int8Linear(linear), 8),
        (Int4Linear(linear), 4),
        (Int4Linear(linear, fast=False), 4),
    ]:
        assert layer.packed.nbytes * 8 == 48 * 128 * bits


def test_outputs_that_the_kernel_cannot_do_take_the_reference():
    assert Int4Linear(linear_of(dtype=torch.bfloat16)).fast
    linear = linear_of(outputs=50, dtype=torch.bfloat16)
    layer, ones = Int4Linear(linear), torch.ones(1, 128, dtype=torch.bfloat16)
    assert not layer.fast
    expected = F.linear(ones, dequantize_groups(*quantize_groups(linear.weight, 32)), linear.bias)
    assert torch.equal(layer(ones), expected)


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 2), (torch.bfloat16, 65)])
def test_many_rows_are_multiplied_as_floats(dtype, rows, monkeypatch):
    """There torch's kernel is slower, in float32 by a factor of hundreds: it must not be called."""
    linear = linear_of(dtype=dtype)
    layer, x = Int8Linear(linear), torch.ones(rows, 128, dtype=dtype)
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert torch.equal(layer(x), F.linear(x, dequantize_rows(*quantize_rows(linear.weight)), linear.bias))
    with pytest.raises(AttributeError):
        layer(x[:1])
    assert not Int4Linear(linear_of()).fast


@pytest.mark.parametrize(("inputs", "size"), [(128, 16), (128, 256), (100, 32)])
def test_rows_that_cannot_be_cut(inputs, size):
    with pytest.raises(ValueError, match="cannot be cut"):
        quantize_groups(weight_of(inputs=inputs), size)


EXPERTS = {"model_type": "mixtral", "num_experts": 5, "num_experts_per_tok": 2}
# Of two experts that a token likes equally well it may take the other one after rounding: here it takes all.
EVERY_EXPERT = EXPERTS | {"num_experts_per_tok": 5}


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, EVERY_EXPERT], ids=["untied", "tied", "moe"]
)
@pytest.mark.parametrize(("scheme", "off"), [("int8", 0.02), ("int4", 0.25)])
def test_a_model_on_quantized_weights(changes, scheme, off):
    config = dataclasses.replace(CONFIG, **changes)
    model = tiny_model(config, seed=0, std=0.1)
    table = model.embed_tokens.clone()
    ids = torch.arange(40).view(2, 20)
    exact = model(ids)
    plain = quantize_linears(init_weights(config, seed=0, std=0.1).eval(), scheme, fast=False)
    quantized = quantize_linears(model, scheme)
    kept = {type(module).__name__ for module in quantized.modules()}
    assert not kept & {"Linear", "FusedLinear", "Experts"}
    assert torch.equal(quantized.embed_tokens, table)
    with torch.inference_mode():
        ours, theirs = quantized(ids), plain(ids)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert 0 < (ours - exact).norm() / exact.norm() < off
    with pytest.raises(RuntimeError, match="packed"):
        dict(quantized.named_weights())
    with pytest.raises(ValueError, match="already"):
        quantize_linears(quantized, scheme)


def test_what_cannot_be_quantized():
    model = init_weights(CONFIG, seed=0)
    with pytest.raises(ValueError, match="int8, int4"):
        quantize_linears(model, "int3")


def test_experts_take_a_quarter_and_an_eighth():
    """All of a mixture's matrices have codes; what is left in 32 bits is the router."""
    config = dataclasses.replace(CONFIG, **EXPERTS)
    for scheme, bits in (("int8", 8), ("int4", 4)):
        mixture = quantize_linears(init_weights(config, seed=0), scheme, group_size=32).layers[0].mlp
        numbers = 5 * 3 * config.hidden_size * config.intermediate_size
        codes = sum(buffer.nbytes for name, buffer in mixture.named_buffers() if name.endswith("packed"))
        assert codes * 8 == numbers * bits
        assert sum(p.numel() for p in mixture.parameters()) == 5 * config.hidden_size


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_promise_3_a_mixture_on_quantized_weights(scheme):
    """Through the engine, in company and in chunks: the tokens of the same model alone."""
    model = quantize_linears(tiny_model(dataclasses.replace(CONFIG, **EXPERTS)), scheme)
    params = SamplingParams(temperature=0, max_tokens=8)
    engine = tiny_engine(model, max_num_batched_tokens=7, max_num_seqs=3)
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9] * 3]
    requests = [engine.add(prompt, params)[0] for prompt in prompts]
    drain(engine)
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.output_ids == list(generate_uncached(model, prompt, params))


def test_llm_on_quantized_weights():
    """course-10m writes text on 8 and on 4 bits, and its drafts are those of the same weights."""
    prompts = ["MACBETH:\nIs this", "VIOLA:\nWhat country"]
    params = SamplingParams(temperature=0, max_tokens=12)
    for quantize in ("int8", "int4"):
        llm, drafting = (
            LLM("course-10m", "cpu", "fp32", 1, EngineConfig(num_blocks=64, speculative=who), quantize)
            for who in ("off", "ngram")
        )
        assert isinstance(llm.model.lm_head, QuantizedLinear)
        answers = llm.generate(prompts, params)
        assert [len(answer.token_ids) for answer in answers] == [12, 12]
        assert [answer.text for answer in drafting.generate(prompts, params)] == [a.text for a in answers]


def test_llm_says_what_it_cannot_quantize():
    with pytest.raises(ValueError, match="choose int8, int4, or 'off'"):
        LLM("course-10m", quantize="int3")
    with pytest.raises(ValueError, match="groups of 256"):
        LLM("course-10m", quantize="int4", group_size=256)
