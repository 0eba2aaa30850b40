"""What choosing a token must know of the text before it. No torch in here: any runner can use it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool

from course_lib.decode.params import SamplingParams


class Guide(Protocol):
    """Says which tokens may come next: see `structured.Guide`."""

    def allowed(self, ahead: Sequence[int] = ()) -> Bool[np.ndarray, " V"]:
        """After what it has taken, and `ahead`."""
        ...


class Text:
    """One text, as far as it is written, and the rules that it is written by.

    tokens: the prompt's and the chosen ones: the list that its owner appends to.
    stop_ids: tokens that may not be chosen before the answer has `min_tokens`.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokens: list[int],
        stop_ids: Sequence[int] = (),
        guide: Guide | None = None,
    ):
        self.params = params
        self.tokens = tokens
        self.num_prompt_tokens = len(tokens)
        self.stop_ids = tuple(stop_ids)
        self.guide = guide
        self.counts: dict[int, int] = {}  # token -> how often it was chosen; 0 if only the prompt has it
        self.counted = 0

    def count(self) -> dict[int, int]:
        """Count the tokens that have come since the last time."""
        for place in range(self.counted, len(self.tokens)):
            token = self.tokens[place]
            self.counts[token] = self.counts.get(token, 0) + (place >= self.num_prompt_tokens)
        self.counted = len(self.tokens)
        return self.counts


class Row(NamedTuple):
    """Whose text a row of logits continues, once `ahead` (drafts, supposed to be right) has been appended."""

    text: Text
    ahead: Sequence[int] = ()
