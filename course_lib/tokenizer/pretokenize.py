r"""Cutting text into chunks before byte-pair encoding: no merge ever crosses a chunk's border.

The patterns are those of the published tokenizers. They need the `regex` package, because Python's own
`re` has no `\p{L}`, a letter in any script.

Sources: openai/gpt-2 `src/encoder.py`; openai/tiktoken `tiktoken_ext/openai_public.py`; llama.cpp
`src/llama-vocab.cpp` (`LLAMA_VOCAB_PRE_TYPE_SMOLLM`).
"""

from collections.abc import Callable

import regex

from course_lib.parts import exercise

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def pretokenize_gpt2(text: str) -> list[str]:
    """Cut as GPT-2 does: contractions, letters, digits and the rest, with at most one leading space."""
    return regex.findall(GPT2_PATTERN, text)


def pretokenize_cl100k(text: str) -> list[str]:
    """Cut as GPT-4's cl100k does: digits in threes, line breaks apart from the indentation after them."""
    return regex.findall(CL100K_PATTERN, text)


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
