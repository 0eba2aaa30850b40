"""From a name to a model with its tokenizer and template; and files that were made to do harm."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from course_lib import assets
from course_lib.engine import ChatTemplate
from course_lib.engine import load as loading
from course_lib.engine.load import find, load
from course_lib.model import CheckpointError, Decoder, load_model, open_checkpoint
from course_lib.model.families import HF_FAMILIES, read_config

SPECIAL = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": 340,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 3,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as a chat model on the Hub has it, written by Transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("hub") / "tiny-chat"
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([TEMPLATE, "What is the capital of France? " * 5], trainer)
    theirs.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=theirs, bos_token="<|begin|>", eos_token="<|endoftext|>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.generation_config.eos_token_id = [3, 1]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    """A copy to be damaged."""
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_folder_of_a_chat_model(published):
    """Ids of texts and conversations, the ends, the logits: all as in Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = load(published)
    theirs = AutoTokenizer.from_pretrained(published)
    text = "What is the capital of <|im_end|>?"
    assert [*ours.prefix, *ours.tokenizer.encode(text, allowed_special="all")] == theirs(text)["input_ids"]
    messages = [{"role": "user", "content": "Hi 🙂"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.chat_template is not None
    assert ours.chat_template.encode(messages, ours.tokenizer) == expected
    assert ours.config.eos_token_ids == (1, 2, 3)  # config.json, generation_config.json, the end of a turn
    assert ours.name == "tiny-chat"
    ids = torch.tensor([expected])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(published)(ids).logits
        torch.testing.assert_close(ours.model(ids), logits, atol=1e-4, rtol=0)
    assert ours.tokenizer.decode(range(320, 340)) == ""  # rows of the table that no token has


def rendered(folder: Path) -> str:
    template = load(folder).chat_template
    assert template is not None
    return template.render([])


def test_where_the_template_stands(folder):
    config = folder / "tokenizer_config.json"
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    change(config, chat_template=None)
    assert load(folder).chat_template is None
    change(config, chat_template="old {{ eos_token }}")
    assert rendered(folder) == "old <|endoftext|>"
    change(config, chat_template=[{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}])
    assert rendered(folder) == "yes"
    change(config, bos_token={"content": "<|begin|>", "lstrip": False})
    (folder / "chat_template.jinja").write_text(source)
    assert rendered(folder) == "<|begin|><|im_start|>assistant\n"
    change(config, chat_template=7)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="chat template is a int"):
        load(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% include 'x' %}", "does not accept"),
        ("{% extends self %}", "does not accept"),
        ("{% import 'os' as os %}{{ os.system('id') }}", "does not accept"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does not accept"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "does not accept"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
        ("{{ " + "-" * 5000 + "1 }}", "cannot be compiled"),
    ],
)
def test_templates_that_go_round_in_circles(source, message):
    with pytest.raises((CheckpointError, ValueError), match=message):
        ChatTemplate(source).render([])


def test_the_courses_own_model():
    try:
        path = assets.path("course-10m")
    except (assets.AssetError, KeyError) as error:
        pytest.skip(f"it is not here: {error}")
    if not (path / "model.safetensors").is_file():
        pytest.skip("it is not trained yet")
    ours = load("course-10m")
    ids = ours.tokenizer.encode("ROMEO:\nBut soft, what light through yonder window breaks?\n")
    with torch.inference_mode():
        logits = ours.model(torch.tensor([ids]))[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    assert loss < 0.75 * np.log(ours.config.vocab_size), "it knows no more of Shakespeare than chance does"


# Names


def test_names_that_there_are_not(monkeypatch, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"There is no model 'nothing\.gguf'\. Known: smollm2, course-10m"
    ):
        find("nothing.gguf")
    monkeypatch.setattr(loading, "MINE", tmp_path / "mine")
    with pytest.raises(CheckpointError, match="You have trained no model yet"):
        find("mine")
    (tmp_path / "mine").mkdir()
    assert find("mine") == tmp_path / "mine"


def test_hub(monkeypatch, published):
    """By its explicit id only, and no file that could hold a program."""
    asked: list[Any] = []

    def fetch(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        if repository == "org/offline":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network")
        if repository == "org/damaged":
            raise OSError("disk full\nmore")
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load("org/tiny-chat").name == "tiny-chat"
    ((repository, options),) = asked
    assert repository == "org/tiny-chat"
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            "model.safetensors",
            "config.json",
            "pytorch_model.bin",
            "model.py",
            "original/x.safetensors",
            "a.pth",
        ],
        **options,
    )
    assert list(wanted) == ["model.safetensors", "config.json"]
    with pytest.raises(CheckpointError, match="the Hugging Face Hub cannot be reached"):
        find("org/offline")
    with pytest.raises(CheckpointError, match=r"the Hub does not give it: disk full$"):
        find("org/damaged")
    for path in ("./org/model", "/org/model", "a/b/c", "org"):
        with pytest.raises(CheckpointError, match="There is no model"):
            find(path)


