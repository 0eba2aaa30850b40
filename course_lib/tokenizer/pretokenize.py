r"""Cutting text into chunks before byte-pair encoding: no merge ever crosses a chunk's border.

The patterns are those of the published tokenizers. They need the `regex` package, because Python's own
`re` has no `\p{L}`, a letter in any script.

Sources: openai/gpt-2 `src/encoder.py`; openai/tiktoken `tiktoken_ext/openai_public.py`; llama.cpp
`src/llama-vocab.cpp` (`LLAMA_VOCAB_PRE_TYPE_SMOLLM`); the `tokenizer.json` of Llama 3 and Qwen 2.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import regex

from course_lib.parts import exercise

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def pretokenize_gpt2(text: str) -> list[str]:
    """Cut as GPT-2 does: contractions, letters, digits and the rest, with at most one leading space."""
    return regex.findall(GPT2_PATTERN, text)


def pretokenize_cl100k(text: str) -> list[str]:
    """Cut as GPT-4's cl100k does: digits in threes, line breaks apart from the indentation after them."""
    return regex.findall(CL100K_PATTERN, text)


def pretokenize_llama3(text: str) -> list[str]:
    """Cut as Llama 3 does: as cl100k, but for what happens to spaces around line breaks."""
    return regex.findall(LLAMA3_PATTERN, text)


def pretokenize_qwen2(text: str) -> list[str]:
    """Cut as Qwen 2 and 3 do: as Llama 3, but each digit stands alone."""
    return regex.findall(QWEN2_PATTERN, text)


@exercise(day=5)
def pretokenize_smollm(text: str) -> list[str]:
    """Cut as SmolLM2 does: each digit stands alone, then GPT-2's pattern cuts what lies between.

    A digit is a character of Unicode's categories N*. The chunks joined give the text back.
    """
    chunks = []
    for stretch in regex.split(r"(\p{N})", text):  # the group keeps the digits in the list
        chunks += regex.findall(GPT2_PATTERN, stretch)
    return chunks


PRETOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "gpt2": pretokenize_gpt2,
    "cl100k": pretokenize_cl100k,
    "smollm": pretokenize_smollm,
}
# Day 5 compares those above; these came later.
ALL_PRETOKENIZERS = PRETOKENIZERS | {"llama3": pretokenize_llama3, "qwen2": pretokenize_qwen2}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def described(name: str) -> dict[str, Any]:
    """One of `ALL_PRETOKENIZERS` in the terms of a `tokenizer.json`."""
    if name == "gpt2":
        return BYTE_LEVEL
    if name == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]
    else:
        patterns = {"cl100k": CL100K_PATTERN, "llama3": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}
        pattern = {"Regex": patterns[name]}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        steps = [split, BYTE_LEVEL | {"use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


def from_description(step: Mapping[str, Any] | None) -> Callable[[str], list[str]]:
    """The function that a `tokenizer.json` describes under `pre_tokenizer`.

    Raises:
        ValueError: a kind of step that we do not know.
    """
    match step:
        case None:
            return lambda text: [text] if text else []
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            cutters = [from_description(one) for one in steps]
            return lambda text: reduce(
                lambda pieces, cut: [part for piece in pieces for part in cut(piece)], cutters, [text]
            )
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return pretokenize_gpt2 if step.get("use_regex", True) else from_description(None)
        case {"type": "Digits", "individual_digits": bool(single)}:
            return isolate(r"\p{N}" if single else r"\p{N}+")
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
            return isolate(pattern)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return matches(pattern)
    raise ValueError(f"we do not know the pre-tokenizer {step!r:.300}")


def compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise ValueError(
            f"the pre-tokenizer's pattern {pattern!r:.100} is no regular expression: {error}"
        ) from error


def isolate(pattern: str) -> Callable[[str], list[str]]:
    """A function that cuts a text into what matches and what lies between."""
    expression = compiled(pattern)

    def cut(text: str) -> list[str]:
        pieces, end = [], 0
        for match in expression.finditer(text):
            pieces += [text[end : match.start()], match[0]]
            end = match.end()
        return [piece for piece in [*pieces, text[end:]] if piece]

    return cut


def matches(pattern: str) -> Callable[[str], list[str]]:
    """A function that keeps what matches and drops what lies between."""
    expression = compiled(pattern)
    return lambda text: [match[0] for match in expression.finditer(text) if match[0]]
