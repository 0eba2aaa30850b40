"""Special tokens: strings with a meaning to the model, never made by merging what a user typed."""

import re
from collections.abc import Collection

from course_lib.parts import exercise


@exercise(day=5)
def split_special_tokens(text: str, special: Collection[str]) -> list[tuple[str, bool]]:
    """Cut `text` at the special tokens: `(piece, is_special)` in order. Joined they give the text.

    Where several special tokens match at one place the longest wins. No piece is empty: an empty
    text gives an empty list, and a text without special tokens is one ordinary piece.
    """
    if not special:
        return [(text, False)] if text else []
    longest_first = sorted(special, key=len, reverse=True)  # alternatives are tried left to right
    pattern = "(" + "|".join(re.escape(token) for token in longest_first) + ")"
    pieces = re.split(pattern, text)  # ordinary, special, ordinary, special, ..., ordinary
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]