# Folders that do not fit together


def test_vocabulary_of_another_model(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 5000, "content": "<far>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="ids up to 5000; the model knows 340"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"of no use: .*no tokenizer\.json and no tokenizer\.model"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a\\b.safetensors", "model.bin", "", ".."]
)
def test_index_leads_nowhere_else(folder, name):
    index = {"weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no paths"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "no weight_map"),
        ({"weight_map": ["x"]}, "no weight_map"),
        ({"weight_map": {"x": 3}}, "no weight_map"),
        ({"weight_map": {"x": "gone.safetensors"}}, "gone.safetensors is missing"),
        ({"weight_map": {"x": "model.safetensors"}}, "says that x is in model.safetensors, but it is not"),
    ],
)
def test_index_that_is_wrong(folder, index, message):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_other_weights_in_the_folder(folder):
    """Only the model's own file is read: some publish the same weights twice, under other names."""
    save_file({"other": torch.zeros(3)}, folder / "consolidated.safetensors")
    load_model(open_checkpoint(folder))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"has 2 \.safetensors files, none of them model\.safetensors"):
        open_checkpoint(folder)


def test_weights_that_are_no_floats(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(24, dtype=torch.int8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight is stored as I8; expected one of F64, F32"
    ):
        load_model(open_checkpoint(folder))


def header(whole: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def with_header(entries: Any, data: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "damage",
    [
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [10, 5]},
        {"data_offsets": [-1, 5]},
        {"shape": [2**62, 2**62]},
        {"shape": [-1]},
        {"dtype": "OBJECT"},
        {"data_offsets": [0, 96]},  # the same bytes as the first tensor's
    ],
    ids=str,
)
def test_safetensors_header_that_lies(folder, damage):
    entries, data = header((folder / "model.safetensors").read_bytes())
    name = max(
        (name for name in entries if name != "__metadata__"), key=lambda name: entries[name]["data_offsets"]
    )
    entries[name] |= damage
    (folder / "model.safetensors").write_bytes(with_header(entries, data))
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        load_model(open_checkpoint(folder))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4), st.integers(0, 4000))
def test_damaged_safetensors_load_or_say_why(published, tmp_path_factory, changes, cut):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_bytes((published / "config.json").read_bytes())
    data = bytearray((published / "model.safetensors").read_bytes())
    for at, value in changes:
        data[at] = value
    (folder / "model.safetensors").write_bytes(data[:cut] if cut < 3900 else data)
    with contextlib.suppress(CheckpointError):
        load_model(open_checkpoint(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**80) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
NAMES = """
vocab_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_size
max_position_embeddings rms_norm_eps eos_token_id bos_token_id rope_theta rope_scaling
rope_parameters sliding_window sliding_window_pattern layer_types max_window_layers
use_sliding_window num_local_experts num_experts_per_tok attention_bias tie_word_embeddings n_embd
n_head n_layer n_inner n_positions activation_function query_pre_attn_scalar final_logit_softcapping
quantization_config hidden_act model_type
"""


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(sorted(HF_FAMILIES)),
    changes=st.dictionaries(st.sampled_from(NAMES.split()), JSON, max_size=4),
)
def test_any_settings_are_read_or_refused(published, family, changes):
    """Whatever a config.json holds: a configuration that a decoder can be built from, or a refusal."""
    own = {"n_embd": 24, "n_head": 4, "n_layer": 2} if family == "gpt2" else {"sliding_window": 5}
    settings_ = json.loads((published / "config.json").read_text()) | {"model_type": family} | own | changes
    with contextlib.suppress(CheckpointError):
        config = read_config(settings_)
        window = config.window(10**6)
        assert window is None or window > 0
        if 0 < config.parameters < 10**6 and config.num_hidden_layers < 100:
            Decoder(config)
