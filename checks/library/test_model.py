"""The decoder and its loaders against Transformers and the gguf package, and against damaged files."""

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.cache import ContiguousCache, kv_cache_bytes
from course_lib.model import CheckpointError, ModelConfig, init_weights, load_model, open_checkpoint
from course_lib.model.gguf_blocks import DECODERS, TYPE_NAMES
from course_lib.model.gguf_file import read_gguf
from course_lib.model.layers import grouped_query_attention, rms_norm
from course_lib.model.rope import apply_rope, rope_frequencies, rope_table

# Odd on purpose: kv heads that differ from heads, heads that do not fill the hidden size, sizes that no block
# divides. Each: hidden size, heads, key/value heads, head size, and what else is special.
SHAPES: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "grouped": (48, 6, 2, 8, {}),
    "heads wider than hidden": (24, 6, 3, 10, {}),
    "heads narrower than hidden": (35, 5, 1, 4, {}),
    "tied": (24, 3, 3, 8, {"tie_word_embeddings": True}),
    "biases": (20, 4, 2, 6, {"attention_bias": True, "mlp_bias": True}),
    "another theta": (16, 2, 1, 8, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
}


def transformers_llama(shape):
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, heads, kv_heads, head_dim, special = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=71,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=37,
        num_hidden_layers=3,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        initializer_range=0.2,  # large, so that attention is far from uniform
        bos_token_id=1,
        eos_token_id=[2, 5],
        **special,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    transformers_llama("grouped").save_pretrained(path)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pack", [False, True])
def test_logits_equal_transformers(shape, pack, tmp_path):
    reference = transformers_llama(shape)
    reference.save_pretrained(tmp_path)
    model = load_model(open_checkpoint(tmp_path), pack=pack)
    ids = torch.randint(0, 71, (3, 13))
    with torch.no_grad():
        expected = reference(ids).logits
    got = model(ids)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(ids, logits_to_keep=1), expected[:, -1:], atol=1e-4, rtol=0)
    assert model.config.parameters == sum(p.numel() for p in reference.parameters())
    assert model.config.eos_token_ids == (2, 5)


def test_sharded_checkpoint(tmp_path):
    reference = transformers_llama("grouped")
    reference.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(open_checkpoint(tmp_path))(ids), reference(ids).logits, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("pieces", [[13], [1] * 13, [5, 1, 7], [12, 1], [2, 11]])
def test_cache_gives_the_logits_of_the_whole(folder, pieces):
    model = load_model(open_checkpoint(folder))
    ids = torch.randint(0, 71, (2, 13))
    cache = ContiguousCache(model.config, capacity=3, batch=2)  # it has to grow on the way
    parts = [model(piece, cache) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)
    assert cache.length == 13 <= cache.capacity


class Recorder(ContiguousCache):
    """A cache that keeps what each layer asked of it."""

    def attend(self, layer, query, key, value, *, scale, window):
        asked = (layer, query.shape, key.shape, value.shape, scale, window)
        self.asked = [*getattr(self, "asked", []), asked]
        return super().attend(layer, query, key, value, scale=scale, window=window)


def test_what_a_layer_asks_of_a_cache(folder):
    model = load_model(open_checkpoint(folder))
    cache = Recorder(model.config, capacity=8, batch=2)
    model(torch.randint(0, 71, (2, 5)), cache)
    query, key = torch.Size((2, 5, 6, 8)), torch.Size((2, 5, 2, 8))
    assert cache.asked == [(layer, query, key, key, 8**-0.5, None) for layer in range(3)]


