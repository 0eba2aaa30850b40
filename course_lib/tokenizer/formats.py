"""The vocabularies that others publish, as two tables: token -> id, and pair of tokens -> rank."""

import base64
from collections.abc import Mapping
from pathlib import Path

from course_lib.tokenizer.bpe import Pair


def byte_to_unicode() -> dict[int, str]:
    """GPT-2's alphabet: each byte as one printable character, so that tokens fit into text files.

    Bytes that print keep their character; the others (controls, the space, 0x7f to 0xa0, 0xad) take the
    next free one from U+0100 on: the space becomes Ġ, the newline Ċ.
    Source: openai/gpt-2 `src/encoder.py`, `bytes_to_unicode`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def unicode_to_byte() -> dict[str, int]:
    """The way back from `byte_to_unicode`."""
    return {character: byte for byte, character in byte_to_unicode().items()}


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """Read a tiktoken file: a line a token, its bytes in base64, a space, its rank."""
    ranks = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            given = line[:60].decode("utf-8", errors="replace")
            raise ValueError(f"{path}, line {number}: {given!r} is no token in base64 and its rank") from None
    return ranks


def pair_ranks(ranks: Mapping[bytes, int]) -> dict[Pair, int]:
    """The pairs that a table token -> rank allows to merge.

    tiktoken stores no merges: two neighbors may merge if their concatenation is a token, and that
    token's rank is the pair's. So every way to cut a token into two tokens gives a pair.
    """
    pairs = {}
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                pairs[left, right] = rank
    return pairs
