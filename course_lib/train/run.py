"""A whole run from a command: text to tokens, a model, the loop, and a folder that the engine loads."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from course_lib import assets
from course_lib.model.gpt import GPT, GPTConfig, save_gpt
from course_lib.tokenizer import Tokenizer
from course_lib.train.data import Corpus, prepare
from course_lib.train.loop import HeldOut

END = "<|endoftext|>"
VOCAB_SIZE = 2048

SHAPES = {
    "course-10m": GPTConfig(VOCAB_SIZE, n_positions=512, n_embd=384, n_layer=6, n_head=6),
    "course-1m": GPTConfig(VOCAB_SIZE, n_positions=512, n_embd=128, n_layer=4, n_head=4),
}


@dataclass(frozen=True)
class Text:
    """What a run reads: documents to train on, and one held out."""

    name: str
    train: list[str]
    held_out: str


def course_corpus() -> Text:
    """The 36 plays, and the two that are held out."""
    folder = assets.path("corpus")
    return Text(
        "corpus",
        [(folder / "train.txt").read_text(encoding="utf-8")],
        (folder / "valid.txt").read_text(encoding="utf-8"),
    )


def train_tokenizer(text: Text, vocab_size: int, path: Path) -> Tokenizer:
    """The tokenizer at `path`, or a new one, trained on the training split alone and kept there."""
    if path.is_file():
        return Tokenizer.load(path)
    tokenizer = Tokenizer.train(text.train, vocab_size, special=[END])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    return tokenizer


def held_out(text: Text, tokenizer: Tokenizer, limit: int | None = None) -> HeldOut:
    """The held-out text as tokens, behind one token that ends the text before it: so that every byte of it
    is predicted. `limit` keeps that many tokens."""
    ids = tokenizer.encode(text.held_out)[:limit]
    size = len(tokenizer.decode_bytes(ids))
    return HeldOut(torch.tensor([tokenizer.special_tokens[END], *ids]), size)


def prepared(text: Text, tokenizer: Tokenizer, run: Path) -> Corpus:
    return prepare(text.train, tokenizer, run / "tokens")


def export(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what the engine loads: weights and configuration in Hugging Face's format, and the tokenizer."""
    assert isinstance(model, GPT)
    save_gpt(
        model,
        folder,
        extra={"bos_token_id": tokenizer.special_tokens[END], "eos_token_id": tokenizer.special_tokens[END]},
    )
    tokenizer.save(folder / "tokenizer.json")
