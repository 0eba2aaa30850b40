"""Which reader a tokenizer's files need: a model's folder, or the metadata of a GGUF file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from course_lib.tokenizer.sentencepiece import SentencePieceTokenizer
from course_lib.tokenizer.tokenizer import Tokenizer


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in a model's folder: `tokenizer.json`, or else SentencePiece's `tokenizer.model`.

    Raises:
        ValueError: there is none, it is damaged, or it does something that we would get wrong.
    """
    folder = Path(folder)
    if (path := folder / "tokenizer.json").is_file():
        return read_tokenizer_json(path)
    if (path := folder / "tokenizer.model").is_file():
        with naming(path.name):
            return SentencePieceTokenizer.from_model_file(path)
    raise ValueError(f"{folder} has no tokenizer.json and no tokenizer.model")


def read_tokenizer_json(path: str | Path) -> Tokenizer:
    """A `tokenizer.json`, whether its BPE is of bytes (GPT-2, Llama 3, Qwen) or characters (Llama 2, Gemma).

    Raises:
        ValueError: it is damaged, or does something that we would get wrong.
    """
    path = Path(path)
    with naming(path.name):
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = Tokenizer if "ByteLevel" in json.dumps(content["pre_tokenizer"]) else SentencePieceTokenizer
        return kind.load(path)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata: byte-level BPE ("gpt2") or SentencePiece's ("llama").

    Raises:
        ValueError: another kind, damaged, or with a pre-tokenizer that we do not know.
    """
    with naming("tokenizer.ggml"):
        if metadata.get("tokenizer.ggml.model") == "llama":
            return SentencePieceTokenizer.from_gguf(metadata)
        return Tokenizer.from_gguf(metadata)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Whatever a damaged file leads to becomes a `ValueError` that says which it was."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise ValueError(f"{what} is damaged ({type(error).__name__}: {error})") from error


def tokens_before_text(folder: str | Path) -> list[str]:
    """The special tokens that belong before a text, by the folder's `tokenizer.json` or its settings.

    Chat templates write them themselves.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with naming(path.name):
        steps = [content.get("post_processor") or {}]
        while steps:
            step = steps.pop()
            if step.get("type") == "Sequence":
                steps += step["processors"]
            elif step.get("type") == "TemplateProcessing":
                before: list[str] = []
                for part in step["single"]:
                    if "Sequence" in part:
                        return before
                    before.append(str(part["SpecialToken"]["id"]))
    return []
