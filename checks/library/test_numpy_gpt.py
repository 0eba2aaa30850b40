"""GPT-2 in NumPy against Transformers, and checkpoints: whole ones, odd ones, damaged ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from course_lib.bench.forward import race, save, table
from course_lib.model.errors import CheckpointError
from course_lib.model.numpy_gpt import (
    GPT,
    GPTConfig,
    StoredTensor,
    block,
    count_parameters,
    gpt_forward,
    load_gpt2,
    read_safetensors,
    tensor_shapes,
    write_safetensors,
)

# layers, heads, width, positions, vocabulary: nothing is a multiple of anything, one head, one layer.
SHAPES = [(2, 3, 42, 19, 101), (1, 1, 8, 7, 13), (3, 4, 64, 33, 257)]
TINY = SHAPES[1]


def hugging_face(shape: tuple[int, ...], seed: int = 0) -> Any:
    """A GPT-2 of Transformers whose every parameter is random, biases and norms too."""
    layers, heads, width, positions, vocab = shape
    config = GPT2Config(
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        n_positions=positions,
        vocab_size=vocab,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (1.0 if ".ln_" in name and name.endswith("weight") else 0.0))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hugging_face(TINY).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Let `change` edit the dictionary of tensors in a saved checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file)


def reconfigure(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape: tuple[int, ...], tmp_path: Path) -> None:
    twin = hugging_face(shape)
    twin.save_pretrained(tmp_path)
    model = load_gpt2(tmp_path)
    positions, vocab = shape[3:]
    for tokens in (1, 2, positions):
        ids = np.random.default_rng(tokens).integers(0, vocab, size=(2, tokens))
        with torch.inference_mode():
            want = twin(torch.from_numpy(ids)).logits.numpy()
        got = gpt_forward(model, ids)
        assert got.dtype == np.float32
        assert got.shape == want.shape
        assert np.abs(got - want).max() < 1e-4
        np.testing.assert_allclose(gpt_forward(model, ids[1]), got[1], atol=1e-5)  # no batch axis


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_is_read_exactly(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    stored = load_file(folder / "model.safetensors")
    model = load_gpt2(folder)
    assert {f"transformer.{name}" for name in model.weights} == stored.keys()
    for name, weight in model.weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, stored[f"transformer.{name}"].float().numpy())


def test_the_published_form_is_read_too(folder: Path) -> None:
    """OpenAI's checkpoints at Hugging Face: no prefix, causal masks stored, sometimes the output layer."""
    before = load_gpt2(folder)

    def publish(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        bare["h.0.attn.bias"] = torch.ones(1, 1, 7, 7).tril()
        bare["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        return bare | {"lm_head.weight": bare["wte.weight"].clone()}

    rewrite(folder, publish)
    after = load_gpt2(folder)
    assert after.weights.keys() == before.weights.keys()
    for name, weight in after.weights.items():
        np.testing.assert_array_equal(weight, before.weights[name])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: t.__delitem__("transformer.h.0.mlp.c_fc.bias"),
            r"lacks 1 tensors.*h\.0\.mlp\.c_fc\.bias",
        ),
        (lambda t: t.update({"transformer.h.1.ln_1.bias": torch.ones(8)}), r"h\.1\.ln_1\.bias has no place"),
        (
            lambda t: t.update({"transformer.wpe.weight": torch.ones(8, 7)}),
            r"wpe\.weight has shape \(8, 7\), expected \(7, 8\)",
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.ones(8, dtype=torch.float64)}),
            r"ln_f\.bias is F64",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(folder: Path, change: Any, sentence: str) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_gpt2(folder)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_file_cut_short_is_refused(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut short|fetch it again"):
        load_gpt2(folder)


def test_a_file_that_is_too_long_or_lies_about_a_tensor_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_gpt2(folder)
    file.write_bytes(whole.replace(b'"shape":[7,8]', b'"shape":[8,9]'))
    with pytest.raises(CheckpointError, match=r"wpe\.weight should take 288 bytes and has 224"):
        load_gpt2(folder)


def test_a_folder_without_its_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_gpt2(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_gpt2(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"n_layer": 0},
        {"n_head": True},
        {"n_embd": None},
        {"n_head": 3},
        {"model_type": "llama"},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 1e-6},
        {"tie_word_embeddings": False},
        {"n_inner": 16},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_a_configuration_we_would_get_wrong_is_refused(folder: Path, entries: dict[str, Any]) -> None:
    reconfigure(folder, **entries)
    with pytest.raises(CheckpointError, match=next(iter(entries)).split("_")[-1]):
        GPTConfig.read(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_broken_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_gpt2(folder)


def test_names_and_order_of_bytes_agree_with_the_safetensors_library(folder: Path) -> None:
    ours, theirs = read_safetensors(folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == "F32"
        assert tensor.shape == tuple(theirs[name].shape)
        assert tensor.data.tobytes() == theirs[name].numpy().tobytes()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_what_we_write_the_safetensors_library_reads(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(3, 5)), "b.weight": rng.normal(size=7), "empty": np.zeros((0, 2))}
    tensors = {name: StoredTensor.of(v.astype(np.float32), dtype) for name, v in values.items()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    theirs = load_file(tmp_path / "x.safetensors")
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, v in values.items():
        want = torch.from_numpy(v.astype(np.float32)).to(names[dtype])
        assert theirs[name].dtype == names[dtype]
        assert torch.equal(theirs[name], want)
    ours = read_safetensors(tmp_path / "x.safetensors")
    assert {n: (t.dtype, t.shape, t.data.tobytes()) for n, t in ours.items()} == {
        n: (t.dtype, t.shape, t.data.tobytes()) for n, t in tensors.items()
    }


@given(
    layers=st.integers(1, 5),
    heads=st.integers(1, 4),
    size=st.integers(1, 9),
    positions=st.integers(1, 50),
    vocab=st.integers(1, 99),
)
def test_the_count_is_that_of_the_shapes(
    layers: int, heads: int, size: int, positions: int, vocab: int
) -> None:
    config = GPTConfig(vocab, positions, heads * size, layers, heads)
    assert count_parameters(config)["total"] == sum(int(np.prod(s)) for s in tensor_shapes(config).values())


def test_the_count_of_gpt2_small_is_the_published_one() -> None:
    assert count_parameters(GPTConfig(50257, 1024, 768, 12, 12))["total"] == 124_439_808


def random_gpt(config: GPTConfig, seed: int = 0) -> GPT:
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(config).items()
    return GPT(config, {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes})


@given(t=st.integers(2, 9), change=st.integers(1, 8), seed=st.integers(0, 20))
def test_a_token_changes_nothing_before_it(t: int, change: int, seed: int) -> None:
    model = random_gpt(GPTConfig(17, 9, 12, 2, 2), seed)
    ids = np.random.default_rng(seed).integers(0, 17, size=t)
    other = ids.copy()
    other[change % t] = (other[change % t] + 1) % 17
    before, after = gpt_forward(model, ids), gpt_forward(model, other)
    np.testing.assert_allclose(before[: change % t], after[: change % t], atol=1e-5)
    assert np.abs(before[change % t] - after[change % t]).max() > 1e-3


def test_what_goes_in_stays_as_it_is_and_float64_is_no_part_of_it() -> None:
    model = random_gpt(GPTConfig(17, 9, 12, 1, 2))
    x = np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)
    kept, weights = x.copy(), {name: w.copy() for name, w in model.layer(0).items()}
    assert block(x, model.layer(0), 2).dtype == np.float32
    np.testing.assert_array_equal(x, kept)
    for name, weight in model.layer(0).items():
        np.testing.assert_array_equal(weight, weights[name])


@pytest.mark.parametrize("ids", [[], list(range(10)), [17], [-1]])
def test_ids_that_cannot_be_read_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.\.16|reads 1 to 9"):
        gpt_forward(random_gpt(GPTConfig(17, 9, 12, 1, 2)), np.array(ids, dtype=np.int64))


def test_layers_from_ten_on_keep_their_own_weights() -> None:
    model = random_gpt(GPTConfig(5, 3, 4, 12, 1))
    assert model.layer(1).keys() == model.layer(11).keys()
    assert model.layer(1)["ln_1.bias"] is model.weights["h.1.ln_1.bias"]
    assert model.layer(11)["ln_1.bias"] is model.weights["h.11.ln_1.bias"]


def test_the_model_needs_no_torch() -> None:
    code = (
        "import sys; import course_lib.model.numpy_gpt; from course_lib.decode import generate, sample; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_race_measures_two_models_that_agree(tmp_path: Path) -> None:
    result = race(GPTConfig(50, 16, 32, 2, 2), tokens=16, rounds=2)
    assert len(result.numpy) == len(result.torch) == 2
    assert result.difference < 1e-4
    written = json.loads(save(result, tmp_path).read_text())
    assert written["ratio"] == result.ratio > 0
    assert table(result).row_count == 2
