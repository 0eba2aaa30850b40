"""The models that the repository ships: they are what their cards say."""

import json
import re

import pytest
import torch

from course_lib import assets
from course_lib.bench.train import greedy_acceptance
from course_lib.model.gpt import GPT, load_gpt
from course_lib.tokenizer import Tokenizer
from course_lib.train.run import hold_out
from course_lib.train.sample import sample
from course_lib.train.step import evaluate
from course_lib.train.texts import read_text

NAMES = ("course-10m", "course-1m")


@pytest.fixture(scope="module")
def models() -> dict[str, GPT]:
    return {name: load_gpt(assets.path(name)).eval() for name in NAMES}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(assets.path("course-10m") / "tokenizer.json")


def facts(name: str) -> dict:
    return json.loads((assets.path(name) / "training.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_byte_of_the_held_out_plays_are_as_published(models, tokenizer, name):
    look = hold_out(read_text("corpus"), tokenizer)
    found = evaluate(models[name], look.ids, look.text_bytes, block_size=512)
    assert found == pytest.approx(facts(name)["bits_per_byte"], rel=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_training_json_says(models, name):
    card = (assets.path(name) / "README.md").read_text()
    known = facts(name)
    weights = sum(weight.numel() for weight in models[name].parameters())
    assert weights == known["weights"]
    assert f"{weights:,}" in card
    assert f"{known['bits_per_byte']:.3f}" in card
    assert f"{known['tokens']:,}" in card
    assert known["data"] == "corpus"
    assert known["recipe"]["steps"] == known["curve"][-1]["step"]


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_small_and_in_bfloat16(name):
    from safetensors import safe_open

    path = assets.path(name) / "model.safetensors"
    assert path.stat().st_size < 25e6
    with safe_open(path, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118


def test_both_speak_the_same_tokens_which_are_those_of_the_training_split(tokenizer):
    from tokenizers import Tokenizer as Theirs

    folders = [assets.path(name) for name in NAMES]
    assert (
        folders[0].joinpath("tokenizer.json").read_bytes()
        == folders[1].joinpath("tokenizer.json").read_bytes()
    )
    held_out = read_text("corpus").held_out
    assert Theirs.from_file(str(folders[0] / "tokenizer.json")).encode(held_out).ids == tokenizer.encode(
        held_out
    )
    assert tokenizer.special_tokens == {"<|endoftext|>": tokenizer.vocab_size - 1}


def test_it_writes_dialogue(models, tokenizer):
    """Speeches: a name in capitals and a colon, lines under it, an empty line after it."""
    text = sample(models["course-10m"], tokenizer, "ROMEO:\n", tokens=200, context=512, seed=1)
    speeches = [speech for speech in text.split("\n\n") if speech.strip()][:-1]  # the last is cut off
    named = [speech for speech in speeches if re.match(r"[A-Z][A-Z .'-]*:\n\S", speech)]
    assert len(speeches) >= 2
    assert len(named) >= 0.75 * len(speeches), text


def test_the_draft_is_accepted_as_published(models, tokenizer):
    """Of four greedy guesses a round; a few prompts only, so within some points of the whole measurement."""
    published = facts("course-1m")["acceptance"]
    ids = tokenizer.encode(read_text("corpus").held_out)
    prompts = torch.tensor([ids[start : start + 64] for start in range(0, 64 * 1000, 8000)])
    accepted, rounds = greedy_acceptance(models["course-10m"], models["course-1m"], prompts, 32, 4)
    assert accepted / (4 * rounds) == pytest.approx(published["accepted of drafted"], abs=0.15)