def test_positions_and_rows(folder):
    """A token's logits depend on where it stands, given for all sequences or for each, and only those
    that were asked for are computed."""
    model = load_model(open_checkpoint(folder))
    ids = torch.randint(0, 71, (2, 9))
    expected = model(ids)
    torch.testing.assert_close(model(ids, positions=torch.arange(9)), expected, atol=0, rtol=0)
    each = torch.stack((torch.arange(9), torch.arange(9) * 3))
    apart = model(ids, positions=each)
    torch.testing.assert_close(apart[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart[1], model(ids[1:], positions=each[1])[0], atol=1e-5, rtol=1e-5)
    assert (apart[1] - expected[1]).abs().max() > 1e-2
    # RoPE is relative: all tokens moved by the same distance see each other as before.
    torch.testing.assert_close(model(ids, positions=torch.arange(30, 39)), expected, atol=1e-4, rtol=1e-4)
    rows = torch.tensor([8, 0, 3])
    torch.testing.assert_close(model(ids, rows=rows), expected[:, rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_decoder_can_be_trained(tied):
    """Every weight of a fresh decoder gets a gradient, and a batch can be learned by heart."""
    config = ModelConfig("llama", 31, 24, 40, 2, 4, 2, 6, 32, tie_word_embeddings=tied)
    model = init_weights(config, seed=0)
    same, other = init_weights(config, seed=0), init_weights(config, seed=1)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, same.get_parameter(name))
        assert weight.ndim == 1 or not torch.equal(weight, other.get_parameter(name))
    torch.manual_seed(0)
    ids = torch.randint(0, 31, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - np.log(31)) < 0.1  # at first every token is as probable as any other
    assert losses[-1] < 0.1


def test_truncated_cache_continues_elsewhere(folder):
    model = load_model(open_checkpoint(folder))
    ids = torch.randint(0, 71, (1, 12))
    cache = ContiguousCache(model.config, capacity=16)
    model(ids, cache)
    cache.truncate(7)
    other = torch.randint(0, 71, (1, 4))
    torch.testing.assert_close(
        model(other, cache), model(torch.cat((ids[:, :7], other), dim=1))[:, 7:], atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="Cannot cut a cache of 11 tokens to 12"):
        cache.truncate(12)


def test_cache_bytes_of_llama_3_8b():
    config = ModelConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 8192)
    assert kv_cache_bytes(config, tokens=1) == 131_072
    assert kv_cache_bytes(config, tokens=4096) == 512 * 2**20
    assert config.parameters == 8_030_261_248
    cache = ContiguousCache(ModelConfig("llama", 9, 8, 8, 3, 4, 2, 6, 32), 10, batch=5, dtype=torch.bfloat16)
    stored = cache.keys.nbytes + cache.values.nbytes
    assert kv_cache_bytes(ModelConfig("llama", 9, 8, 8, 3, 4, 2, 6, 32), 10, batch=5) == stored


def test_attention_by_definition():
    """Softmax of scaled products, one query and one head at a time, in float64."""
    query, key, value = torch.randn(2, 6, 3, 10), torch.randn(2, 2, 7, 10), torch.randn(2, 2, 7, 10)
    for new in (1, 3):
        got = grouped_query_attention(query[:, :, :new], key, value)
        for b, h, t in np.ndindex(2, 6, new):
            seen = 7 - new + t + 1
            keys, values = key[b, h // 3, :seen].double(), value[b, h // 3, :seen].double()
            weights = torch.softmax(keys @ query[b, h, t].double() / 10**0.5, dim=0)
            torch.testing.assert_close(got[b, h, t].double(), weights @ values, atol=1e-6, rtol=1e-5)


def test_rope_turns_by_relative_position():
    """Rotated queries and keys meet in a product that depends only on how far apart they are."""
    cos, sin = rope_table(torch.arange(40), rope_frequencies(16, 10_000.0))
    query, key = torch.randn(16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        one, other = (
            apply_rope(x[None, None, None], cos[p : p + 1].double(), sin[p : p + 1].double())
            for x, p in ((query, i), (key, j))
        )
        return float((one * other).sum())

    assert product(5, 2) == pytest.approx(product(38, 35), rel=1e-5)
    assert product(0, 0) == pytest.approx(float(query @ key))
    assert abs(product(5, 2) - product(5, 3)) > 1e-3


def test_rms_norm_holds_its_precision_in_bfloat16():
    x = (torch.randn(4, 3000) * 100).bfloat16()
    weight = torch.rand(3000).bfloat16()
    exact = x.double() / x.double().square().mean(-1, keepdim=True).sqrt() * weight.double()
    assert (rms_norm(x, weight, 1e-5).double() - exact).abs().max() < 0.03


def test_longer_than_the_models_positions(folder):
    model = load_model(open_checkpoint(folder))
    with pytest.raises(ValueError, match="65 tokens do not fit: the model has 64 positions"):
        model(torch.zeros(1, 65, dtype=torch.long))


def test_rooms_are_entered_without_torch():
    """Week 1 is NumPy: naming a room of the library must not cost the second that importing torch takes."""
    program = (
        "import sys, course_lib.model, course_lib.cache, course_lib.decode, course_lib.engine\n"
        "assert 'torch' not in sys.modules\n"
        "from course_lib.model import rms_norm, ModelConfig\n"
        "assert 'torch' in sys.modules\n"
        "assert not hasattr(course_lib.model, 'no_such_part')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


# Configurations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; this engine runs: gpt2, llama"),
        ({"num_attention_heads": None}, "no entry 'num_attention_heads'"),
        ({"num_attention_heads": "6"}, "num_attention_heads = '6'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0; expected a whole number from 1 up"),
        ({"num_key_value_heads": 4}, "6 query heads cannot share 4 key/value heads"),
        ({"head_dim": 7}, "must be even"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "no entry 'factor'"),
        ({"rope_scaling": {"type": "longrope"}, "rope_parameters": None}, "rotary scaling 'longrope'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan; expected a number above 0"),
        ({"vocab_size": 72}, "shape .71, 48.; the configuration asks for .72, 48."),
        ({"num_hidden_layers": 4}, "lacks 9 of 39 tensors, the first is model.layers.3"),
        ({"num_hidden_layers": 2}, "holds 9 tensors that this llama has no place for"),
        ({"hidden_size": 10**9}, "describes [0-9,]+ weights; its files hold"),
        ({"num_hidden_layers": 9999}, "describes [0-9,]+ weights; its files hold"),
        ({"num_hidden_layers": 10**12}, "no model has over 10,000 layers"),
        ({"hidden_size": 10**400}, "no model is so large"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by 'gptq'"),
    ],
)
def test_configuration_that_does_not_fit(folder, tmp_path, change, message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(open_checkpoint(tmp_path))


def test_folder_that_is_no_checkpoint(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        open_checkpoint(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="There is no file"):
        open_checkpoint(tmp_path / "nothing.gguf")


# GGUF


def write_gguf(path: Path, quantization: gguf.GGMLQuantizationType) -> dict[str, np.ndarray]:
    """A small Llama as llama.cpp's converter writes it, q and k permuted; returns what was stored."""
    layers, hidden, heads, kv_heads, head_dim, ffn, vocab = 2, 64, 4, 2, 16, 96, 40
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    writer.add_bool("test.flag", True)
    writer.add_array("test.array", [1.5, -2.5])
    shapes = {"token_embd": (vocab, hidden), "output": (vocab, hidden), "output_norm": (hidden,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm": (hidden,),
            f"blk.{i}.attn_q": (heads * head_dim, hidden),
            f"blk.{i}.attn_k": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_v": (kv_heads * head_dim, hidden),
            f"blk.{i}.attn_output": (hidden, heads * head_dim),
            f"blk.{i}.ffn_norm": (hidden,),
            f"blk.{i}.ffn_gate": (ffn, hidden),
            f"blk.{i}.ffn_up": (ffn, hidden),
            f"blk.{i}.ffn_down": (hidden, ffn),
        }
    decoded = {}
    for name, shape in shapes.items():
        values = random.normal(1.0 if "norm" in name else 0.0, 0.3, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else quantization
        stored = gguf.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
        decoded[name] = gguf.dequantize(stored, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


WRITABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.mark.parametrize("kind", WRITABLE)
def test_gguf_tensors_are_bit_for_bit_those_of_the_gguf_package(kind, tmp_path):
    path = tmp_path / "tiny.gguf"
    decoded = write_gguf(path, gguf.GGMLQuantizationType[kind])
    file = read_gguf(path)
    assert len(file.tensors) == len(decoded) == 21
    for name, tensor in file.tensors.items():
        expected = torch.from_numpy(decoded[name.removesuffix(".weight")])
        assert torch.equal(tensor.dequantize(), expected), name
    assert file.metadata["test.flag"] is True
    assert file.metadata["test.array"] == [1.5, -2.5]
    assert file.metadata["llama.rope.freq_base"] == 1000.0
    assert file.metadata["tokenizer.ggml.tokens"][39] == "t39"


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_any_bytes_decode_as_in_the_gguf_package(kind):
    """Random bytes reach what weights never do: scales that are infinite, subnormal or no number."""
    block, size, decode = DECODERS[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (500, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[TYPE_NAMES[kind]])
        got = decode(torch.from_numpy(raw.copy())).numpy()
    assert got.shape == expected.shape == (500, block)
    np.testing.assert_array_equal(got, expected)


def test_gguf_model_equals_transformers_reading_the_same_file(tmp_path):
    """Transformers' GGUF reader undoes the permutation of q and k by its own code."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = tmp_path / "tiny.gguf"
    write_gguf(path, gguf.GGMLQuantizationType.Q8_0)
    settings = load_gguf_checkpoint(str(path))["config"]
    reference = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=reference)["tensors"]
    reference.load_state_dict(tensors)
    ids = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        expected = reference(ids).logits
    torch.testing.assert_close(load_model(open_checkpoint(path))(ids), expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, gguf.GGMLQuantizationType.Q4_0)
    return path


def test_no_gguf(tmp_path):
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="4 bytes long: too short"):
        read_gguf(tmp_path / "short.gguf")
    (tmp_path / "zip.gguf").write_bytes(b"PK" + bytes(100))
    with pytest.raises(CheckpointError, match="does not start with 'GGUF'"):
        read_gguf(tmp_path / "zip.gguf")
    (tmp_path / "old.gguf").write_bytes(b"GGUF\x01" + bytes(100))
    with pytest.raises(CheckpointError, match="version 1; versions 2 and 3"):
        read_gguf(tmp_path / "old.gguf")


def test_gguf_of_another_architecture(tiny_gguf, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(CheckpointError, match="'mamba' is not supported"):
        open_checkpoint(other)


def test_gguf_type_that_we_cannot_decode(tiny_gguf, tmp_path):
    data = bytearray(tiny_gguf.read_bytes())
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    data[at : at + 4] = (16).to_bytes(4, "little")  # IQ2_XXS
    (tmp_path / "iq.gguf").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"token_embd\.weight has the GGUF type 16, .*Supported are BF16, "
    ):
        read_gguf(tmp_path / "iq.gguf")


def test_gguf_that_says_a_thing_twice(tmp_path):
    """Tensors that overlap, or two of one name: a file that means different things to different readers."""
    writer = gguf.GGUFWriter(tmp_path / "two.gguf", "llama")
    writer.add_tensor("first", np.ones(32, np.float32))
    writer.add_tensor("other", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = (tmp_path / "two.gguf").read_bytes()
    assert len(read_gguf(tmp_path / "two.gguf").tensors) == 2
    (tmp_path / "two.gguf").write_bytes(whole.replace(b"other", b"first"))
    with pytest.raises(CheckpointError, match="holds the tensor first twice"):
        read_gguf(tmp_path / "two.gguf")
    offset = whole.index(b"other") + len(b"other") + 4 + 8 + 4
    assert whole[offset : offset + 8] == (128).to_bytes(8, "little")
    (tmp_path / "two.gguf").write_bytes(whole[:offset] + (96).to_bytes(8, "little") + whole[offset + 8 :])
    with pytest.raises(CheckpointError, match="the tensors first and other overlap"):
        read_gguf(tmp_path / "two.gguf")


@settings(max_examples=150)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_gguf_says_so(tiny_gguf, tmp_path_factory, share):
    whole = tiny_gguf.read_bytes()
    length = random.Random(share).choice([int(share * len(whole)), int(share * 2000)])
    cut = tmp_path_factory.mktemp("cut") / "cut.gguf"
    cut.write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match=r"truncated|too short"):
        read_gguf(cut)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_gguf_loads_or_says_why(tiny_gguf, tmp_path_factory, changes):
    """Whatever bytes of the header are wrong: a model or a CheckpointError, never anything else."""
    data = bytearray(tiny_gguf.read_bytes())
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.mktemp("damaged") / "damaged.gguf"
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        load_model(open_checkpoint(path))
